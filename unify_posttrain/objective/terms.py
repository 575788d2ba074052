"""Terms: what an algorithm's objective is a list of.

A `Term` says *which tokens* (a `Members` set), *what per-token loss* (`PolicyGradient`, `Entropy` or `KL`), *how it is
averaged* (an `Aggregation` and the member set that is counted) and with which coefficient. There is no other kind of loss
in this package; an algorithm is a tuple of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from unify_posttrain.objective.aggregation import Aggregation
from unify_posttrain.objective.references import Reference
from unify_posttrain.objective.stabilisers import NoStabiliser, Stabiliser
from unify_posttrain.objective.streams import TARGET_CLASSES, TOKEN_CLASSES, stream, token_class
from unify_posttrain.objective.weights import TokenWeight


@dataclass(frozen=True)
class Members:
    """A set of tokens: a token class, restricted to the rows whose weight (if a weight stream is named) is not zero, and to the
    tokens whose probability at the start of the step (`old_log_probs`) is at most `max_probability`, if that is given.

    Target tokens (`demo`, `hint`) are known by `prefix_mask`, and a batch that lacks it is an error: without it a demonstration
    would be trained as if the policy had sampled it. `may_be_absent` says that batches may hold none by design (UFT after its
    hints) and then come without the mask. It is no part of which set this is: neither of `key`, nor of equality.

    Raises:
        ValueError: unknown token class, or a bound outside (0, 1].
    """

    tokens: str
    row_weight: str | None = None
    max_probability: float | None = None
    may_be_absent: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if self.tokens not in TOKEN_CLASSES:
            raise ValueError(f"unknown token class {self.tokens!r}; choose one of {', '.join(TOKEN_CLASSES)}")
        if self.max_probability is not None and not 0 < self.max_probability <= 1:
            raise ValueError(f"fusion.shaping.all_maximum={self.max_probability} must lie in (0, 1], or be null")

    @property
    def key(self) -> str:
        """Name under which the set is counted."""
        bound = "" if self.max_probability is None else f"<={self.max_probability:g}"
        return self.tokens + ("" if self.row_weight is None else f"*{self.row_weight}") + bound

    @property
    def needs_prefix_mask(self) -> bool:
        return self.tokens in TARGET_CLASSES and not self.may_be_absent

    @property
    def streams(self) -> tuple[str, ...]:
        """What must be shipped besides the masks."""
        named = [self.row_weight] if self.row_weight else []
        return (*named, *(["old_log_probs"] if self.max_probability is not None else []))

    def weight(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """(B,) row weights, or None where every row weighs 1."""
        return None if self.row_weight is None else stream(tensors, self.row_weight, self)

    def mask(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(B, T) bool: the tokens of the set.

        Raises:
            KeyError: no `response_mask`, no `prefix_mask` though the set needs it, or no stream that the set reads.
        """
        if self.needs_prefix_mask:
            stream(tensors, "prefix_mask", self)
        mask = token_class(tensors, self.tokens)
        weight = self.weight(tensors)
        if weight is not None:
            mask = mask & (weight != 0).unsqueeze(-1)
        if self.max_probability is not None:
            mask = mask & (stream(tensors, "old_log_probs", self).exp() <= self.max_probability)
        return mask


