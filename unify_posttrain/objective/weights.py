"""Token weights: factors on a term's advantage that depend on what the model thinks of the token.

They carry no gradient (sg of the papers): a weight is part of the estimator's Â. All are (B, T); B rows, T response tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unify_posttrain.objective.streams import stream, token_class

ENTROPY_SCOPES = ("sequence", "token", "batch")


class TokenWeight(Protocol):
    """A (B, T) factor without gradient; `streams` and `needs_entropy` say what it reads."""

    @property
    def streams(self) -> tuple[str, ...]: ...

    @property
    def needs_entropy(self) -> bool: ...

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor: ...

    def describe(self) -> str: ...


class _OfProbability:
    """What weights of the probability alone have in common."""

    streams: tuple[str, ...] = ()
    needs_entropy = False


@dataclass(frozen=True)
class Probability(_OfProbability):
    """sg(π_θ): DFT (arXiv 2508.05629 eq. 9), the likelihood gradient without its 1/π."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return stream(tensors, "log_probs", self).detach().exp()

    def describe(self) -> str:
        return "π"


@dataclass(frozen=True)
class Uncertainty(_OfProbability):
    """φ = sg(π_θ(1-π_θ)): CHORD (arXiv 2508.11408 eq. 6), silent where the model is sure, whichever way."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        p = stream(tensors, "log_probs", self).detach().exp()
        return p * (1 - p)

    def describe(self) -> str:
        return "π(1-π)"


@dataclass(frozen=True)
class AboveFloor(_OfProbability):
    """1[π_θ >= floor]: takes tokens out of a term that is unbounded as π → 0.

    Raises:
        ValueError: floor outside [0, 1).
    """

    floor: float

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"fusion.srft.neg_prob_floor={self.floor} must lie in [0, 1)")

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs = stream(tensors, "log_probs", self).detach()
        return (log_probs.exp() >= self.floor).to(log_probs.dtype)

    def describe(self) -> str:
        return f"1[π ≥ {self.floor:g}]"


@dataclass(frozen=True)
class ExpEntropy:
    """coefficient · sg(exp(sign · H)), at most `cap` (SRFT, arXiv 2506.19767 eq. 6 and 9).

    H is the policy's entropy in nats: of the row (`sequence`: mean over its trained tokens), of the token (`token`), or of the
    mini-batch at the start of the step (`batch`: stream `batch_entropy` (B,), the same number in every row).

    Raises:
        ValueError: unknown scope, or a cap that is not positive.
    """

    coefficient: float
    sign: int
    scope: str = "sequence"
    cap: float | None = None

    def __post_init__(self) -> None:
        if self.scope not in ENTROPY_SCOPES:
            raise ValueError(f"fusion.srft.entropy_scope={self.scope!r}; choose one of {', '.join(ENTROPY_SCOPES)}")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"fusion.srft.weight_cap={self.cap} must be > 0, or null for no cap")

    @property
    def streams(self) -> tuple[str, ...]:
        return ("batch_entropy",) if self.scope == "batch" else ()

    @property
    def needs_entropy(self) -> bool:
        return self.scope != "batch"

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs = stream(tensors, "log_probs", self)
        if self.scope == "batch":
            entropy = stream(tensors, "batch_entropy", self).unsqueeze(-1).to(log_probs.dtype)
        else:
            entropy = stream(tensors, "entropys", self).detach()
        if self.scope == "sequence":
            trained = token_class(tensors, "trained")
            total = torch.where(trained, entropy, 0.0).sum(dim=-1, keepdim=True)
            entropy = total / trained.sum(dim=-1, keepdim=True).clamp(min=1)
        weight = self.coefficient * torch.exp(self.sign * entropy)
        return (weight if self.cap is None else weight.clamp(max=self.cap)).expand_as(log_probs)

    def describe(self) -> str:
        sign = "" if self.sign > 0 else "-"
        return f"{self.coefficient:g}·e^{sign}H" + ("" if self.cap is None else f" ≤ {self.cap:g}")


@dataclass(frozen=True)
class TopEntropy:
    """1 on the share of a row's demonstration tokens where the policy's entropy is highest, 0 on the others (Prefix-RFT's
    entropy-based clipping, arXiv 2507.01679). At least one token of a row that has any; the earlier one of equals.

    Raises:
        ValueError: share outside (0, 1].
    """

    share: float
    streams: tuple[str, ...] = ()
    needs_entropy: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"fusion.prefix_rft.entropy_top={self.share} must lie in (0, 1], or be null for all tokens")

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        entropy, demo = stream(tensors, "entropys", self).detach(), token_class(tensors, "demo")
        kept = torch.ceil(self.share * demo.sum(dim=-1, keepdim=True).double() - 1e-9)  # 0.3 · 50 is 15.000000000000002
        order = torch.where(demo, -entropy, torch.inf).argsort(dim=-1, stable=True)
        rank = torch.empty_like(order).scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
        return (demo & (rank < kept)).to(entropy.dtype)

    def describe(self) -> str:
        return f"top {self.share:.0%} by H"
