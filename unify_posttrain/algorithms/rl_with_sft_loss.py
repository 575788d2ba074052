"""RL with an SFT loss beside it: the plain sum that LUFFY (arXiv 2504.14945 §4) and others compare with.

    L = -Â r on rollouts + λ · NLL(demonstration),    Â from the rollouts alone

A group is n-1 rollouts and a demonstration; λ is `fusion.sft_loss_coef`. Unclipped, as it was published; `fusion.clip=ppo` clips.
"""

from collections.abc import Mapping
from typing import ClassVar

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.advantages import Advantage
from unify_posttrain.experience.rules import DemonstrationInGroup, Experience
from unify_posttrain.objective import Term


class RLWithSFTLoss(Algorithm):
    """n-1 rollouts and a demonstration."""

    name = "rl_with_sft_loss"
    paper = "arXiv 2504.14945"
    nodes: ClassVar[Mapping[str, type]] = {"sft_loss_coef": float}
    sft_loss_coef: float

    @property
    def advantage(self) -> Advantage:
        """Demonstrations are no policy-gradient rows and do not move the baseline."""
        return self.group_advantage("rollouts")

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), self.likelihood_term(coefficient=self.sft_loss_coef), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return DemonstrationInGroup(self.fusion.group_size, self.missing, demonstration_terms=("sft",))
