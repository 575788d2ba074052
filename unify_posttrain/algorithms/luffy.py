"""LUFFY (arXiv 2504.14945 eq. 5-7): every group holds a demonstration, trained by policy gradient with a shaped likelihood.

    L = 1/Z [ Σ_on -Â r + Σ_demo -Â f(π_θ) ],    f(p) = p/(p+γ),    Â over the n-1 rollouts and the demonstration

Z counts all trained tokens of the mini-batch (`fusion.agg.rl=token-mean`) or is the constant length divisor of the headline
runs (`seq-mean-token-sum-norm`, default). The demonstration's behaviour probability is taken as 1. With `fusion.prefix` a row
may carry a part of the demonstration and continue from there. Deviation from the released code: no tokens are generated past a
demonstration's end; `off_policy_cliprange`, `off_policy_normalize` and `linear_variance`, which do nothing there, do not exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.advantages import BASELINES, Advantage
from unify_posttrain.experience.prefixes import PrefixSchedule
from unify_posttrain.experience.rules import DemonstrationInGroup, Experience
from unify_posttrain.objective import Members, Term


@dataclass(frozen=True)
class LUFFYSettings:
    """`fusion.luffy`: which rows the statistics of Â are of, and factors on Â of demonstration tokens and of sampled ones.

    `baseline` is `group` (demonstrations included) or `rollouts`."""

    baseline: str
    prefix_adv_weight: float
    on_adv_weight: float


@dataclass(frozen=True)
class PrefixSettings:
    """`fusion.prefix`: which rows carry how much of a demonstration (see `experience.prefixes`)."""

    n_prefix: int
    strategy: str
    min_ratio: float
    max_ratio: float
    steps: int
    linear_max_ratio: float
    share: bool


class LUFFY(Algorithm):
    """n-1 rollouts and a demonstration, or parts of one to continue from."""

    name = "luffy"
    paper = "arXiv 2504.14945"
    nodes: ClassVar[Mapping[str, type]] = {"luffy": LUFFYSettings, "prefix": PrefixSettings}
    luffy: LUFFYSettings
    prefix: PrefixSettings

    def check(self) -> None:
        if self.luffy.baseline not in BASELINES:
            raise ValueError(f"fusion.luffy.baseline={self.luffy.baseline!r}; choose one of {', '.join(BASELINES)}")
        super().check()
        if self.fusion.group_size < 2:
            raise ValueError(
                f"actor_rollout_ref.rollout.n={self.fusion.group_size}: a {self.name} group is rollouts and a demonstration, "
                "set it to 2 or more"
            )
        if self.fusion.shaping.name == "target_prob" and not self.prefixes.whole:
            raise ValueError(
                "fusion.shaping.name=target_prob needs whole demonstrations: fusion.prefix.min_ratio=max_ratio=1, random"
            )
        self.prefixes.ratios(row_id=0, global_step=1, group_size=self.fusion.group_size)  # n_prefix fits the group

    @property
    def prefixes(self) -> PrefixSchedule:
        prefix = self.prefix
        return PrefixSchedule(
            prefix.strategy, prefix.n_prefix, prefix.min_ratio, prefix.max_ratio, prefix.steps or 1,
            prefix.linear_max_ratio, prefix.share, self.fusion.seed,
        )  # fmt: skip

    @property
    def advantage(self) -> Advantage:
        return self.group_advantage(self.luffy.baseline)

    @property
    def terms(self) -> tuple[Term, ...]:
        everything = Members("trained", max_probability=self.fusion.shaping.all_maximum)
        return (
            self.on_policy_term(counted=everything, coefficient=self.luffy.on_adv_weight),
            self.off_policy_term(counted=everything, coefficient=self.luffy.prefix_adv_weight),
            *self.regularisers,
        )

    @property
    def experience(self) -> Experience:
        return DemonstrationInGroup(self.fusion.group_size, self.missing, self.prefixes)
