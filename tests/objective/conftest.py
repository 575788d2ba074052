"""Random batches with every stream and every kind of row, and the loss of a batch that arrives in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import Term, compute_loss, count_members

Batch = dict[str, Tensor]


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., Batch]:
    """random_batch(seed, rows, width): rows of every length (0 too) and every kind, some of weight 0."""

    def build(seed: int, rows: int, width: int, dtype: torch.dtype = torch.float64) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        positions = torch.arange(width)
        ends = torch.randint(0, width + 1, (rows, 1), generator=generator)
        hints = torch.randint(0, width + 1, (rows, 1), generator=generator)
        kind = torch.randint(0, 4, (rows, 1), generator=generator)  # 0, 1 rollout; 2 demonstration; 3 hint, then own tokens
        inside = positions < ends
        is_hint = inside & (positions < hints) & (kind == 3)
        table = torch.tensor([0.0, 0.125, 0.5, 1.0], dtype=torch.float64)
        streams = {
            "log_probs": uniform(rows, width, low=0.01).log(),
            "old_log_probs": uniform(rows, width, low=0.01).log(),
            "ref_log_prob": uniform(rows, width, low=0.01).log(),
            "entropys": uniform(rows, width, high=3.0),
            "advantages": uniform(rows, width, low=-2.0, high=2.0),
            "uniforms": uniform(rows, width),
            "target_probs": uniform(rows, width, low=0.01),
            "rl_weight": table[torch.randint(0, 4, (rows,), generator=generator)],
            "sft_weight": table[torch.randint(0, 4, (rows,), generator=generator)],
        }
        return {
            **{name: value.to(dtype) for name, value in streams.items()},
            "response_mask": (inside & ~is_hint).long(),
            "prefix_mask": is_hint | (inside & (kind == 2)),
        }

    return build


@pytest.fixture(scope="session")
def loss_and_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    """loss_and_gradient(terms, batch, parts, ranks): global loss and its (B, T) gradient on `log_probs`.

    `parts` are the rows of each micro-batch (default: one). Part i belongs to rank i % ranks: counts are added over
    ranks, each loss is multiplied by the number of ranks and gradients are averaged, as under FSDP.
    """

    def run(terms: Sequence[Term], batch: Batch, parts: Sequence[Tensor] | None = None, ranks: int = 1) -> tuple[Tensor, Tensor]:
        leaf = batch["log_probs"].detach().clone().requires_grad_()
        batch = {**batch, "log_probs": leaf}
        parts = [torch.arange(len(leaf))] if parts is None else parts
        pieces = [{name: value[part] for name, value in batch.items()} for part in parts]
        counted = [count_members(terms, piece) for piece in pieces]
        counts = {
            key: type(first)(*(sum(piece[key][i] for piece in counted) for i in range(2))) for key, first in counted[0].items()
        }
        total, gradients = torch.zeros((), dtype=leaf.dtype), [torch.zeros_like(leaf) for _ in range(ranks)]
        for number, piece in enumerate(pieces):
            loss, _ = compute_loss(terms, piece, counts)
            total = total + loss.detach()
            gradients[number % ranks] += torch.autograd.grad(loss * ranks, leaf)[0]
        return total, sum(gradients) / ranks

    return run
