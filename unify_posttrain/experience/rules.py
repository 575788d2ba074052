"""Experience rules: how many rollouts a prompt gets and what a group is made of. One class per way of composing a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from unify_posttrain.experience.gate import GatePlan, GroupPlan, gate


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


class Experience(Protocol):
    """`rollouts` is asked before generation, `plan` after the rewards."""

    @property
    def needs_target(self) -> bool: ...

    def rollouts(self, has_demonstration: bool) -> int: ...

    def plan(self, groups: Sequence[Group]) -> GatePlan: ...


@dataclass(frozen=True)
class OnPolicy:
    """n rollouts per prompt, all trained; no demonstration."""

    group_size: int
    needs_target: bool = False

    def rollouts(self, has_demonstration: bool) -> int:
        return self.group_size

    def plan(self, groups: Sequence[Group]) -> GatePlan:
        return gate([group.successes for group in groups], self.group_size, "no", uids=[group.uid for group in groups])


@dataclass(frozen=True)
class Gated:
    """HPT: the gate decides per prompt. `options` are the keyword arguments of `gate` that do not depend on the batch."""

    group_size: int
    strategy: str
    options: dict[str, Any]

    @property
    def needs_target(self) -> bool:
        return self.strategy != "no"

    def rollouts(self, has_demonstration: bool) -> int:
        if self.strategy != "soft":
            return self.group_size
        if has_demonstration:
            return self.group_size - 1
        return self.group_size if self.options["missing"] == "rl" else 0

    def plan(self, groups: Sequence[Group]) -> GatePlan:
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
class Joined:
    """LUFFY: every group is n-1 rollouts and one demonstration; a prompt without one gets n rollouts, or none (`skip`)."""

    group_size: int
    missing: str = "rl"
    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        if has_demonstration:
            return self.group_size - 1
        return self.group_size if self.missing == "rl" else 0

    def plan(self, groups: Sequence[Group]) -> GatePlan:
        return GatePlan(
            tuple(
                GroupPlan(
                    uid=group.uid,
                    successes=group.successes,
                    rollouts=group.rollouts,
                    kept=group.rollouts,
                    demonstrations=int(group.has_demonstration),
                    on_weight=1.0 if group.rollouts else 0.0,
                    off_weight=float(group.has_demonstration),
                    sft_weight=0.0,
                )
                for group in groups
            )
        )


@dataclass(frozen=True)
class DemonstrationsOnly:
    """SFT: one demonstration per prompt, nothing is generated; a prompt without one contributes nothing."""

    needs_target: bool = True

    def rollouts(self, has_demonstration: bool) -> int:
        return 0

    def plan(self, groups: Sequence[Group]) -> GatePlan:
        return GatePlan(
            tuple(
                GroupPlan(group.uid, 0, 0, 0, int(group.has_demonstration), 0.0, 0.0, float(group.has_demonstration))
                for group in groups
            )
        )
