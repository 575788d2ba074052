"""Stabilisation masks of the estimator: which tokens keep their gradient (arXiv 2509.04419, 1_stable).

A stabiliser turns an advantage Â (B, T) and a surrogate u (B, T) into a token loss; `mask` says in closed form where the
gradient survives. All follow the sign convention "loss is minimised".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Stabiliser(Protocol):
    """How a token's loss is bounded; `mask` is 1_stable of the estimator."""

    def token_loss(self, advantage: Tensor, surrogate: Tensor) -> Tensor: ...

    def mask(self, advantage: Tensor, surrogate: Tensor) -> Tensor: ...

    def fractions(self, advantage: Tensor, surrogate: Tensor) -> dict[str, Tensor]: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class NoStabiliser:
    """1_stable = 1: loss = -Â·u."""

    def token_loss(self, advantage: Tensor, surrogate: Tensor) -> Tensor:
        return -advantage * surrogate

    def mask(self, advantage: Tensor, surrogate: Tensor) -> Tensor:
        return torch.ones_like(surrogate, dtype=torch.bool)

    def fractions(self, advantage: Tensor, surrogate: Tensor) -> dict[str, Tensor]:
        return {}

    def describe(self) -> str:
        return "1"


@dataclass(frozen=True)
class PPOClip:
    """Clipped surrogate of PPO (arXiv 1707.06347 eq. 7) with separate bounds (DAPO, arXiv 2503.14476 eq. 10).

    loss = max(-Â·r, -Â·clip(r, 1-low, 1+high)); with `dual` = c > 1 the loss of a negative advantage is bounded by -Â·c
    (dual clip, arXiv 1912.09729 eq. 5). Without it, as in PPO itself and in most released codes, that loss has no bound.

    Raises:
        ValueError: low outside [0, 1], high negative, or dual not above 1.
    """

    low: float
    high: float
    dual: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= 1:
            raise ValueError(f"actor_rollout_ref.actor.clip_ratio_low={self.low} must lie in [0, 1]")
        if not self.high >= 0:
            raise ValueError(f"actor_rollout_ref.actor.clip_ratio_high={self.high} must be >= 0")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"fusion.dual_clip={self.dual} must be > 1 (the bound c of dual clip), or null for none")

    def token_loss(self, advantage: Tensor, surrogate: Tensor) -> Tensor:
        unclipped = -advantage * surrogate
        clipped = -advantage * torch.clamp(surrogate, 1 - self.low, 1 + self.high)
        loss = torch.maximum(unclipped, clipped)
        if self.dual is None:
            return loss
        return torch.where(advantage < 0, torch.min(-advantage * self.dual, loss), loss)

    def mask(self, advantage: Tensor, surrogate: Tensor) -> Tensor:
        fractions = self.fractions(advantage, surrogate)
        return ~(fractions["clipfrac"] + fractions["clipfrac_lower"]).bool()

    def fractions(self, advantage: Tensor, surrogate: Tensor) -> dict[str, Tensor]:
        """Where the ratio's bounds (`clipfrac`) and the dual bound (`clipfrac_lower`) act, 0 or 1 per token."""
        clipped = ((advantage > 0) & (surrogate > 1 + self.high)) | ((advantage < 0) & (surrogate < 1 - self.low))
        lower = torch.zeros_like(clipped) if self.dual is None else (advantage < 0) & (surrogate > self.dual)
        return {"clipfrac": clipped.to(surrogate.dtype), "clipfrac_lower": lower.to(surrogate.dtype)}

    def describe(self) -> str:
        bounds = f"clip({1 - self.low:g}, {1 + self.high:g})"
        return bounds if self.dual is None else f"{bounds}, dual {self.dual:g}"
