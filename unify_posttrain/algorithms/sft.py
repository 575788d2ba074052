"""Supervised fine-tuning on demonstrations: maximum likelihood, no generation.

    L = -1/N_tok Σ log π_θ(y_t | x, y_<t)

As an estimator: π_ref = π_θ, Â = 1 (arXiv 2509.04419 table 1). `fusion.sft_form` makes other methods of it (`dft`, `psft`).
"""

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.experience.advantages import Advantage, Unread
from unify_posttrain.experience.rules import DemonstrationsOnly, Experience
from unify_posttrain.objective import Term


class SFT(Algorithm):
    """A demonstration; nothing is generated. Prompts without a usable target contribute nothing."""

    name = "sft"
    paper = "-"

    def check(self) -> None:
        super().check()
        self.without_sampled_tokens()

    @property
    def advantage(self) -> Advantage:
        return Unread()

    @property
    def terms(self) -> tuple[Term, ...]:
        return (self.likelihood_term(),)

    @property
    def experience(self) -> Experience:
        return DemonstrationsOnly()
