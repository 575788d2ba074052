"""Supervised fine-tuning on demonstrations: maximum likelihood, no generation.

    L = -1/N_tok Σ log π_θ(y_t | x, y_<t)

As an estimator: π_ref = π_θ, Â = 1 (arXiv 2509.04419 table 1).
"""

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.rules import DemonstrationsOnly, Experience
from unify_posttrain.objective import Term


class SFT(Algorithm):
    """One demonstration per prompt and step; prompts without a usable target contribute nothing."""

    name = "sft"
    paper = "-"

    def check(self) -> None:
        super().check()
        if self.fusion.demo.missing == "rl":
            raise ValueError("fusion.demo.missing=rl needs rollouts, algorithm=sft generates none; set it to skip or error")
        if self.settings.entropy_coeff:
            raise ValueError(
                f"actor.entropy_coeff={self.settings.entropy_coeff} rewards the entropy of sampled tokens, algorithm=sft has none; "
                "set it to 0"
            )
        if self.settings.use_kl_loss:
            raise ValueError("actor.use_kl_loss=true penalises sampled tokens, algorithm=sft has none; set it to false")

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.likelihood_term(row_weight=None, coefficient=1.0),)

    @property
    def experience(self) -> Experience:
        return DemonstrationsOnly()
