"""verl's vLLM replica on GPUs, whose servers also take whole batches. Imported only when it is asked for."""

from __future__ import annotations

from typing import Any

import ray
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from unify_posttrain.rollout.batches import AnswersBatches
from unify_posttrain.rollout.vllm_pictures import LooksAgain


class BatchHttpServer(LooksAgain, AnswersBatches, vLLMHttpServer):
    """A replica's server."""


class BatchReplica(vLLMReplica):
    """Driver side: starts the servers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_class = ray.remote(BatchHttpServer)
