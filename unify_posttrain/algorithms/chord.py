"""CHORD (arXiv 2508.11408 eq. 5-7): GRPO and SFT side by side, balanced by a schedule μ and, token by token, by φ.

    L = (1-μ) L_GRPO + μ L_SFT,    L_SFT = -Σ sg(φ) log π_θ,    φ = π_θ (1-π_θ)

μ rises linearly to `peak` over `warm` steps and falls along a cosine to `valley` over `decay` more. CHORD-μ is
`fusion.sft_form=nll`, CHORD-φ `fusion.sft_form=phi` (default). Demonstrations are those of the prompts themselves, or, with
`fusion.chord.expert_share`, expert data that makes up that share of the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.algorithms.schedules import chord_mu
from unify_posttrain.experience.advantages import Advantage
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.rules import DemonstrationBesideGroup, Experience
from unify_posttrain.objective import Term


@dataclass(frozen=True)
class CHORDSettings:
    """`fusion.chord`: schedule of μ in training steps, and where demonstrations come from."""

    warm: int
    decay: int
    peak: float
    valley: float
    expert_share: float | None


class CHORD(Algorithm):
    """Its rollouts and a demonstration, balanced by a schedule μ."""

    name = "chord"
    paper = "arXiv 2508.11408"
    nodes: ClassVar[Mapping[str, type]] = {"chord": CHORDSettings}
    chord: CHORDSettings
    own_metrics: ClassVar[Mapping[str, str | None]] = {"fusion/chord_mu": None}

    def check(self) -> None:
        super().check()
        share = self.chord.expert_share
        if share is not None and not 0 < share < 1:
            raise ValueError(f"fusion.chord.expert_share={share} must lie between 0 and 1, or be null for each prompt's own")
        self.mu(step=1)

    def mu(self, step: int) -> float:
        """μ at a training step (1-based): the first is already 1/`warm` of the way up, as in Trinity, the authors' framework."""
        chord = self.chord
        return chord_mu(step, chord.warm, chord.decay, chord.peak, chord.valley)

    @property
    def advantage(self) -> Advantage:
        """Demonstrations stand beside the group and do not move its baseline."""
        return self.group_advantage("rollouts")

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), self.likelihood_term(), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return DemonstrationBesideGroup(self.fusion.group_size, self.chord.expert_share, self.fusion.seed, self.missing)

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        return {"rl": 1 - self.mu(step), "sft": self.mu(step)}

    def step_metrics(self, step: int) -> Mapping[str, float]:
        return {"fusion/chord_mu": self.mu(step)}
