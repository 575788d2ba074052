"""SRFT (arXiv 2506.19767 eq. 5-9): demonstrations by likelihood and by policy gradient, rollouts by sign, weighted by entropy.

    L = L_sft + L_demo + L_on
    L_sft  = w_s NLL(demonstration),  w_s = 0.5 sg(e^-H)         (the paper's sign; the released code has e^+H, not offered)
    L_demo = -Â f(π_θ),  Â over rollouts and demonstration
    L_on   = -w_r log π_θ on solved rollouts, w_r = 0.1 sg(e^H);  + log π_θ on unsolved ones

`fusion.srft.counts`: each expectation over its own source (default), solved and unsolved rollouts each their own mean (`by_sign`),
or L_demo and L_on over all tokens together (`released`). The weights need entropies, so they are always computed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from unify_posttrain.algorithms.luffy import LUFFY
from unify_posttrain.experience.rules import DemonstrationInGroup, Experience
from unify_posttrain.objective import (
    AboveFloor,
    CurrentPolicy,
    ExpEntropy,
    Members,
    OldPolicy,
    One,
    PolicyGradient,
    Reference,
    ShapedRatio,
    Term,
)  # fmt: skip

ON_FORMS: dict[str, Reference] = {
    "log_prob": CurrentPolicy(),
    "prob": One(),
    "ratio": OldPolicy(),
    "log_ratio": ShapedRatio("logp"),
}
COUNTED = {"by_source": Members("on"), "by_sign": None, "released": Members("trained")}


@dataclass(frozen=True)
class SRFTSettings:
    """`fusion.srft`: entropy-aware weights."""

    entropy_scope: str
    counts: str
    on_form: str
    demo_weight: float
    on_weight: float
    neg_coef: float
    weight_cap: float | None
    neg_prob_floor: float | None


class SRFT(LUFFY):
    """n-1 rollouts and a demonstration."""

    name = "srft"
    paper = "arXiv 2506.19767"
    nodes: ClassVar[Mapping[str, type]] = {**LUFFY.nodes, "srft": SRFTSettings}
    srft: SRFTSettings
    own_metrics: ClassVar[Mapping[str, str | None]] = {
        "fusion/neg_loss": "neg_loss",
        "fusion/srft_H": "entropy",
        "fusion/srft_w_sft": "sft_weight",
        "fusion/srft_w_on": "rl_weight",
    }

    def check(self) -> None:
        srft = self.srft
        for key, value, known in (("on_form", srft.on_form, ON_FORMS), ("counts", srft.counts, COUNTED)):
            if value not in known:
                raise ValueError(f"fusion.srft.{key}={value!r}; choose one of {', '.join(known)}")
        super().check()
        for key in ("on_adv_weight", "prefix_adv_weight"):
            if getattr(self.luffy, key) != 1:
                raise ValueError(
                    f"fusion.luffy.{key}={getattr(self.luffy, key)}: algorithm=srft weighs its terms by fusion.srft; set it to 1"
                )
        shaping = self.fusion.shaping
        if self.fusion.clip != "none" or shaping.on != "none" or shaping.all_maximum is not None:
            raise ValueError(
                "fusion.clip, fusion.shaping.on and fusion.shaping.all_maximum are LUFFY's, algorithm=srft does not use them; set "
                "them to none, none and null"
            )

    @property
    def terms(self) -> tuple[Term, ...]:
        srft = self.srft
        counted, reference = COUNTED[srft.counts], ON_FORMS[srft.on_form]
        w_s = ExpEntropy(srft.demo_weight, -1, srft.entropy_scope)
        w_r = ExpEntropy(srft.on_weight, 1, srft.entropy_scope, srft.weight_cap)
        floor = None if srft.neg_prob_floor is None else AboveFloor(srft.neg_prob_floor)
        solved = PolicyGradient(reference, 1.0, token_weight=w_r)
        unsolved = PolicyGradient(reference, -srft.neg_coef, token_weight=floor)
        likelihood = PolicyGradient(CurrentPolicy(), 1.0, token_weight=w_s)
        return (
            Term("sft", likelihood, Members("demo"), self.aggregation("sft")),
            self.off_policy_term(counted=counted if srft.counts == "released" else None),
            Term("rl", solved, Members("on", "solved"), self.aggregation("rl"), counted=counted),
            Term("neg", unsolved, Members("on", "unsolved"), self.aggregation("rl"), counted=counted),
            *self.regularisers,
        )

    @property
    def experience(self) -> Experience:
        return DemonstrationInGroup(self.fusion.group_size, self.missing, self.prefixes, demonstration_terms=("sft", "off"))
