"""LUFFY (arXiv 2504.14945 eq. 5-7): every group holds a demonstration, trained by policy gradient with a shaped likelihood.

    L = 1/Z [ Σ_on -Â r + Σ_demo -Â f(π_θ) ],    f(p) = p/(p+γ),    Â over the n-1 rollouts and the demonstration

Z counts all trained tokens of the mini-batch (`fusion.agg.rl=token-mean`) or is the constant length divisor of the headline
runs (`seq-mean-token-sum-norm`, default). The demonstration's behaviour probability is taken as 1, its old log-probabilities
are never computed. Deviation from the released code: no tokens are generated past a demonstration's end.
"""

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.rules import Experience, Joined
from unify_posttrain.objective import Members, Term


class LUFFY(Algorithm):
    """n-1 rollouts and one demonstration per prompt, one mean over all their tokens."""

    name = "luffy"
    paper = "arXiv 2504.14945"

    def check(self) -> None:
        super().check()
        if self.fusion.group_size < 2:
            raise ValueError(
                f"actor_rollout_ref.rollout.n={self.fusion.group_size}: a LUFFY group is n-1 rollouts and a demonstration, "
                "set it to 2 or more"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        everything = Members("trained")
        return (self.on_policy_term(counted=everything), self.off_policy_term(counted=everything), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return Joined(self.fusion.group_size, self.missing_in_gate)
