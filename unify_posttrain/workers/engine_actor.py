"""Actor, reference and critic on an engine of verl: it runs the model, the updates are the estimator's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from verl import DataProto
from verl.utils.device import get_device_id
from verl.utils.ulysses import ulysses_pad_and_slice_inputs

from unify_posttrain.objective import MiniBatchUpdate, may_step
from unify_posttrain.workers.actor_update import ActorUpdate, clip_gradient
from unify_posttrain.workers.critic_update import CriticUpdate
from unify_posttrain.workers.engine_batch import Layout, engine_batch, in_parts
from unify_posttrain.workers.micro_batches import CALCULATE_ENTROPY, forward_in_step
from unify_posttrain.workers.output_head import LogProbHead, labels_and_wanted, output_head

Loss = Callable[[Tensor, Tensor | None], Tensor]  # of log-probs and entropies (B, T)


class EnginePolicy:
    """Log-probabilities by an engine: all that a reference does.

    Args:
        engine: a `PolicyEngine`, initialised.
        logits_chunk: `fusion.logits_chunk`.

    Raises:
        ValueError: the model's output head is not a plain matrix, and there is a chunk.
    """

    def __init__(self, engine: Any, logits_chunk: int | None) -> None:
        self.engine, self.logits_chunk = engine, logits_chunk
        if logits_chunk is not None:
            output_head(engine.module)

    @property
    def actor_module(self) -> nn.Module:
        return self.engine.module

    @property
    def ulysses_sequence_parallel_size(self) -> int:
        return self.engine.ulysses_sequence_parallel_size

    def compute_log_prob(self, data: DataProto, calculate_entropy: bool = False) -> dict[str, Tensor]:
        """As verl's actor: `log_probs`, and with `calculate_entropy` `entropys`, (B, T) on the CPU; the latter are zeros under
        `calculate_entropy: false` in meta_info.

        Args:
            data: this rank's rows; meta_info `temperature`, `micro_batch_size` in rows, or `use_dynamic_bsz` and `max_token_len`.
        """
        wanted = calculate_entropy and data.meta_info.get(CALCULATE_ENTROPY, True)
        rows = _model_rows(data)

        def outputs(part: DataProto) -> dict[str, Tensor]:
            found: dict[str, Tensor] = {}

            def keep(log_probs: Tensor, entropys: Tensor | None) -> Tensor:
                found["log_probs"] = log_probs.detach()
                if calculate_entropy:
                    found["entropys"] = torch.zeros_like(log_probs) if entropys is None else entropys.detach()
                return log_probs.sum()

            with torch.no_grad():
                self.forward(part.to(get_device_id()), wanted, keep, forward_only=True)
            return found

        def forward(part: DataProto) -> dict[str, Tensor]:
            size = len(part) if data.meta_info["use_dynamic_bsz"] else data.meta_info["micro_batch_size"]
            return in_parts(part, size, outputs)

        with self.engine.eval_mode():
            return forward_in_step(forward, rows, self.ulysses_sequence_parallel_size)

    def forward(self, rows: DataProto, entropy: bool, loss: Loss, forward_only: bool) -> Tensor:
        """One micro-batch through the model.

        Args:
            rows: on the device; meta_info `temperature`.
            entropy: take entropies.
            loss: what is made of the outputs while the engine computes in the configured precision.
            forward_only: no gradient is wanted.

        Returns:
            the loss.
        """
        layout, width = Layout.of(rows.batch["attention_mask"]), rows.batch["responses"].shape[-1]
        batch = engine_batch(rows, layout, packed=self.engine.use_remove_padding, entropy=entropy)

        def loss_function(model_output: dict[str, Tensor], **_: Any) -> tuple[Tensor, dict[str, Any]]:
            found = model_output.get("entropy") if entropy else None
            log_probs = layout.responses(model_output["log_probs"], width)
            return loss(log_probs, None if found is None else layout.responses(found, width)), {}

        with self._head(rows, layout, entropy):
            return self.engine.forward_step(batch, loss_function, forward_only)[0]

    def _head(self, rows: DataProto, layout: Layout, entropy: bool) -> Any:
        """The head that takes log-probs by chunks; nothing without a chunk."""
        if self.logits_chunk is None:
            return nullcontext()
        labels, wanted = (self._as_the_model_sees(layout.nested(each)) for each in labels_and_wanted(rows.batch))
        head = LogProbHead(labels, wanted, self.logits_chunk, float(rows.meta_info["temperature"]), entropy)
        return head.on(self.engine.module)

    def _as_the_model_sees(self, nested: Tensor) -> Tensor:
        """Nested values of tokens as (tokens,), in this rank's order."""
        if not self.engine.use_remove_padding:
            shape = len(nested), int(nested.offsets().diff().max())
            return torch.nested.to_padded_tensor(nested, 0, shape).flatten()
        values = nested.values()
        if self.engine.use_ulysses_sp:
            values = ulysses_pad_and_slice_inputs(values.unsqueeze(0), sp_size=self.ulysses_sequence_parallel_size)[0].squeeze(0)
        return values


