"""Prefix-RFT (arXiv 2507.01679): one row of every group continues from a part of the demonstration that shrinks over training.

    L = Dr. GRPO over all rows; of the prefix only the tokens where the policy is least sure (top 20 % by entropy) are trained

The prefix is treated like sampled tokens: ratio π_θ/π_old under `fusion.clip`, the row's own Â. Its share of the demonstration
falls along a cosine (`fusion.prefix.strategy=cosine`, from `max_ratio` to `min_ratio`).
`fusion.prefix_rft.entropy_top` is the 20 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.luffy import LUFFY
from unify_posttrain.objective import Members, OldPolicy, PolicyGradient, Term, TopEntropy


@dataclass(frozen=True)
class PrefixRFTSettings:
    """`fusion.prefix_rft`: the share of a row's prefix tokens, those of highest entropy, that is trained; None: all."""

    entropy_top: float | None


class PrefixRFT(LUFFY):
    """Rollouts, one of which continues a part of the demonstration (95 % → 5 %)."""

    name = "prefix_rft"
    paper = "arXiv 2507.01679"
    nodes: ClassVar[Mapping[str, type]] = {**LUFFY.nodes, "prefix_rft": PrefixRFTSettings}
    prefix_rft: PrefixRFTSettings

    @property
    def terms(self) -> tuple[Term, ...]:
        top, bound = self.prefix_rft.entropy_top, self.fusion.shaping.all_maximum
        everything, prefixes = (Members(tokens, max_probability=bound) for tokens in ("trained", "demo"))
        weight = None if top is None else TopEntropy(top)
        prefix = PolicyGradient(OldPolicy(), "advantages", self.stabiliser, token_weight=weight)
        return (
            self.on_policy_term(counted=everything, coefficient=self.luffy.on_adv_weight),
            Term("off", prefix, prefixes, self.aggregation("rl"), self.luffy.prefix_adv_weight, counted=everything),
            *self.regularisers,
        )
