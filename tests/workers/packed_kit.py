"""An actor's rows through its model, packed or padded, by chunks of tokens, in dynamic micro-batches: everything that comes of it.

All in float32. The two layouts add up the same numbers in another order (a long row of attention scores with zeros in it, or a
short one), so that gradients differ by rounding: by up to 6e-7 of their norm over all algorithms. A misplaced token costs 1e-2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from verl import DataProto

from .actor_kit import PROMPT, gradient_distance, make_actor, make_batch, make_model

TOLERANCE = 2e-6  # of a gradient's norm
TOKENS = 40  # of a dynamic micro-batch; rows have up to 16
TEMPERATURE = 0.8
FEW = ("hpt", "online_sft", "relift", "srft", "uft")  # likelihood and ratio; a reference model; replay; entropies; hints


@dataclass(frozen=True)
class Path:
    """How the rows go through the model."""

    packed: bool = True
    chunk: int | None = None
    dynamic: bool = False
    checkpointing: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "use_remove_padding": self.packed,
            "fusion.logits_chunk": self.chunk,
            "use_dynamic_bsz": self.dynamic,
            "ppo_max_token_len_per_gpu": TOKENS,
            "use_torch_compile": False,  # of the entropy alone, and no gain on ten tokens
        }


@dataclass(frozen=True)
class Outcome:
    """What an actor made of a batch: per update its gradients and metrics; log-probs and entropies of the attended tokens."""

    gradients: list[list[dict[str, Tensor]]]
    metrics: list[dict[str, float]]
    streams: dict[str, Tensor]


def rows_of_every_kind() -> DataProto:
    batch = make_batch(rows=12, demonstrations=4, hints=4, padding=1)
    batch.meta_info.update(mini_batches=2, temperature=TEMPERATURE)
    return batch


def updates(actor: Any) -> Iterator[dict[str, float]]:
    """Metrics of an update by every objective that the algorithm has: its phases, its replayed step."""
    for phase in range(len(actor.phases)):
        actor.start_phase(phase)
        yield actor.update_policy(rows_of_every_kind())
    if actor.algorithm.replay_terms:
        batch = rows_of_every_kind()
        batch.meta_info.update(objective="replay", epochs=1, grad_clip=1e9)
        yield actor.update_policy(batch)


def for_log_probs(batch: DataProto, dynamic: bool) -> DataProto:
    batch.meta_info.update(micro_batch_size=5, use_dynamic_bsz=dynamic, max_token_len=TOKENS)
    return batch


def outcome(name: str, path: Path, device: str = "cpu") -> Outcome:
    """All updates of the algorithm, then verl's log-prob stage, with a model on `device`."""
    module = make_model().to(device)
    actor = make_actor(f"algorithm={name}", module=module, settings=path.settings)
    if path.checkpointing:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients, metrics = [], []
    for each in updates(actor):
        metrics.append(each)
        gradients.append([{name: gradient.cpu() for name, gradient in step.items()} for step in actor.gradients])
        actor.gradients = []
    batch = for_log_probs(rows_of_every_kind(), path.dynamic)
    return Outcome(gradients, metrics, attended(batch, actor.compute_log_prob(batch, calculate_entropy=True)))


def attended(batch: DataProto, streams: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = batch.batch["attention_mask"][:, PROMPT:].cpu().bool()
    return {name: stream.cpu()[mask] for name, stream in streams.items()}


def farthest(one: Outcome, other: Outcome) -> float:
    """The largest relative distance of two gradients of the same step."""
    pairs = [pair for updates in zip(one.gradients, other.gradients, strict=True) for pair in zip(*updates, strict=True)]
    assert pairs and all(sorted(a) == sorted(b) for a, b in pairs)
    return max(gradient_distance(a, b) for a, b in pairs)


def assert_same(one: Outcome, other: Outcome) -> None:
    assert farthest(one, other) < TOLERANCE
    for mine, reference in zip(one.metrics, other.metrics, strict=True):
        assert sorted(mine) == sorted(reference)
        for key, value in reference.items():
            assert mine[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    assert sorted(one.streams) == sorted(other.streams) == ["entropys", "log_probs"]
    for key, value in other.streams.items():  # log-probs around -4, of which float32 resolves 2e-7
        torch.testing.assert_close(one.streams[key], value, rtol=1e-6, atol=1e-6)
