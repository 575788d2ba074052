"""CHORD (arXiv 2508.11408 eq. 5-7): GRPO and SFT side by side, balanced by a schedule μ and, token by token, by φ.

    L = (1-μ) L_GRPO + μ L_SFT,    L_SFT = -Σ sg(φ) log π_θ,    φ = π_θ (1-π_θ)

μ rises linearly to `peak` over `warm` steps and falls along a cosine to `valley` over `decay` more. CHORD-μ is
`fusion.sft_form=nll`, CHORD-φ `fusion.sft_form=phi` (default). Demonstrations are those of the prompts themselves, or, with
`fusion.chord.expert_share`, of a share of the prompts that is expert data only.
"""

from collections.abc import Mapping

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.algorithms.schedules import chord_mu
from unify_posttrain.experience.gate import BatchPlan
from unify_posttrain.experience.rules import DemonstrationBesideGroup, Experience
from unify_posttrain.objective import Term


class CHORD(Algorithm):
    """n rollouts and, beside them, demonstrations that no baseline sees."""

    name = "chord"
    paper = "arXiv 2508.11408"
    advantage = "(R - mean)[/ std]"

    def check(self) -> None:
        super().check()
        share = self.fusion.chord.expert_share
        if share is not None and not 0 < share < 1:
            raise ValueError(f"fusion.chord.expert_share={share} must lie between 0 and 1, or be null for each prompt's own")
        self.mu(step=1)

    def mu(self, step: int) -> float:
        """μ at a training step (1-based)."""
        chord = self.fusion.chord
        return chord_mu(step - 1, chord.warm, chord.decay, chord.peak, chord.valley)

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.on_policy_term(), self.likelihood_term("sft_weight", coefficient=1.0), *self.regularisers)

    @property
    def experience(self) -> Experience:
        return DemonstrationBesideGroup(
            self.fusion.group_size, self.fusion.chord.expert_share, self.fusion.seed, self.missing_in_gate
        )

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        return {"rl": 1 - self.mu(step), "sft": self.mu(step)}

    def step_metrics(self, step: int) -> Mapping[str, float]:
        return {"fusion/chord_mu": self.mu(step)}
