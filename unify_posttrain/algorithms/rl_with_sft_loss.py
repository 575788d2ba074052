"""RL with an SFT loss beside it: the plain sum that LUFFY (arXiv 2504.14945 §4) and others compare with.

    L = L_PPO(rollouts) + λ · NLL(demonstration),    Â from the rollouts alone

A group is n-1 rollouts and a demonstration; λ is `fusion.sft_loss_coef`.
"""

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.rules import DemonstrationInGroup, Experience
from unify_posttrain.objective import Term


class RLWithSFTLoss(Algorithm):
    """Two losses, added up, on the rows of one group."""

    name = "rl_with_sft_loss"
    paper = "arXiv 2504.14945"
    advantage = "R - mean over rollouts"

    def check(self) -> None:
        super().check()
        if self.fusion.baseline != "on":
            raise ValueError(
                f"fusion.baseline={self.fusion.baseline}: the demonstrations of algorithm={self.name} are no policy-gradient rows "
                "and must not move the baseline; set it to on"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), self.likelihood_term("sft_weight", self.fusion.sft_loss_coef), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return DemonstrationInGroup(self.fusion.group_size, self.missing_in_gate, off_weight=0.0, sft_weight=1.0)
