"""A loss of whole sequences, placed on one token of each, so that it is summed and counted like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unify_posttrain.objective.streams import stream, token_class

LENGTH_NORMS = ("none", "consistent", "published")
SMALLEST = 1e-8  # |log π(y)| below which the pseudo-loss does not divide


@dataclass(frozen=True)
class PseudoLikelihood:
    """The published loss of Online SFT, kept for parity; the analytic form needs no loss of its own.

        w = (R - β·k1) / l,    loss = -(w·s + ½·sg(w)·s²),    k1 = l - l_ref,    s = l = Σ_t log π_θ(y_t)

    w carries a gradient. Then d loss/dl = -(R - β·k1 - β): the policy gradient of R - β·k1 with baseline β, whose expectation
    is unchanged. `length_norm` = consistent divides l and k1 by the response length in both places; `published` divides s
    alone, which leaves the reward about a hundredth of the gradient. `clip_weight` bounds |w|, which is made of the l that is
    not bounded; `clip_log_prob` then bounds s from below, after its division. Where they act they reverse or erase the gradient
    of the reward. The last three exist to reproduce what was published, in the order of the released code.

    The value stands on the first sampled token of a row, 0 elsewhere; use it with seq-mean-token-sum. Reads the streams `scores`
    (B,) = R and `ref_log_prob` (B, T).

    Raises:
        ValueError: unknown `length_norm`.
    """

    beta: float
    length_norm: str = "none"
    clip_weight: float | None = None
    clip_log_prob: float | None = None

    def __post_init__(self) -> None:
        if self.length_norm not in LENGTH_NORMS:
            raise ValueError(f"fusion.online_sft.length_norm={self.length_norm!r}; choose one of {', '.join(LENGTH_NORMS)}")

    @property
    def streams(self) -> tuple[str, ...]:
        return ("scores", "ref_log_prob")

    def token_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs = stream(tensors, "log_probs", self)
        sampled = token_class(tensors, "on")
        length = sampled.sum(dim=-1).clamp(min=1)
        raw = torch.where(sampled, log_probs, 0.0).sum(dim=-1)  # (B,) = l
        reference = torch.where(sampled, stream(tensors, "ref_log_prob", self), 0.0).sum(dim=-1)
        k1 = raw - reference
        if self.length_norm == "consistent":
            raw, k1 = raw / length, k1 / length
        sign = torch.where(raw < 0, -1.0, 1.0).to(raw.dtype)
        weight = (stream(tensors, "scores", self).to(raw.dtype) - self.beta * k1) / (sign * raw.abs().clamp(min=SMALLEST))
        if self.clip_weight is not None:
            weight = weight.clamp(-self.clip_weight, self.clip_weight)
        s = raw / length if self.length_norm == "published" else raw
        if self.clip_log_prob is not None:
            s = s.clamp(min=self.clip_log_prob)
        value = -(weight * s + 0.5 * weight.detach() * s.square())
        first = sampled & (sampled.cumsum(dim=-1) == 1)
        return torch.where(first, value.unsqueeze(-1), 0.0)

    def describe(self) -> str:
        """What stands in for the advantage, for a printed table: R - β·k1 with its baseline β, and what was published with it."""
        text = f"R - {self.beta:g}·k1 - {self.beta:g}" if self.beta else "R"
        notes = {
            "per token": self.length_norm == "consistent",
            "s = l/|y|": self.length_norm == "published",
            f"|w| ≤ {self.clip_weight or 0:g}": self.clip_weight is not None,
            f"s ≥ {self.clip_log_prob or 0:g}": self.clip_log_prob is not None,
        }
        return ", ".join((text, *(note for note, applies in notes.items() if applies)))
