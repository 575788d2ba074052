"""verl's forward pass with another output head (`output_head`), without columns of padding (`trimming`), and with a prompt that
several rows share computed once (`shared_prompts`).

verl's `_forward_micro_batch` still lays out the tokens (padding, remove-padding, Ulysses, images) and runs the model, and reads the
head's two columns as it reads those of its fused kernels (`use_fused_kernels`). Their own code is not used: in 0.7.1 it works on
every token, always computes the entropy, returns bfloat16 log-probs from bfloat16 models (verl pull request 5662) and shifts labels
wrongly across Ulysses ranks (verl issues 3512, 3723).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from verl import DataProto
from verl.utils.ulysses import ulysses_pad_and_slice_inputs
from verl.workers.actor import DataParallelPPOActor

from unify_posttrain.workers.micro_batches import CALCULATE_ENTROPY
from unify_posttrain.workers.output_head import LogProbHead, labels_and_wanted, output_head
from unify_posttrain.workers.shared_prompts import SharedPrompts, can_share
from unify_posttrain.workers.trimming import on_trimmed


class ChunkedForward(DataParallelPPOActor):
    """DataParallelPPOActor that takes log-probs and entropies `logits_chunk` tokens at a time, with `trim_padding` leaves out
    columns of padding, and with `share_prompts` computes what rows share once; with None and false it is verl's.

    Attributes:
        shares: whether prompts are shared: rows are not packed, nothing else replaces the output, and the model allows it.

    Raises:
        ValueError: verl's fused kernels are on as well, or the model's output head is not a plain matrix.
    """

    def __init__(
        self,
        config: Any,
        actor_module: nn.Module,
        actor_optimizer: torch.optim.Optimizer | None = None,
        logits_chunk: int | None = None,
        trim_padding: bool = False,
        share_prompts: bool = False,
    ) -> None:
        super().__init__(config, actor_module, actor_optimizer)
        self.logits_chunk = logits_chunk
        self.trim_padding = trim_padding and not self.use_remove_padding  # packed rows have no padding to leave out
        replaced = self.use_remove_padding or self.use_fused_kernels or logits_chunk is not None
        self.shares = share_prompts and not replaced and can_share(actor_module)
        if logits_chunk is not None:
            if self.use_fused_kernels:
                raise ValueError(
                    f"fusion.logits_chunk={logits_chunk} and actor_rollout_ref.model.use_fused_kernels=true both replace the "
                    "output head; set one of them"
                )
            output_head(actor_module)
            self.use_fused_kernels = True  # verl then reads `log_probs` and `entropy` off the output

    def compute_log_prob(self, data: DataProto, calculate_entropy: bool = False) -> dict[str, Tensor]:
        """verl's; with `calculate_entropy: false` in meta_info the entropies that its worker always asks for are zeros."""
        wanted = data.meta_info.get(CALCULATE_ENTROPY, True)
        outputs = super().compute_log_prob(data, calculate_entropy and wanted)
        if calculate_entropy and not wanted:
            outputs["entropys"] = torch.zeros_like(outputs["log_probs"])
        return outputs

    def _forward_micro_batch(
        self, micro_batch: dict[str, Any], temperature: float, calculate_entropy: bool = False
    ) -> dict[str, Tensor]:
        def forward(columns: Mapping[str, Any]) -> dict[str, Tensor]:
            return self._forward_columns(dict(columns), temperature, calculate_entropy)

        return on_trimmed(forward, micro_batch) if self.trim_padding else forward(micro_batch)

    def _forward_columns(self, micro_batch: dict[str, Any], temperature: float, calculate_entropy: bool) -> dict[str, Tensor]:
        if self.logits_chunk is None:
            shared = SharedPrompts.of(micro_batch, self._image_token) if self.shares else None
            with nullcontext() if shared is None else shared.on(self.actor_module):
                return super()._forward_micro_batch(micro_batch, temperature, calculate_entropy)
        labels, wanted = self._in_layout(*labels_and_wanted(micro_batch), micro_batch["attention_mask"])
        head = LogProbHead(labels, wanted, self.logits_chunk, temperature, calculate_entropy)
        with head.on(self.actor_module):
            return super()._forward_micro_batch(micro_batch, temperature, calculate_entropy)

    @property
    def _image_token(self) -> int | None:
        return getattr(self.actor_module.config, "image_token_id", None)

    def _in_layout(self, labels: Tensor, wanted: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) tensors as (tokens,), in the order in which this rank's model sees them."""
        if not self.use_remove_padding:
            return labels.flatten(), wanted.flatten()
        attended = attention_mask.flatten().nonzero().squeeze(-1)  # once for both: the host waits for its size
        labels, wanted = labels.flatten()[attended], wanted.flatten()[attended]
        if not len(labels):  # verl then sends one token per rank
            return labels.new_zeros(1), wanted.new_zeros(1)
        if self.use_ulysses_sp:
            labels, wanted = (
                ulysses_pad_and_slice_inputs(values.unsqueeze(0), sp_size=self.ulysses_sequence_parallel_size)[0].squeeze(0)
                for values in (labels, wanted)
            )
        return labels, wanted
