"""From token losses to one number, normalised by counts over the whole mini-batch: all micro-batches, all ranks.

With S_i = sum of a row's member losses, n_i its members, N_tok and N_seq the *global* counts of member tokens and of rows
that have at least one:

=========================  =======================  ==========================================================
mode                       value                    published use
=========================  =======================  ==========================================================
token-mean                 Σ S_i / N_tok            DAPO; LUFFY's 1/Z
seq-mean-token-mean        Σ (S_i/n_i) / N_seq      GRPO's 1/|o_i|
seq-mean-token-sum         Σ S_i / N_seq            Online SFT
seq-mean-token-sum-norm    Σ S_i / (N_seq·L_max)    Dr. GRPO (arXiv 2503.20783)
sum-norm                   Σ S_i / (L_max·K)        released LUFFY/HPT/ReLIFT code (a constant divisor)
=========================  =======================  ==========================================================

L_max is `horizon`, the configured response length and never the padded width, so padding changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum-norm")


class Count(NamedTuple):
    """Global size of a member set: tokens N_tok and rows N_seq, each a number or a 0-dim tensor."""

    tokens: Tensor | float
    rows: Tensor | float


@dataclass(frozen=True)
class Aggregation:
    """A named aggregation; `horizon` = L_max in tokens (the two `-norm` modes), `divisor` = K (sum-norm).

    Raises:
        ValueError: unknown mode, or a `-norm` mode without a positive horizon.
    """

    mode: str
    horizon: int | None = None
    divisor: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"fusion.agg: {self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        if self.mode.endswith("-norm") and not (self.horizon and self.horizon > 0):
            raise ValueError(f"fusion.agg: {self.mode!r} divides by the horizon; set data.max_response_length > 0")
        if not self.divisor > 0:
            raise ValueError(f"fusion.sum_norm_divisor={self.divisor} must be > 0")

    def __call__(
        self, loss: Tensor, members: Tensor, row_weight: Tensor | None, count: Count, counted: Tensor | None = None
    ) -> Tensor:
        """This batch's additive share of the global value.

        Args:
            loss: (B, T) token losses; whatever stands outside `members` is ignored, NaN included.
            members: (B, T) bool.
            row_weight: (B,) or None; multiplies numerators only.
            count: global size of the normaliser.
            counted: (B, T) bool, the normaliser's own tokens where they are not the members (n_i of a row); default: members.

        Returns:
            0-dim tensor. Summed over micro-batches and ranks it is the value of the table; 0 (connected to the graph) when
            nothing is a member.
        """
        loss = torch.where(members, loss, 0.0)
        if row_weight is not None:
            loss = loss * row_weight.unsqueeze(-1)
        if self.mode == "token-mean":
            return loss.sum() / at_least_one(count.tokens)
        row_sums = loss.sum(dim=-1)  # (B,) = S_i
        if self.mode == "seq-mean-token-mean":
            row_sums = row_sums / (members if counted is None else counted).sum(dim=-1).clamp(min=1)
        total = row_sums.sum()
        if self.mode == "sum-norm":
            return total / (self.horizon * self.divisor)  # type: ignore[operator]
        mean = total / at_least_one(count.rows)
        return mean / self.horizon if self.mode == "seq-mean-token-sum-norm" and self.horizon else mean


def at_least_one(count: Tensor | float) -> Tensor | float:
    """An empty set has an empty sum; dividing it by 1 keeps it 0 instead of NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