class EngineActor(EnginePolicy, ActorUpdate):
    """The terms of `config.fusion.algorithm` on an engine, whose optimizer is the one that steps."""

    def __init__(self, config: Any, engine: Any) -> None:
        super().__init__(engine, config.fusion.logits_chunk)
        self.config = config
        self.begin()

    @property
    def actor_optimizer(self) -> Optimizer:
        return self.engine.optimizer

    def update_policy(self, data: DataProto) -> dict[str, float]:
        with self.engine.train_mode():
            return super().update_policy(data)

    def _backward(self, micro_batch: DataProto, update: MiniBatchUpdate) -> None:
        micro_batch = micro_batch.to(get_device_id())
        labels = list(micro_batch.non_tensor_batch.get("uid", ()))

        def loss(log_probs: Tensor, entropys: Tensor | None) -> Tensor:
            outputs = {"log_probs": log_probs, **({} if entropys is None else {"entropys": entropys})}
            return update.loss({**micro_batch.batch, **outputs}, labels)

        self.forward(micro_batch, self.needs_entropy, loss, forward_only=False).backward()


class EngineCritic(CriticUpdate):
    """Values by an engine, and updates of it.

    Args:
        config: verl's critic node.
        engine: a `ValueEngine`, initialised.
    """

    def __init__(self, config: Any, engine: Any) -> None:
        self.config, self.engine = config, engine

    @property
    def critic_optimizer(self) -> Optimizer:
        return self.engine.optimizer

    @property
    def ulysses_sequence_parallel_size(self) -> int:
        return self.engine.ulysses_sequence_parallel_size

    def compute_values(self, data: DataProto) -> Tensor:
        """(B, T) on the CPU, zeros for padding.

        Args:
            data: this rank's rows; meta_info as of `EnginePolicy.compute_log_prob`.
        """
        rows = _model_rows(data)

        def outputs(part: DataProto) -> dict[str, Tensor]:
            with torch.no_grad():
                return {"values": self._forward(part.to(get_device_id()), forward_only=True).detach()}

        def forward(part: DataProto) -> dict[str, Tensor]:
            size = len(part) if data.meta_info["use_dynamic_bsz"] else data.meta_info["micro_batch_size"]
            return in_parts(part, size, outputs)

        with self.engine.eval_mode():
            return forward_in_step(forward, rows, self.ulysses_sequence_parallel_size)["values"]

    def update_critic(self, data: DataProto) -> dict[str, float]:
        with self.engine.train_mode():
            return super().update_critic(data)

    def _forward(self, micro_batch: DataProto, forward_only: bool = False) -> Tensor:
        layout, width = Layout.of(micro_batch.batch["attention_mask"]), micro_batch.batch["responses"].shape[-1]
        micro_batch.meta_info.setdefault("temperature", 1.0)  # which the engine reads of every batch
        batch = engine_batch(micro_batch, layout, packed=self.engine.use_remove_padding, entropy=False)
        found: list[Tensor] = []

        def keep(model_output: dict[str, Tensor], **_: Any) -> tuple[Tensor, dict[str, Any]]:
            found.append(layout.responses(model_output["values"], width))
            return found[0].sum(), {}

        self.engine.forward_step(batch, keep, forward_only)
        return found[0]

    def _optimizer_step(self) -> float:
        norm = clip_gradient(self.engine.module, self.config.grad_clip)
        if may_step(norm, limit=None):
            self.engine.optimizer.step()
        else:
            self.engine.optimizer.zero_grad()
        return norm


def _model_rows(data: DataProto) -> DataProto:
    """What a model reads of a batch."""
    columns = [name for name in ("multi_modal_inputs",) if name in data.non_tensor_batch]
    return data.select(batch_keys=["responses", "input_ids", "attention_mask", "position_ids"], non_tensor_batch_keys=columns)
