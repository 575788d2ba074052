"""A model that sees, in verl's vLLM servers: what the engine remembers of pictures ends with the weights that made it.

vLLM keeps the features of the last pictures, by their content, for requests that show one of them again. verl 0.7.1 empties the
cache of prefixes when new weights have arrived, and vLLM 0.12 has no call that empties this one: prompts of the next step would be
answered with features of a vision tower that is trained no longer. The schedulers of `vllm_schedulers` empty both. verl 0.9.1 has
such a call of vLLM's (`seams.FORGETS_PICTURES`), and keeps vLLM's own scheduler.
"""

from __future__ import annotations

from typing import Any

from unify_posttrain.backend import seams

SCHEDULERS = "unify_posttrain.rollout.vllm_schedulers"


class LooksAgain:
    """Part of a vLLM server of verl's: the engine of a model that sees gets such a scheduler. One that the configuration names
    (`engine_kwargs.vllm.scheduler_cls`) is left alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if seams.FORGETS_PICTURES or self.model_config.processor is None:  # type: ignore[attr-defined]
            return
        kinds: dict[str, Any] = self.config.engine_kwargs  # type: ignore[attr-defined]
        given = kinds.get("vllm") or {}
        name = "ForgettingAsyncScheduler" if given.get("async_scheduling") else "ForgettingScheduler"
        kinds["vllm"] = {"scheduler_cls": f"{SCHEDULERS}.{name}", **given}


def forget_pictures(kept: Any) -> None:
    """Give up the features of all pictures that no request is looking at.

    Args:
        kept: vLLM's `EncoderCacheManager`. Its books are kept as it keeps them when it makes room; workers drop the features
            themselves when they are told of `freed`, with the next step of the engine.
    """
    while kept.freeable:
        picture, tokens = kept.freeable.popitem(last=False)
        del kept.cached[picture]
        kept.freed.append(picture)
        kept.num_free_slots += tokens
