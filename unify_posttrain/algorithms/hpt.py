"""HPT, Hybrid Post-Training (arXiv 2509.04419 §4, eq. 9-11): a performance gate between RL and SFT, per prompt.

    L = c_rl L_rl + c_off L_off + λ c_sft L_sft - entropy

    switch: a prompt with more than `switch_gate` of its n rollouts solved trains them by Dr. GRPO; otherwise its rollouts are
            dropped and one demonstration is trained by likelihood (or, up to `switch_gate_off`, by LUFFY's term)
    soft:   n-1 rollouts and one demonstration per prompt, weighted by the published coefficients
    no:     rollouts only

`term_scale=share` (default): c_k = share of prompts with a non-zero weight in term k, which makes L the paper's mean over
prompts; `own`: c_k = 1, every term is its own mean. Deviations from the released code: soft coefficients reach the gradient,
the middle zone works, any group size; a batch without one of the kinds is finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.advantages import Advantage, AgainstGenerated, Reward, Split
from unify_posttrain.experience.gate import gate, gate_bounds
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.rules import DemonstrationIfUnsolved, Experience
from unify_posttrain.objective import Term

TERM_SCALES = ("share", "own")
OFF_ADVANTAGES = {"reward": Reward(), "group": AgainstGenerated()}
# The released code's spellings of three settings, kept for habit.
RELEASED_KEYS = ("unify_strategy", "switch_gate", "switch_gate_off")


@dataclass(frozen=True)
class HPTSettings:
    """`fusion.hpt`: the gate (see `experience.gate`), and how its zones are weighted."""

    strategy: str
    switch_gate: int
    switch_gate_off: int | None
    gate_rate: float | None
    soft_type: int
    soft_table: Any
    term_scale: str
    off_advantage: str


class HPT(Algorithm):
    """Its rollouts if any is solved (more than `switch_gate` of them), else a demonstration."""

    name = "hpt"
    paper = "arXiv 2509.04419"
    nodes: ClassVar[Mapping[str, type]] = {"hpt": HPTSettings, "sft_loss_coef": float}
    hpt: HPTSettings
    sft_loss_coef: float

    def check(self) -> None:
        for key, known in (("term_scale", TERM_SCALES), ("off_advantage", tuple(OFF_ADVANTAGES))):
            if getattr(self.hpt, key) not in known:
                raise ValueError(f"fusion.hpt.{key}={getattr(self.hpt, key)!r}; choose one of {', '.join(known)}")
        gate([], self.fusion.group_size, self.hpt.strategy, **self._gate_options)  # checks its own arguments
        low, high = gate_bounds(self.fusion.group_size, self.hpt.switch_gate, self.hpt.switch_gate_off, self.hpt.gate_rate)
        if self.hpt.strategy == "switch" and high > low and self.fusion.adv_estimator != "grpo":
            raise ValueError(
                f"algorithm.adv_estimator={self.fusion.adv_estimator} says nothing of the single demonstrations of the middle zone "
                f"(trainer.switch_gate_off={high}); set it to grpo"
            )
        super().check()

    def check_run(self, config: Any) -> None:
        """Two spellings of one setting must not disagree."""
        for key in RELEASED_KEYS:
            own = "strategy" if key == "unify_strategy" else key
            given, value = config.trainer.get(key), getattr(self.hpt, own)
            if given is not None and given != value:
                raise ValueError(f"trainer.{key}={given} and fusion.hpt.{own}={value} say different things; set one of them")

    @property
    def _gate_options(self) -> dict:
        names = ("switch_gate", "switch_gate_off", "gate_rate", "soft_type", "soft_table")
        return {**{name: getattr(self.hpt, name) for name in names}, "missing": self.missing}

    @property
    def advantage(self) -> Advantage:
        """Of groups of rollouts, and under `soft` a demonstration among them; under `switch` a demonstration stands alone."""
        rollouts = self.group_advantage()
        if self.hpt.strategy != "switch" or rollouts.estimator is not None:
            return rollouts
        return Split(rollouts, OFF_ADVANTAGES[self.hpt.off_advantage])

    @property
    def terms(self) -> tuple[Term, ...]:
        if self.hpt.strategy == "no":
            return (self.on_policy_term(), *self.regularisers)
        return (
            self.on_policy_term(weighted=True),
            self.off_policy_term(weighted=True),
            self.likelihood_term(weighted=True, coefficient=self.sft_loss_coef),
            *self.regularisers,
        )

    @property
    def experience(self) -> Experience:
        return DemonstrationIfUnsolved(self.fusion.group_size, self.hpt.strategy, self._gate_options)

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        return plan.shares(("rl", "off", "sft")) if self.hpt.term_scale == "share" else {}
