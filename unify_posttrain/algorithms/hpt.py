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

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.gate import BatchPlan, gate
from unify_posttrain.experience.rules import DemonstrationIfUnsolved, Experience
from unify_posttrain.objective import Term

TERM_SCALES = ("share", "own")


class HPT(Algorithm):
    """DemonstrationIfUnsolved rollouts and demonstrations."""

    name = "hpt"
    paper = "arXiv 2509.04419"
    advantage = "R - mean over rollouts"

    def check(self) -> None:
        super().check()
        if self.fusion.hpt.term_scale not in TERM_SCALES:
            raise ValueError(f"fusion.hpt.term_scale={self.fusion.hpt.term_scale!r}; choose one of {', '.join(TERM_SCALES)}")
        gate([], self.fusion.group_size, self.fusion.hpt.strategy, **self._gate_options)  # checks its own arguments

    @property
    def _gate_options(self) -> dict:
        hpt = self.fusion.hpt
        names = ("switch_gate", "switch_gate_off", "gate_rate", "soft_type", "soft_table")
        return {**{name: getattr(hpt, name) for name in names}, "missing": self.missing_in_gate}

    @property
    def terms(self) -> tuple[Term, ...]:
        if self.fusion.hpt.strategy == "no":
            return (self.on_policy_term(), *self.regularisers)
        return (
            self.on_policy_term(row_weight="rl_weight"),
            self.off_policy_term(row_weight="rl_weight"),
            self.likelihood_term(row_weight="sft_weight", coefficient=self.fusion.sft_loss_coef),
            *self.regularisers,
        )

    @property
    def experience(self) -> Experience:
        return DemonstrationIfUnsolved(self.fusion.group_size, self.fusion.hpt.strategy, self._gate_options)

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        return plan.shares() if self.fusion.hpt.term_scale == "share" else {}
