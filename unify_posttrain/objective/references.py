"""Reference policies of the Unified Policy Gradient Estimator (arXiv 2509.04419, eq. 5): what π_θ is divided by.

A reference is a *surrogate* u(lp) of the current log-probability lp = log π_θ(y_t|·), chosen so that its derivative is the
likelihood-gradient coefficient of the estimator::

    du/dlp = π_θ / π_ref  (× f'(π_θ) for a shaped likelihood)

so that the token loss  -Â · u(lp)  has exactly the gradient  -Â · (π_θ/π_ref) · ∇log π_θ.  `ratio` returns that derivative
in closed form, for logging and for the tests that hold it against autograd.

All tensors are (B, T): B rows, T response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from unify_posttrain.objective.streams import stream

# verl bounds log r to this range before exponentiating, and bit-equality with verl needs it: outside of it the probabilities
# differ by more than e^20, and the ratio says nothing but "overflow". None of the released codes that we reproduce (UPT, LUFFY,
# ReLIFT, UFT) has the bound.
LOG_RATIO_BOUND = 20.0


class Reference(Protocol):
    """A reference policy: `surrogate` is differentiable, `ratio` is its derivative with respect to `log_probs`.

    `streams` names what it reads besides `log_probs`; the trainer computes these and ships them, and nothing else.
    """

    @property
    def streams(self) -> tuple[str, ...]: ...

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor: ...

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor: ...

    def describe(self) -> str: ...


@dataclass(frozen=True)
class OldPolicy:
    """π_ref = policy at the start of the step (`old_log_probs`): importance sampling of PPO/GRPO. u = r = π_θ/π_old."""

    streams: ClassVar[tuple[str, ...]] = ("old_log_probs",)

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_ratio = stream(tensors, "log_probs", self) - stream(tensors, "old_log_probs", self)
        return torch.exp(torch.clamp(log_ratio, min=-LOG_RATIO_BOUND, max=LOG_RATIO_BOUND))

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_ratio = (stream(tensors, "log_probs", self) - stream(tensors, "old_log_probs", self)).detach()
        return torch.where(log_ratio.abs() <= LOG_RATIO_BOUND, torch.exp(log_ratio), 0.0)

    def describe(self) -> str:
        return "π_old"


@dataclass(frozen=True)
class CurrentPolicy:
    """π_ref = π_θ itself: the maximum-likelihood gradient of SFT and the score function of REINFORCE. u = log π_θ."""

    streams: ClassVar[tuple[str, ...]] = ()

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return stream(tensors, "log_probs", self)

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.ones_like(stream(tensors, "log_probs", self))

    def describe(self) -> str:
        return "π_θ"


@dataclass(frozen=True)
class One:
    """π_ref = 1: the behaviour policy of a demonstration is taken as certain (LUFFY without shaping, DFT). u = π_θ."""

    streams: ClassVar[tuple[str, ...]] = ()

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(stream(tensors, "log_probs", self))

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(stream(tensors, "log_probs", self).detach())

    def describe(self) -> str:
        return "1"


SHAPES = ("p_div_p", "none", "square_root", "pow", "logp", "p_logp", "reject", "target_prob")


@dataclass(frozen=True)
class Shaped:
    """π_ref = 1 with a reshaped likelihood u = f(π_θ) (LUFFY policy shaping, arXiv 2504.14945 eq. 7).

    | name         | f(p)                      | df/dlp        | read |
    |--------------|---------------------------|---------------|------|
    | p_div_p      | p/(p+γ)                   | γp/(p+γ)²     | gamma |
    | none         | p                         | p             | |
    | square_root  | p^½                       | ½p^½          | |
    | pow          | p^e                       | e·p^e         | exponent |
    | logp         | w·lp                      | w             | weight |
    | p_logp       | w·lp + p                  | w + p         | weight |
    | reject       | p·sg(1[u ≥ 1-p]/p)        | 1[u ≥ 1-p]    | stream `uniforms` (B, T) in [0, 1) |
    | target_prob  | p/(q+1e-6)                | same          | stream `target_probs` (B, T) |

    `maximum`/`minimum` clamp f; the gradient is zero where a clamp is active.

    Raises:
        ValueError: unknown name, γ not positive, or minimum above maximum.
    """

    name: str = "p_div_p"
    gamma: float = 0.1
    weight: float = 0.1
    exponent: float = 0.5
    maximum: float | None = None
    minimum: float | None = None

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise ValueError(f"fusion.shaping.name={self.name!r} is unknown; choose one of {', '.join(SHAPES)}")
        if self.name == "p_div_p" and not self.gamma > 0:
            raise ValueError(f"fusion.shaping.gamma={self.gamma} must be > 0 for f(p) = p/(p+gamma)")
        if self.maximum is not None and self.minimum is not None and self.minimum > self.maximum:
            raise ValueError(f"fusion.shaping.minimum={self.minimum} is above fusion.shaping.maximum={self.maximum}")

    @property
    def streams(self) -> tuple[str, ...]:
        return {"reject": ("uniforms",), "target_prob": ("target_probs",)}.get(self.name, ())

    def _shape(self, tensors: Mapping[str, Tensor], log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """f(p) before clamping and its derivative with respect to lp, each (B, T)."""
        p = torch.exp(log_probs)
        if self.name == "p_div_p":
            # p/(p+γ) as a sigmoid: exact for p → 0, where the quotient form loses its gradient to rounding.
            f = torch.sigmoid(log_probs - math.log(self.gamma))
            return f, f * (1 - f)
        if self.name == "none":
            return p, p
        if self.name in ("square_root", "pow"):
            exponent = 0.5 if self.name == "square_root" else self.exponent
            f = torch.exp(exponent * log_probs)
            return f, exponent * f
        if self.name == "logp":
            return self.weight * log_probs, torch.full_like(log_probs, self.weight)
        if self.name == "p_logp":
            return self.weight * log_probs + p, self.weight + p
        if self.name == "reject":
            accepted = (stream(tensors, "uniforms", self) >= 1 - p.detach()).to(p.dtype)
            # sg(1[..]/p)·p in logs, so that a probability that underflows to zero gives 0·1 and not 0/0.
            return accepted * torch.exp(log_probs - log_probs.detach()), accepted
        q = stream(tensors, "target_probs", self) + 1e-6
        return p / q, p / q

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        f, _ = self._shape(tensors, stream(tensors, "log_probs", self))
        if self.maximum is None and self.minimum is None:
            return f
        return torch.clamp(f, min=self.minimum, max=self.maximum)

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        f, derivative = self._shape(tensors, stream(tensors, "log_probs", self).detach())
        active = torch.ones_like(f, dtype=torch.bool)
        if self.maximum is not None:
            active &= f <= self.maximum
        if self.minimum is not None:
            active &= f >= self.minimum
        return torch.where(active, derivative, 0.0)

    def describe(self) -> str:
        detail = {
            "p_div_p": f"π/(π+{self.gamma:g})",
            "none": "π",
            "square_root": "π^0.5",
            "pow": f"π^{self.exponent:g}",
            "logp": f"{self.weight:g}·log π",
            "p_logp": f"{self.weight:g}·log π + π",
            "reject": "1[u ≥ 1-π]",
            "target_prob": "π/π_teacher",
        }[self.name]
        return f"1, shaped f(π)={detail}"


RATIO_SHAPES = ("none", "p_div_p", "square_root", "pow", "logp", "p_logp")


@dataclass(frozen=True)
class ShapedRatio:
    """π_ref = π_old with a reshaped ratio u(r), r = π_θ/π_old (LUFFY's options for on-policy tokens).

    | name         | u                   | du/dlp            |
    |--------------|---------------------|-------------------|
    | p_div_p      | f(π_θ)/f(π_old), f(p) = p/(p+γ) | f(π_θ)(1-f(π_θ))/f(π_old) |
    | square_root  | r^½                 | ½r^½              |
    | pow          | r^e                 | e·r^e             |
    | logp         | log r               | 1                 |
    | p_logp       | r + w·log r         | r + w             |

    Raises:
        ValueError: unknown name, or γ not positive.
    """

    streams: ClassVar[tuple[str, ...]] = ("old_log_probs",)

    name: str
    gamma: float = 0.1
    weight: float = 0.1
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in RATIO_SHAPES[1:]:
            raise ValueError(f"fusion.shaping.on={self.name!r} is unknown; choose one of {', '.join(RATIO_SHAPES)}")
        if self.name == "p_div_p" and not self.gamma > 0:
            raise ValueError(f"fusion.shaping.gamma={self.gamma} must be > 0 for f(p) = p/(p+gamma)")

    def _shape(self, tensors: Mapping[str, Tensor], log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """u and du/dlp, each (B, T)."""
        old = stream(tensors, "old_log_probs", self)
        log_ratio = torch.clamp(log_probs - old, min=-LOG_RATIO_BOUND, max=LOG_RATIO_BOUND)
        if self.name == "p_div_p":
            f, f_old = (torch.sigmoid(value - math.log(self.gamma)) for value in (log_probs, old))
            return f / f_old, f * (1 - f) / f_old
        if self.name in ("square_root", "pow"):
            exponent = 0.5 if self.name == "square_root" else self.exponent
            u = torch.exp(exponent * log_ratio)
            return u, exponent * u
        if self.name == "logp":
            return log_ratio, torch.ones_like(log_ratio)
        ratio = torch.exp(log_ratio)
        return ratio + self.weight * log_ratio, ratio + self.weight

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self._shape(tensors, stream(tensors, "log_probs", self))[0]

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        log_probs = stream(tensors, "log_probs", self).detach()
        derivative = self._shape(tensors, log_probs)[1]
        if self.name == "p_div_p":  # not a function of the bounded ratio
            return derivative
        bounded = (log_probs - stream(tensors, "old_log_probs", self)).abs() > LOG_RATIO_BOUND
        return torch.where(bounded, 0.0, derivative)

    def describe(self) -> str:
        detail = {
            "p_div_p": f"f(π)/f(π_old), f(p)=p/(p+{self.gamma:g})",
            "square_root": "r^0.5",
            "pow": f"r^{self.exponent:g}",
            "logp": "log r",
            "p_logp": f"r + {self.weight:g}·log r",
        }[self.name]
        return f"π_old, shaped {detail}"
