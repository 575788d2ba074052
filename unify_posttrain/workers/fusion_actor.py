"""The actor on verl's DataParallelPPOActor: forward by verl, the update by the estimator (`actor_update`)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from verl import DataProto
from verl.utils.device import get_device_id

from unify_posttrain.objective import MiniBatchUpdate, may_step
from unify_posttrain.workers.actor_update import ActorUpdate
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.micro_batches import forward_in_step
from unify_posttrain.workers.shared_prompts import together
from unify_posttrain.workers.trimming import narrow_cuts


class FusionActor(ActorUpdate, ChunkedForward):
    """DataParallelPPOActor whose objective is the terms of `config.fusion.algorithm`."""

    def __init__(self, config: Any, actor_module: nn.Module, actor_optimizer: torch.optim.Optimizer | None = None) -> None:
        fusion = config.fusion
        saving = (fusion.logits_chunk, fusion.trim_padding, fusion.share_prompts)
        ChunkedForward.__init__(self, config, actor_module, actor_optimizer, *saving)
        self.begin()

    def compute_log_prob(self, data: DataProto, calculate_entropy: bool = False) -> dict[str, Tensor]:
        """verl's, except that with dynamic batches all ranks run the same number of forward passes."""

        def forward(part: DataProto) -> dict[str, Tensor]:
            return super(FusionActor, self).compute_log_prob(part, calculate_entropy)

        return forward_in_step(forward, data, self.ulysses_sequence_parallel_size)

    def update_policy(self, data: DataProto) -> dict[str, float]:
        self.actor_module.train()
        return super().update_policy(data)

    def _mini_batches(self, data: DataProto) -> list[DataProto]:
        parts, trims = super()._mini_batches(data), self._trims_by_rows
        return [together(part, self.shares, trims) for part in parts] if self.shares or trims else parts

    def _micro_batches(self, mini_batch: DataProto) -> list[DataProto]:
        if not self._trims_by_rows:
            return super()._micro_batches(mini_batch)
        width = mini_batch.batch["responses"].shape[-1]
        lengths = mini_batch.batch["attention_mask"][:, -width:].sum(dim=-1).tolist()
        ends = narrow_cuts(lengths, self.config.ppo_micro_batch_size_per_gpu)
        return [mini_batch.slice(start, end) for start, end in pairwise([0, *ends])]

    @property
    def _trims_by_rows(self) -> bool:
        return self.trim_padding and not self.config.use_dynamic_bsz  # by tokens, verl sorts rows itself

    def _backward(self, micro_batch: DataProto, update: MiniBatchUpdate) -> None:
        micro_batch = micro_batch.to(get_device_id())
        meta = micro_batch.meta_info
        inputs = {**micro_batch.batch, **micro_batch.non_tensor_batch, "pad_token_id": meta.get("pad_token_id", 0)}
        outputs = self._forward_micro_batch(inputs, temperature=meta["temperature"], calculate_entropy=self.needs_entropy)
        tensors = {**micro_batch.batch, **{k: outputs[k] for k in ("log_probs", "entropys") if k in outputs}}
        loss = update.loss(tensors, list(micro_batch.non_tensor_batch.get("uid", ())))
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _clip_and_step(self, grad_clip: float) -> tuple[float, bool]:
        if self.scaler is None:
            return super()._clip_and_step(grad_clip)
        grad_norm = float(self._optimizer_step())
        return grad_norm, may_step(grad_norm, limit=None)  # verl's own rule: it has stepped already
