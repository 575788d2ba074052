"""verl's own vLLM replica without CUDA: its servers and what starts them (see `vllm_cpu`)."""

from __future__ import annotations

import os
from typing import Any

from unify_posttrain.rollout.batches import AnswersBatches
from unify_posttrain.rollout.vllm_cpu import CHANNEL, CPUWorkerExtension, channel, declared_resource
from unify_posttrain.rollout.vllm_pictures import LooksAgain

# isort: split
# After our module, which imports vllm first.
import ray
from verl.workers.rollout.vllm_rollout import vllm_async_server


class CPUHttpServer(LooksAgain, AnswersBatches, vllm_async_server.vLLMHttpServer):
    """A replica's server, whose vLLM processes load our worker extension and inherit the name of the channel."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        os.environ[CHANNEL] = channel(self.replica_rank)
        extension = f"{CPUWorkerExtension.__module__}.{CPUWorkerExtension.__name__}"
        given = self.config.engine_kwargs.get("vllm") or {}
        self.config.engine_kwargs["vllm"] = {"worker_extension_cls": extension, **given}


class CPUReplica(vllm_async_server.vLLMReplica):
    """Driver side: starts the servers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(CPUHttpServer)

    async def launch_servers(self) -> None:
        # Not undone afterwards: replicas are launched at the same time, and nothing else of this module asks.
        vllm_async_server.get_resource_name = declared_resource
        await super().launch_servers()
