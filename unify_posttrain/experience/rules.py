"""Experience rules: how many rollouts a prompt gets, what they begin with, and what a group is made of.

One class per way of composing a group. The trainer asks `response_prefixes` before generation and `plan` after the rewards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from unify_posttrain.experience.gate import gate, gate_bounds
from unify_posttrain.experience.groups import NO_PREFIX, Group, Prompt, ResponsePrefix
from unify_posttrain.experience.hints import HintSchedule, cut_points, fit_hint
from unify_posttrain.experience.plan import BatchPlan, GroupPlan
from unify_posttrain.experience.prefixes import PrefixSchedule


class Experience(ABC):
    """A rule. `needs_target` and `needs_hint` name the data columns that it cannot do without."""

    needs_target: bool = False
    needs_hint: ClassVar[bool] = False
    max_new_tokens: int | None = None  # that a rollout may sample after its prefix; None: what the response's width leaves

    @abstractmethod
    def rollouts(self, has_demonstration: bool) -> int:
        """The most rollouts that a prompt can get."""

    @property
    @abstractmethod
    def most_rows(self) -> int:
        """The most rows that a prompt can contribute to a training step: what a batch must have room for."""

    @abstractmethod
    def describe(self) -> str:
        """The rows of a prompt, in words."""

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        """One per rollout of the prompt at a training step (1-based)."""
        return (NO_PREFIX,) * self.rollouts(prompt.target is not None)

    @abstractmethod
    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        """Which rows are trained, and with which coefficients."""


@dataclass(frozen=True)
class RolloutsOnly(Experience):
    """n rollouts per prompt, all trained; no demonstration joins the batch (`needs_target`: it is kept for a replay buffer)."""

    group_size: int
    needs_target: bool = False

    def rollouts(self, has_demonstration: bool) -> int:
        return self.group_size

    @property
    def most_rows(self) -> int:
        return self.group_size

    def describe(self) -> str:
        return f"{self.group_size} rollouts"

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        return gate([group.successes for group in groups], self.group_size, "no", uids=[group.uid for group in groups])


@dataclass(frozen=True)
class RolloutsAfterHint(RolloutsOnly):
    """UFT: n rollouts per prompt, all after the same hint.

    Attributes:
        schedule: how much of the solution is given away.
        room: tokens that a hint may take.
        joiner: text between two sentences.
        max_new_tokens: see `Experience`.
    """

    needs_hint: ClassVar[bool] = True
    schedule: HintSchedule | None = None
    room: int = 0
    joiner: str = ""
    max_new_tokens: int | None = None

    def describe(self) -> str:
        return f"{self.group_size} rollouts, all after the same hint of at most {self.room} tokens"

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        schedule, encode, total = self.schedule, prompt.encode, len(prompt.sentences)
        if schedule is None or encode is None or not total:
            return (NO_PREFIX,) * self.group_size

        def tokens(number: int) -> list[int]:
            return encode(self.joiner.join(prompt.sentences[:number])) if number else []

        bucket, cuts = schedule.bucket(prompt.row_id, step, total), cut_points(total, schedule.buckets)
        ids, moved = fit_hint(bucket, cuts, tokens, self.room)
        # The same for all rows: rollouts of a group are compared with each other, so they must start alike.
        prefix = ResponsePrefix(tuple(ids), trained=False, share=cuts[bucket - moved] / total, shortened=bool(moved))
        return (prefix,) * self.group_size


@dataclass(frozen=True)
class DemonstrationIfUnsolved(Experience):
    """HPT: the gate decides per prompt. `options` are the keyword arguments of `gate` that do not depend on the batch."""

    group_size: int
    strategy: str
    options: dict[str, Any]

    @property
    def needs_target(self) -> bool:  # type: ignore[override]
        return self.strategy != "no"

    def rollouts(self, has_demonstration: bool) -> int:
        if self.strategy != "soft":
            return self.group_size
        if has_demonstration:
            return self.group_size - 1
        return self.group_size if self.options["missing"] == "rl" else 0

    @property
    def most_rows(self) -> int:
        return self.group_size

    def describe(self) -> str:
        n = self.group_size
        if self.strategy == "no":
            return f"{n} rollouts"
        if self.strategy == "soft":
            return f"{n - 1} rollouts and a demonstration, weighted by the number of solved rollouts"
        low, high = gate_bounds(n, **{key: self.options[key] for key in ("switch_gate", "switch_gate_off", "gate_rate")})
        zones = [f"up to {low} of {n} rollouts are solved: a demonstration by likelihood"] if low >= 0 else []
        if high > low:
            zones.append(f"up to {high}: a demonstration by the off-policy term")
        if high < n:
            zones.append(f"{'otherwise' if zones else 'always'}: the {n} rollouts")
        return "; ".join(zones)

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        return gate(
            [group.successes for group in groups],
            self.group_size,
            self.strategy,
            has_demonstration=[group.has_demonstration for group in groups],
            demonstration_solved=[group.demonstration_solved for group in groups],
            uids=[group.uid for group in groups],
            **self.options,
        )


@dataclass(frozen=True)
class DemonstrationInGroup(Experience):
    """LUFFY: every group holds demonstrations beside its rollouts; a prompt without a target gets n rollouts, or none (`skip`).

    Attributes:
        group_size: n rows per group, demonstrations included.
        missing: `rl` or `skip`.
        prefixes: which rows carry how much of the demonstration; None: one row, all of it. A row with a part of it is a
            rollout that continues from there, a row with none is a plain rollout.
        rollout_terms, demonstration_terms: the terms that train the one and the other, for the plan's record and its weights.
    """

    group_size: int
    missing: str = "rl"
    prefixes: PrefixSchedule | None = None
    rollout_terms: tuple[str, ...] = ("rl",)
    demonstration_terms: tuple[str, ...] = ("off",)
    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        if not has_demonstration:
            return self.group_size if self.missing == "rl" else 0
        if self.prefixes is None:
            return self.group_size - 1
        return self.group_size - self.prefixes.carriers(self.group_size) if self.prefixes.whole else self.group_size

    @property
    def most_rows(self) -> int:
        return self.group_size

    def describe(self) -> str:
        n = self.group_size
        if self.prefixes is not None and not self.prefixes.whole:
            return f"{n} rows, {self.prefixes.carriers(n)} of which begin with {self.prefixes.describe()} of the demonstration"
        carriers = 1 if self.prefixes is None else self.prefixes.carriers(n)
        demonstrations = "a demonstration" if carriers == 1 else f"{carriers} demonstrations"
        return f"{n - carriers} rollouts and {demonstrations} in the group" if carriers < n else demonstrations

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        if prompt.target is None or self.prefixes is None:
            return super().response_prefixes(prompt, step)
        length = len(prompt.target)
        lengths = self.prefixes.prefix_lengths(prompt.row_id, step, self.group_size, length)
        parts = [ResponsePrefix(prompt.target[:part], trained=True, share=part / length) for part in lengths if 0 < part < length]
        plain = self.group_size - sum(part > 0 for part in lengths)
        return (*parts, *(NO_PREFIX,) * plain)

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        plans = []
        for group in groups:
            demonstrations = self.group_size - group.rollouts if group.has_demonstration else 0
            terms = (*(self.rollout_terms if group.rollouts else ()), *(self.demonstration_terms if demonstrations else ()))
            weights = dict.fromkeys(terms, 1.0)
            plans.append(GroupPlan(group.uid, group.successes, group.rollouts, group.rollouts, demonstrations, weights))
        return BatchPlan(tuple(plans))


@dataclass(frozen=True)
class DemonstrationBesideGroup(Experience):
    """CHORD: n rollouts of a prompt are trained by reinforcement, its demonstration by likelihood, neither looks at the other.

    Attributes:
        group_size: rollouts per prompt.
        expert_share: None: every prompt has both. A number: that share of the *rows* is expert data in expectation. Prompts are
            drawn from (seed, step, row_id) to be a demonstration only, the others are rollouts only: with a share e of rows and n
            rollouts per other prompt, a prompt is expert data with probability e·n / (1 - e + e·n).
        seed: of the draw.
        missing: `rl` or `skip`: whether a prompt without a target gets rollouts.
        weights: coefficients by term of a prompt, e.g. ``lambda group: {"sft": 1 - group.successes / group.rollouts}``; 1 for
            the terms `rl` of rollouts and `sft` of the demonstration where it names none. Called for prompts that have both.
    """

    group_size: int
    expert_share: float | None = None
    seed: int = 0
    missing: str = "rl"
    weights: Callable[[Group], Mapping[str, float]] | None = field(default=None, compare=False)  # functions have no equality
    needs_target: bool = True

    @property
    def expert_probability(self) -> float:
        """Of a prompt with a target to be a demonstration only."""
        share, n = self.expert_share or 0.0, self.group_size
        return share * n / (1 - share + share * n)

    def rollouts(self, has_demonstration: bool) -> int:
        return self.group_size if has_demonstration or self.missing == "rl" else 0

    @property
    def most_rows(self) -> int:
        return self.group_size + (self.expert_share is None)

    def describe(self) -> str:
        if self.expert_share is None:
            return f"{self.group_size} rollouts, and a demonstration beside them"
        return (
            f"{self.group_size} rollouts, or a demonstration alone: {self.expert_share:g} of the rows, "
            f"{self.expert_probability:.3g} of the prompts"
        )

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        probability = 0.0 if self.expert_share is None or prompt.target is None else self.expert_probability
        if np.random.default_rng([self.seed, step, prompt.row_id]).random() < probability:
            return ()
        return super().response_prefixes(prompt, step)

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        plans = []
        for group in groups:
            demo = group.has_demonstration and (self.expert_share is None or not group.rollouts)
            weights = {**({"rl": 1.0} if group.rollouts else {}), **({"sft": 1.0} if demo else {})}
            if self.weights is not None and demo and group.rollouts:
                weights |= self.weights(group)
            plans.append(GroupPlan(group.uid, group.successes, group.rollouts, group.rollouts, int(demo), weights))
        return BatchPlan(tuple(plans))


@dataclass(frozen=True)
class DemonstrationsOnly(Experience):
    """SFT: one demonstration per prompt, nothing is generated; a prompt without one contributes nothing."""

    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        return 0

    @property
    def most_rows(self) -> int:
        return 1

    def describe(self) -> str:
        return "a demonstration; nothing is generated"

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        return BatchPlan(
            tuple(
                GroupPlan(group.uid, 0, 0, 0, int(group.has_demonstration), {"sft": 1.0} if group.has_demonstration else {})
                for group in groups
            )
        )
