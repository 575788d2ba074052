"""GRPO (DeepSeekMath, arXiv 2402.03300 eq. 3).

    L = mean_i 1/|o_i| Σ_t -min(r Â, clip(r, 1-ε, 1+ε) Â),    Â_i = (R_i - mean R) / std R  over the prompt's n rollouts

The terms equal verl's own GRPO loss to the last bit; entropy and KL follow the loss's aggregation, as in verl.
"""

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.rules import Experience, RolloutsOnly
from unify_posttrain.objective import Term


class GRPO(Algorithm):
    """Its rollouts."""

    name = "grpo"
    paper = "arXiv 2402.03300"

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return RolloutsOnly(self.fusion.group_size)