class TokenLoss(Protocol):
    """Something with a value per token; (B, T)."""

    def token_loss(self, tensors: Mapping[str, Tensor]) -> Tensor: ...

    @property
    def streams(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class PolicyGradient:
    """-Â·u(log π_θ) under a stabiliser; its gradient is -1_stable·(π_θ/π_ref)·Â on ∇log π_θ (arXiv 2509.04419 eq. 5).

    `advantage` is the name of a (B, T) stream, or a constant (1 for maximum likelihood). `token_weight` multiplies it: a
    `TokenWeight`, the name of a (B, T) stream, or None.
    """

    reference: Reference
    advantage: str | float
    stabiliser: Stabiliser = field(default_factory=NoStabiliser)
    token_weight: TokenWeight | str | None = None

    def weight(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """(B, T) factor on the advantage, or None for 1."""
        if self.token_weight is None:
            return None
        return stream(tensors, self.token_weight, self) if isinstance(self.token_weight, str) else self.token_weight(tensors)

    def _advantage(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs = stream(tensors, "log_probs", self)
        if isinstance(self.advantage, str):
            value = stream(tensors, self.advantage, self)
        else:
            value = torch.full_like(log_probs, self.advantage, requires_grad=False)
        weight = self.weight(tensors)
        return value if weight is None else value * weight

    def token_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.stabiliser.token_loss(self._advantage(tensors), self.reference.surrogate(tensors))

    def stable(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """1_stable: (B, T) bool, false where the stabiliser takes the gradient away."""
        with torch.no_grad():
            return self.stabiliser.mask(self._advantage(tensors), self.reference.surrogate(tensors))

    def rho(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """ρ = 1_stable·(π_θ/π_ref)·Â: the coefficient on ∇log π_θ in closed form, (B, T), no graph."""
        with torch.no_grad():
            rho = self._advantage(tensors) * self.reference.ratio(tensors)
            return torch.where(self.stable(tensors), rho, 0.0)

    def statistics(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(B, T) quantities worth a mean: `ratio` = π_θ/π_ref, `kept` = 1_stable, `weight`, and what the stabiliser reports."""
        with torch.no_grad():
            advantage, surrogate, weight = self._advantage(tensors), self.reference.surrogate(tensors), self.weight(tensors)
            return {
                "weight": torch.ones_like(surrogate) if weight is None else weight,
                "ratio": self.reference.ratio(tensors),
                "kept": self.stabiliser.mask(advantage, surrogate).to(surrogate.dtype),
                **self.stabiliser.fractions(advantage, surrogate),
            }

    @property
    def streams(self) -> tuple[str, ...]:
        """Batch streams that must be shipped for this loss, besides masks and `log_probs`."""
        named = [self.advantage] if isinstance(self.advantage, str) else []
        if self.token_weight is not None:
            named += [self.token_weight] if isinstance(self.token_weight, str) else self.token_weight.streams
        return (*named, *self.reference.streams)


@dataclass(frozen=True)
class Entropy:
    """Token entropy H(π_θ(·|s_t)) in nats; give the term a negative coefficient for a bonus."""

    def describe(self) -> str:
        return "H"

    def token_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return stream(tensors, "entropys", self)

    @property
    def streams(self) -> tuple[str, ...]:
        return ()


KL_ESTIMATORS = ("k1", "k2", "k3")
_KL_ALIASES = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}  # verl's names


@dataclass(frozen=True)
class KL:
    """Per-token estimate of KL(π_θ‖π_reference) with d = lp - lp_ref: k1 = d, k2 = d²/2, k3 = e^-d + d - 1.

    Source: Schulman, "Approximating KL divergence" (2020). verl's names (kl, mse, low_var_kl) are accepted. As in verl, k3
    clamps d to ±20 and itself to ±10.

    Raises:
        ValueError: unknown estimator.
    """

    estimator: str = "k3"

    def __post_init__(self) -> None:
        canonical = _KL_ALIASES.get(self.estimator, self.estimator)
        if canonical not in KL_ESTIMATORS:
            known = ", ".join((*KL_ESTIMATORS, *_KL_ALIASES))
            raise ValueError(f"actor.kl_loss_type={self.estimator!r} is unknown; choose one of {known}")
        object.__setattr__(self, "estimator", canonical)

    def token_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs, reference = stream(tensors, "log_probs", self), stream(tensors, "ref_log_prob", self)
        if self.estimator == "k1":
            return log_probs - reference
        if self.estimator == "k2":
            return 0.5 * (log_probs - reference).square()
        difference = torch.clamp(reference - log_probs, min=-20, max=20)
        return torch.clamp(torch.exp(difference) - difference - 1, min=-10, max=10)

    def describe(self) -> str:
        return f"KL(π‖π_ref) by {self.estimator}"

    @property
    def streams(self) -> tuple[str, ...]:
        return ("ref_log_prob",)


@dataclass(frozen=True)
class Term:
    """One component of an objective: coefficient × aggregation of a token loss over its members.

    `counted` is the member set whose global size normalises the term; by default its own members. LUFFY's two terms both
    count all trained tokens, which makes their sum one mean over on- and off-policy tokens.
    """

    name: str
    loss: TokenLoss
    members: Members
    aggregation: Aggregation
    coefficient: float = 1.0
    counted: Members | None = None

    @property
    def normaliser(self) -> Members:
        return self.counted or self.members

    @property
    def streams(self) -> tuple[str, ...]:
        """Every stream that this term reads from the batch, besides masks and the model's own outputs."""
        return (*self.loss.streams, *self.members.streams, *self.normaliser.streams)

    def acts_on(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(B,) bool: the rows that can change the value of this term or its gradient. An advantage of 0 is a factor of all that a
        policy gradient does with a token; every other loss acts on all its members.

        Args:
            tensors: masks and the streams that the term reads; not the model's outputs.

        Raises:
            KeyError: see `Members.mask`; or no stream of the advantage.
        """
        members = self.members.mask(tensors)
        if isinstance(self.loss, PolicyGradient):
            advantage = self.loss.advantage
            members = members & ((stream(tensors, advantage, self) if isinstance(advantage, str) else members * advantage) != 0)
        return members.any(dim=-1)

    @property
    def needs_prefix_mask(self) -> bool:
        """Whether a batch without `prefix_mask` is an error."""
        return self.members.needs_prefix_mask or self.normaliser.needs_prefix_mask

    @property
    def needs_entropy(self) -> bool:
        weight = getattr(self.loss, "token_weight", None)
        return isinstance(self.loss, Entropy) or getattr(weight, "needs_entropy", False)
