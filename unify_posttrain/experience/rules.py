"""Experience rules: how many rollouts a prompt gets, what they begin with, and what a group is made of.

One class per way of composing a group. The trainer asks `response_prefixes` before generation and `plan` after the rewards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from unify_posttrain.experience.gate import BatchPlan, GroupPlan, gate
from unify_posttrain.experience.hints import HintSchedule, cut_points, fit_hint
from unify_posttrain.experience.prefixes import PrefixSchedule


@dataclass(frozen=True)
class Group:
    """What is known of a prompt when its rows are decided.

    Attributes:
        uid: the group.
        successes: solved rollouts.
        rollouts: generated rollouts.
        has_demonstration: a usable target exists.
        demonstration_solved: that target passes the task's own check.
    """

    uid: str
    successes: int
    rollouts: int
    has_demonstration: bool = False
    demonstration_solved: bool = False


@dataclass(frozen=True)
class Prompt:
    """What is known of a prompt before generation.

    Attributes:
        row_id: position of the prompt in the training files.
        target: tokens of its demonstration, EOS included; None without a usable one.
        sentences: its `hint` column.
        encode: text -> token ids without special tokens, for hints.
    """

    row_id: int
    target: tuple[int, ...] | None = None
    sentences: tuple[str, ...] = ()
    encode: Callable[[str], list[int]] | None = None


@dataclass(frozen=True)
class ResponsePrefix:
    """Tokens that a rollout begins with; the policy continues after them.

    Attributes:
        ids: token ids, may be empty.
        trained: True: off-policy tokens of the objective (m=1, P=1); False: a hint (m=0, P=1).
        share: part of the solution that is given away, 0 to 1.
        shortened: a longer one was drawn and did not fit.
    """

    ids: tuple[int, ...] = ()
    trained: bool = False
    share: float = 0.0
    shortened: bool = False


NO_PREFIX = ResponsePrefix()


class Experience(ABC):
    """A rule. `needs_target` and `needs_hint` name the data columns that it cannot do without."""

    needs_target: bool = False
    needs_hint: ClassVar[bool] = False

    @abstractmethod
    def rollouts(self, has_demonstration: bool) -> int:
        """The most rollouts that a prompt can get."""

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        """One per rollout of the prompt at a training step (1-based)."""
        return (NO_PREFIX,) * self.rollouts(prompt.target is not None)

    @abstractmethod
    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        """Which rows are trained."""


@dataclass(frozen=True)
class RolloutsOnly(Experience):
    """n rollouts per prompt, all trained; no demonstration joins the batch (`needs_target`: it is kept for a replay buffer)."""

    group_size: int
    needs_target: bool = False

    def rollouts(self, has_demonstration: bool) -> int:
        return self.group_size

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        return gate([group.successes for group in groups], self.group_size, "no", uids=[group.uid for group in groups])


@dataclass(frozen=True)
class RolloutsAfterHint(RolloutsOnly):
    """UFT: n rollouts per prompt, all after the same hint.

    Attributes:
        schedule: how much of the solution is given away.
        room: tokens that a hint may take.
        joiner: text between two sentences.
    """

    needs_hint: ClassVar[bool] = True
    schedule: HintSchedule | None = None
    room: int = 0
    joiner: str = ""

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        schedule, encode, total = self.schedule, prompt.encode, len(prompt.sentences)
        if schedule is None or encode is None or not total:
            return (NO_PREFIX,) * self.group_size

        def tokens(number: int) -> list[int]:
            return encode(self.joiner.join(prompt.sentences[:number])) if number else []

        bucket, cuts = schedule.bucket(prompt.row_id, step, total), cut_points(total, schedule.buckets)
        ids, moved = fit_hint(bucket, cuts, tokens, self.room)
        # One response prefix for all rows: rollouts of a group are compared with each other, so they must start alike.
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
        off_weight, sft_weight: of a demonstration, for terms that are weighted by row.
    """

    group_size: int
    missing: str = "rl"
    prefixes: PrefixSchedule | None = None
    off_weight: float = 1.0
    sft_weight: float = 0.0
    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        if not has_demonstration:
            return self.group_size if self.missing == "rl" else 0
        if self.prefixes is None:
            return self.group_size - 1
        whole = self.prefixes.min_ratio == self.prefixes.max_ratio == 1 and self.prefixes.strategy in ("random", "fixed")
        carriers = self.group_size if self.prefixes.n_prefix == -1 else self.prefixes.n_prefix
        return self.group_size - carriers if whole else self.group_size

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
            on, demo = float(bool(group.rollouts)), float(bool(demonstrations))
            plans.append(
                GroupPlan(
                    uid=group.uid,
                    successes=group.successes,
                    rollouts=group.rollouts,
                    kept=group.rollouts,
                    demonstrations=demonstrations,
                    on_weight=on,
                    off_weight=demo * self.off_weight,
                    sft_weight=demo * self.sft_weight,
                )
            )
        return BatchPlan(tuple(plans))


@dataclass(frozen=True)
class DemonstrationBesideGroup(Experience):
    """CHORD: n rollouts of a prompt are trained by reinforcement, its demonstration by likelihood, neither looks at the other.

    Attributes:
        group_size: rollouts per prompt.
        expert_share: None: every prompt has both. A number: that share of the prompts, drawn from (seed, step, row_id), is
            expert data (demonstration only, nothing is generated), the others are rollouts only.
        seed: of the draw.
        missing: `rl` or `skip`: whether a prompt without a target gets rollouts.
    """

    group_size: int
    expert_share: float | None = None
    seed: int = 0
    missing: str = "rl"
    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        return self.group_size if has_demonstration or self.missing == "rl" else 0

    def response_prefixes(self, prompt: Prompt, step: int) -> tuple[ResponsePrefix, ...]:
        share = 0.0 if self.expert_share is None or prompt.target is None else self.expert_share
        if np.random.default_rng([self.seed, step, prompt.row_id]).random() < share:
            return ()
        return super().response_prefixes(prompt, step)

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        plans = []
        for group in groups:
            demo = group.has_demonstration and (self.expert_share is None or not group.rollouts)
            on = float(bool(group.rollouts))
            plans.append(GroupPlan(group.uid, group.successes, group.rollouts, group.rollouts, int(demo), on, 0.0, float(demo)))
        return BatchPlan(tuple(plans))


@dataclass(frozen=True)
class DemonstrationsOnly(Experience):
    """SFT: one demonstration per prompt, nothing is generated; a prompt without one contributes nothing."""

    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        return 0

    def plan(self, groups: Sequence[Group]) -> BatchPlan:
        return BatchPlan(
            tuple(
                GroupPlan(group.uid, 0, 0, 0, int(group.has_demonstration), 0.0, 0.0, float(group.has_demonstration))
                for group in groups
            )
        )
