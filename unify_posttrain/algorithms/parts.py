"""What several algorithms share: the terms that most objectives are made of, as the shared settings shape them."""

from __future__ import annotations

from typing import ClassVar

from unify_posttrain.algorithms.settings import FusionConfig, Settings
from unify_posttrain.experience.advantages import Advantage, Centred, Estimated
from unify_posttrain.experience.plan import weight_stream
from unify_posttrain.objective import (
    KL,
    Aggregation,
    CurrentPolicy,
    Entropy,
    Members,
    NoStabiliser,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Probability,
    Reference,
    Shaped,
    ShapedRatio,
    Stabiliser,
    Term,
    TokenWeight,
    Uncertainty,
)

CLIPS = ("none", "ppo")
ENTROPY_MEMBERS = {"on": "on", "all": "trained"}
LEGACY_SHAPE = "p_div_p_"  # LUFFY's scripts write the constant into the name: p_div_p_0.1
SFT_WEIGHTS: dict[str, TokenWeight | None] = {"nll": None, "dft": Probability(), "phi": Uncertainty(), "psft": None}


class Parts:
    """Terms and advantages by the shared settings. A part of `Algorithm`, apart from it only to keep each in one head."""

    name: ClassVar[str]
    settings: Settings
    fusion: FusionConfig

    def aggregation(self, kind: str) -> Aggregation:
        """`fusion.agg.KIND` with the horizon and divisor of this run."""
        mode = getattr(self.fusion.agg, kind)
        return Aggregation(mode, self.fusion.horizon, self.fusion.sum_norm_divisor if mode == "sum-norm" else 1.0)

    def group_advantage(self, over: str = "group") -> Advantage:
        """Â of `algorithm.adv_estimator`: R - mean for `grpo`, over the group or its rollouts; what verl computes for the others.

        Raises:
            ValueError: statistics over rollouts alone under an estimator of verl's.
        """
        if self.fusion.adv_estimator == "grpo":
            return Centred(over, self.fusion.norm_adv_by_std)
        if over != "group":
            raise ValueError(
                f"algorithm.adv_estimator={self.fusion.adv_estimator} compares all rows of a group, and the statistics of "
                f"algorithm={self.name} are over rollouts alone; set it to grpo"
            )
        return Estimated(self.fusion.adv_estimator)

    @property
    def stabiliser(self) -> Stabiliser:
        """`fusion.clip` of on-policy tokens; demonstrations are never PPO-clipped, except by `fusion.sft_form=psft`."""
        if self.fusion.clip == "none":
            return NoStabiliser()
        return PPOClip(self.settings.clip_ratio_low, self.settings.clip_ratio_high, self.fusion.dual_clip)

    @property
    def missing(self) -> str:
        """`fusion.demo.missing` as the experience rules know it: `error` was raised when the target was read."""
        return "skip" if self.fusion.demo.missing == "skip" else "rl"

    def on_policy_term(self, weighted: bool = False, counted: Members | None = None, coefficient: float = 1.0) -> Term:
        """-Â·u(r), r = π_θ/π_old, on sampled tokens (PPO, GRPO, Dr. GRPO); u = r unless `fusion.shaping.on` reshapes it.

        Args (of all terms here):
            weighted: rows weigh what the batch plan gives them for this term; otherwise 1.
            counted: the member set that normalises the term; default: its own.
            coefficient: factor on the term.
        """
        shaping = self.fusion.shaping
        reference: Reference = OldPolicy()
        if shaping.on != "none":
            reference = ShapedRatio(shaping.on, shaping.gamma, shaping.weight, shaping.exponent)
        members = Members("on", weight_stream("rl") if weighted else None, shaping.all_maximum)
        loss = PolicyGradient(reference, "advantages", self.stabiliser)
        return Term("rl", loss, members, self.aggregation("rl"), coefficient, counted)

    @property
    def shape(self) -> Shaped:
        """`fusion.shaping`: f(π_θ) of off-policy tokens."""
        shaping = self.fusion.shaping
        name, gamma = shaping.name, shaping.gamma
        if name.startswith(LEGACY_SHAPE):
            try:
                name, gamma = "p_div_p", float(name[len(LEGACY_SHAPE) :])
            except ValueError:
                raise ValueError(f"fusion.shaping.name={shaping.name!r} must end with a number, as p_div_p_0.1") from None
        return Shaped(name, gamma, shaping.weight, shaping.exponent, shaping.maximum, shaping.minimum)

    def off_policy_term(self, weighted: bool = False, counted: Members | None = None, coefficient: float = 1.0) -> Term:
        """-Â·f(π_θ) on demonstration tokens (LUFFY)."""
        members = Members("demo", weight_stream("off") if weighted else None, self.fusion.shaping.all_maximum)
        return Term("off", PolicyGradient(self.shape, "advantages"), members, self.aggregation("rl"), coefficient, counted)

    def likelihood_term(self, weighted: bool = False, counted: Members | None = None, coefficient: float = 1.0) -> Term:
        """Likelihood of demonstration tokens, Â = 1: NLL (π_ref = π_θ), or as `fusion.sft_form` weights or clips it."""
        form = self.fusion.sft_form
        loss = PolicyGradient(CurrentPolicy(), 1.0, token_weight=SFT_WEIGHTS[form])
        if form == "psft":
            loss = PolicyGradient(OldPolicy(), 1.0, PPOClip(self.settings.clip_ratio_low, self.settings.clip_ratio_high))
        members = Members("demo", weight_stream("sft") if weighted else None)
        return Term("sft", loss, members, self.aggregation("sft"), coefficient, counted)

    @property
    def regularisers(self) -> tuple[Term, ...]:
        """Entropy bonus and KL penalty, where they are switched on."""
        terms = []
        if self.settings.entropy_coeff:
            members = Members(ENTROPY_MEMBERS[self.fusion.entropy_on])
            terms.append(Term("entropy", Entropy(), members, self.aggregation("entropy"), -self.settings.entropy_coeff))
        if self.settings.use_kl_loss:
            loss = KL(self.settings.kl_loss_type)
            terms.append(Term("kl", loss, Members("on"), self.aggregation("kl"), self.settings.kl_loss_coef))
        return tuple(terms)

    def without_sampled_tokens(self) -> None:
        """Refuse settings that act on sampled tokens, for algorithms that have none.

        Raises:
            ValueError: `demo.missing=rl`, an entropy bonus, or a KL penalty.
        """
        if self.fusion.demo.missing == "rl":
            raise ValueError(
                f"fusion.demo.missing=rl needs rollouts, algorithm={self.name} generates none; set it to skip or error"
            )
        if self.settings.entropy_coeff:
            raise ValueError(
                f"actor.entropy_coeff={self.settings.entropy_coeff} rewards the entropy of sampled tokens, "
                f"algorithm={self.name} has none; set it to 0"
            )
        if self.settings.use_kl_loss:
            raise ValueError(f"actor.use_kl_loss=true penalises sampled tokens, algorithm={self.name} has none; set it to false")
