"""UFT (arXiv 2505.16984 eq. 4): rollouts start from a part of a worked solution, whose likelihood is trained beside them.

    J = E[ GRPO surrogate on the policy's own tokens - β KL + β Σ_hint log π_θ ]

The hint is drawn from (seed, step, prompt) and is the same for all rollouts of a prompt; it shrinks along a cosine and is gone
after `fusion.uft.T_hint` steps. `hint_mode=stage` shortens it in stages, `r3` cuts at random and trains no hint (`hint_coef=0`),
`none` is GRPO. Its likelihood is a token mean by default (released code); `fusion.agg.hint=seq-mean-token-sum` is the paper's sum.
Deviation from the released code: a hint is never cut inside a sentence; one that does not fit is shortened by whole buckets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.hints import HintSchedule
from unify_posttrain.experience.rules import Experience, RolloutsAfterHint
from unify_posttrain.objective import CurrentPolicy, Members, PolicyGradient, Term


@dataclass(frozen=True)
class UFTSettings:
    """`fusion.uft`: hints (see `experience.hints`) and their likelihood term."""

    hint_mode: str
    buckets: int
    T_hint: int
    p_low: float
    p_high: float
    hint_coef: float
    max_new_tokens: int
    limit_new_tokens: bool
    joiner: str


class UFT(Algorithm):
    """Rollouts that all start from a hint, which fades."""

    name = "uft"
    paper = "arXiv 2505.16984"
    nodes: ClassVar[Mapping[str, type]] = {"uft": UFTSettings}
    uft: UFTSettings
    needs_reference = True

    def check(self) -> None:
        uft = self.uft
        if not 0 < uft.max_new_tokens <= self.fusion.horizon:
            raise ValueError(
                f"fusion.uft.max_new_tokens={uft.max_new_tokens} must lie in 1..data.max_response_length={self.fusion.horizon}, "
                "which holds hint and continuation"
            )
        if uft.hint_mode == "r3" and uft.hint_coef:
            raise ValueError(f"fusion.uft.hint_coef={uft.hint_coef}: r3 does not train its hints; set it to 0")
        self.experience  # noqa: B018 - the schedule checks its own numbers
        super().check()

    @property
    def terms(self) -> tuple[Term, ...]:
        hint = PolicyGradient(CurrentPolicy(), 1.0)
        return (
            self.on_policy_term(),
            # Hints end after `T_hint` steps; a batch without any has no `prefix_mask`.
            Term("hint", hint, Members("hint", may_be_absent=True), self.aggregation("hint"), self.uft.hint_coef),
            *self.regularisers,
        )

    @property
    def experience(self) -> Experience:
        uft = self.uft
        schedule = HintSchedule(uft.hint_mode, uft.buckets, uft.T_hint, uft.p_low, uft.p_high, self.fusion.seed)
        room = self.fusion.horizon - uft.max_new_tokens
        limit = uft.max_new_tokens if uft.limit_new_tokens else None
        return RolloutsAfterHint(self.fusion.group_size, schedule=schedule, room=room, joiner=uft.joiner, max_new_tokens=limit)
