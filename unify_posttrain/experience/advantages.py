"""Advantages: what stands in the stream `advantages`, as small objects that are executed and printed.

An algorithm names one. The trainer applies it to the rows of a mixed batch after verl's own stage; an object whose `estimator` is
not ours (`Estimated`) leaves what verl computed. All are one number per row, spread over its trained tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.rows import DEMONSTRATION, ROLLOUT

BASELINES = ("group", "rollouts")
EPSILON = 1e-6  # added to the deviation, as in verl's GRPO
GROUPLESS = ("gae", "reinforce_plus_plus")  # estimators of verl that do not compare the rows of a prompt
DISCOUNTS = {"gae": ("algorithm.gamma", "algorithm.lam"), "reinforce_plus_plus": ("algorithm.gamma",)}  # what they read


@dataclass(frozen=True)
class ScoredRows:
    """Rows of a step as an advantage sees them, padding left out. B rows, T response tokens.

    Attributes:
        scores: (B,) R, with the penalties of the reward manager.
        uids: groups, B of them.
        kinds: (B,) of ROLLOUT, DEMONSTRATION.
        prefixed: (B,) bool, rollouts that begin with trained demonstration tokens: not of the policy alone.
        success: (B,) the value that is compared with `fusion.success_threshold`; default: the scores.
        mask: (B, T) bool, sampled tokens; only for advantages that read streams.
        old_log_probs, ref_log_prob: (B, T), the same.
        generated: uid -> scores of all rollouts that were generated, dropped ones included.
    """

    scores: Tensor
    uids: Sequence[str]
    kinds: np.ndarray
    prefixed: Tensor | None = None
    success: Tensor | None = None
    mask: Tensor | None = None
    old_log_probs: Tensor | None = None
    ref_log_prob: Tensor | None = None
    generated: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def groups(self) -> dict[str, list[int]]:
        """Row numbers by uid, both in order of appearance."""
        found: dict[str, list[int]] = {}
        for row, uid in enumerate(self.uids):
            found.setdefault(uid, []).append(row)
        return found


class Advantage(ABC):
    """What the stream `advantages` holds."""

    streams: tuple[str, ...] = ()  # (B, T) streams of sampled tokens that it reads
    settings: tuple[str, ...] = ()  # keys of the configuration that verl's estimator reads, the algorithm's own apart
    estimator: str | None = None  # the one of verl's estimators whose values stand; None: this object computes them
    compares: bool = True  # the rollouts of a prompt with each other, so there must be two

    @abstractmethod
    def __call__(self, rows: ScoredRows) -> Tensor | None:
        """(B,) values in the dtype of the scores; None: verl's estimator's stand."""

    @abstractmethod
    def describe(self, tokens: str = "trained") -> str:
        """The formula, for tokens of a class (`on`, `demo`, `trained`)."""

    def rewards(self, rows: ScoredRows) -> Tensor:
        """(B,) R as the objective means it: what the stream `scores` holds."""
        return rows.scores

    def metrics(self, rows: ScoredRows) -> Mapping[str, float]:
        """`fusion/*` of these rows."""
        return {}


@dataclass(frozen=True)
class Centred(Advantage):
    """R - mean R, divided by std R + 1e-6 if `by_std` (GRPO, arXiv 2402.03300; without: Dr. GRPO, arXiv 2503.20783).

    Attributes:
        over: `group`: statistics over all rows of the prompt, demonstrations included. Equal to verl's estimator `grpo` to the last
            bit: unbiased deviation, and a group of one has mean 0 and deviation 1. `rollouts`: over the rollouts that begin with no
            demonstration tokens, applied to all rows; a deviation of 0 counts as 1, fewer than two have mean 0 and deviation 1.
        by_std: `algorithm.norm_adv_by_std_in_grpo`.

    Raises:
        ValueError: unknown `over`.
    """

    over: str = "group"
    by_std: bool = False

    def __post_init__(self) -> None:
        if self.over not in BASELINES:
            raise ValueError(f"baseline={self.over!r} is unknown; choose one of {', '.join(BASELINES)}")

    def __call__(self, rows: ScoredRows) -> Tensor:
        values = rows.scores.clone()
        for members in rows.groups().values():
            chosen = members if self.over == "group" else [row for row in members if _is_plain_rollout(rows, row)]
            mean, deviation = self._statistics(rows.scores[chosen])
            centred = rows.scores[members] - mean
            values[members] = centred / (deviation + EPSILON) if self.by_std else centred
        return values

    def _statistics(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        if len(scores) < 2:
            return scores.new_tensor(0.0), scores.new_tensor(1.0)
        mean, deviation = scores.mean(), scores.std()
        return mean, deviation.new_tensor(1.0) if self.over == "rollouts" and not deviation else deviation

    def describe(self, tokens: str = "trained") -> str:
        which = "the group" if self.over == "group" else "its rollouts"
        return f"(R - mean over {which}) / std" if self.by_std else f"R - mean over {which}"


@dataclass(frozen=True)
class Reward(Advantage):
    """Â = R: the rule of a group of one."""

    compares = False

    def __call__(self, rows: ScoredRows) -> Tensor:
        return rows.scores.clone()

    def describe(self, tokens: str = "trained") -> str:
        return "R"


@dataclass(frozen=True)
class AgainstGenerated(Advantage):
    """R - mean over all that was generated for the prompt and the row itself: of a demonstration whose rollouts were dropped."""

    def __call__(self, rows: ScoredRows) -> Tensor:
        values = rows.scores.clone()
        for row, uid in enumerate(rows.uids):
            others = torch.as_tensor(np.asarray(rows.generated.get(uid, ()), dtype=np.float64), dtype=rows.scores.dtype)
            values[row] = rows.scores[row] - torch.cat([rows.scores[row : row + 1], others]).mean()
        return values

    def describe(self, tokens: str = "trained") -> str:
        return "R - mean over what was generated and itself"


@dataclass(frozen=True)
class Split(Advantage):
    """One advantage for rollouts, another for demonstrations."""

    rollouts: Advantage
    demonstrations: Advantage

    @property
    def compares(self) -> bool:  # type: ignore[override]
        return self.rollouts.compares

    def __call__(self, rows: ScoredRows) -> Tensor | None:
        mine, theirs = self.rollouts(rows), self.demonstrations(rows)
        if mine is None or theirs is None:
            raise ValueError("two advantages of one batch cannot both be verl's: one of them must be computed here")
        return torch.where(torch.from_numpy(rows.kinds == DEMONSTRATION), theirs, mine)

    def describe(self, tokens: str = "trained") -> str:
        mine, theirs = self.rollouts.describe(tokens), self.demonstrations.describe(tokens)
        return {"on": mine, "demo": theirs}.get(tokens, f"{mine}; demonstrations: {theirs}")


@dataclass(frozen=True)
class Estimated(Advantage):
    """Whatever verl's estimator of this name computes (`algorithm.adv_estimator`): `gae` from a critic's values, `rloo`, …"""

    name: str

    @property
    def estimator(self) -> str:  # type: ignore[override]
        return self.name

    @property
    def settings(self) -> tuple[str, ...]:  # type: ignore[override]
        return DISCOUNTS.get(self.name, ())

    @property
    def compares(self) -> bool:  # type: ignore[override]
        return self.name not in GROUPLESS

    def __call__(self, rows: ScoredRows) -> None:
        return None

    def describe(self, tokens: str = "trained") -> str:
        return "GAE of the critic's values" if self.name == "gae" else f"{self.name}, as verl computes it"


@dataclass(frozen=True)
class Unread(Advantage):
    """0: every term has an advantage of its own."""

    compares = False

    def __call__(self, rows: ScoredRows) -> Tensor:
        return torch.zeros_like(rows.scores)

    def describe(self, tokens: str = "trained") -> str:
        return "not read"


def row_advantages(advantage: Advantage, rows: ScoredRows, plan: BatchPlan, demonstration_terms: Set[str]) -> Tensor | None:
    """Advantages of a mixed batch: those of the object, and 0 for demonstrations that no policy-gradient term trains.

    Args:
        advantage: the algorithm's.
        rows: all rows but padding.
        plan: the batch plan.
        demonstration_terms: names of the terms that read Â on demonstration tokens.

    Returns:
        (B,), or None where verl's stand.
    """
    values = advantage(rows)
    if values is None or not (rows.kinds == DEMONSTRATION).any():
        return values
    read = {group.uid for group in plan if any(group.weight(term) for term in demonstration_terms)}
    unread = [kind == DEMONSTRATION and uid not in read for kind, uid in zip(rows.kinds, rows.uids, strict=True)]
    return torch.where(torch.tensor(unread), 0.0, values)


def _is_plain_rollout(rows: ScoredRows, row: int) -> bool:
    return rows.kinds[row] == ROLLOUT and not (rows.prefixed is not None and bool(rows.prefixed[row]))


__all__ = [
    "BASELINES",
    "Advantage",
    "AgainstGenerated",
    "Centred",
    "Estimated",
    "Reward",
    "ScoredRows",
    "Split",
    "Unread",
    "row_advantages",
]
