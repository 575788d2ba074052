"""vLLM's schedulers, which forget pictures together with prefixes (see `vllm_pictures`). vLLM imports them by their names, in the
process of its engine."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from unify_posttrain.rollout.vllm_pictures import forget_pictures


class _Forgets:
    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        """What verl calls when the engine has new weights."""
        done = super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]
        forget_pictures(self.encoder_cache_manager)  # type: ignore[attr-defined]
        return bool(done)


class ForgettingScheduler(_Forgets, Scheduler):
    """The default."""


class ForgettingAsyncScheduler(_Forgets, AsyncScheduler):
    """With `engine_kwargs.vllm.async_scheduling=true`."""
