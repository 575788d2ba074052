"""What an algorithm is: an experience rule and a list of terms. Adding one is a module of a few lines (see Agent.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from unify_posttrain.algorithms.settings import Settings
from unify_posttrain.experience.advantages import BASELINES, OFF_ADVANTAGES
from unify_posttrain.experience.demonstrations import OVERLONG_POLICIES, SELECTIONS
from unify_posttrain.experience.gate import GatePlan
from unify_posttrain.experience.rules import Experience
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
    Shaped,
    Stabiliser,
    Term,
)

CLIPS = ("none", "ppo")
ENTROPY_MEMBERS = {"on": "on", "all": "trained"}
LEGACY_SHAPE = "p_div_p_"  # LUFFY's scripts write the constant into the name: p_div_p_0.1


class Algorithm(ABC):
    """An algorithm under the estimator. `terms` is what the actor minimises, `experience` what the trainer asks for rows."""

    name: ClassVar[str]
    paper: ClassVar[str]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fusion = settings.fusion
        self.check()

    def check(self) -> None:
        """Refuse contradictory settings. Overridden where an algorithm needs something of its own.

        Raises:
            ValueError: names key, value and remedy.
        """
        fusion = self.fusion
        choices = {
            "clip": (fusion.clip, CLIPS),
            "baseline": (fusion.baseline, BASELINES),
            "entropy_on": (fusion.entropy_on, tuple(ENTROPY_MEMBERS)),
            "demo.missing": (fusion.demo.missing, ("rl", "skip", "error")),
            "demo.overlong": (fusion.demo.overlong, OVERLONG_POLICIES),
            "demo.select": (fusion.demo.select, SELECTIONS),
            "hpt.off_advantage": (fusion.hpt.off_advantage, OFF_ADVANTAGES),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"fusion.{key}={value!r}; choose one of {', '.join(known)}")
        self.terms  # noqa: B018 - builds every aggregation, shape and clip, each of which checks its own numbers

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The objective, as terms to be summed."""

    @property
    @abstractmethod
    def experience(self) -> Experience:
        """How groups are composed."""

    def scales(self, plan: GatePlan) -> Mapping[str, float]:
        """Factors per term that depend on the whole training batch; 1 where absent."""
        return {}

    @property
    def needs_entropy(self) -> bool:
        return any(term.needs_entropy for term in self.terms)

    def token_classes_reading(self, stream: str) -> set[str]:
        """Token classes whose rows need a stream, e.g. the ones for which old log-probabilities must be computed."""
        return {term.members.tokens for term in self.terms if stream in term.loss.streams}

    # Terms that several algorithms share.

    def aggregation(self, kind: str) -> Aggregation:
        """`fusion.agg.KIND` with the horizon and divisor of this run."""
        return Aggregation(getattr(self.fusion.agg, kind), self.fusion.horizon, self.fusion.sum_norm_divisor)

    @property
    def stabiliser(self) -> Stabiliser:
        """`fusion.clip` of on-policy tokens; demonstrations are never PPO-clipped."""
        if self.fusion.clip == "none":
            return NoStabiliser()
        return PPOClip(self.settings.clip_ratio_low, self.settings.clip_ratio_high, self.settings.clip_ratio_c)

    @property
    def missing_in_gate(self) -> str:
        """`fusion.demo.missing` as the gate knows it: `error` was raised when the target was read."""
        return "skip" if self.fusion.demo.missing == "skip" else "rl"

    def on_policy_term(self, row_weight: str | None = None, counted: Members | None = None) -> Term:
        """-Â·π_θ/π_old on sampled tokens (PPO, GRPO, Dr. GRPO)."""
        loss = PolicyGradient(OldPolicy(), "advantages", self.stabiliser)
        return Term("rl", loss, Members("on", row_weight), self.aggregation("rl"), counted=counted)

    def off_policy_term(self, row_weight: str | None = None, counted: Members | None = None) -> Term:
        """-Â·f(π_θ) on demonstration tokens (LUFFY)."""
        shaping = self.fusion.shaping
        name, gamma = shaping.name, shaping.gamma
        if name == "target_prob":
            raise ValueError("fusion.shaping.name=target_prob needs teacher probabilities, which no task provides yet; use p_div_p")
        if name.startswith(LEGACY_SHAPE):
            try:
                name, gamma = "p_div_p", float(name[len(LEGACY_SHAPE) :])
            except ValueError:
                raise ValueError(f"fusion.shaping.name={shaping.name!r} must end with a number, as p_div_p_0.1") from None
        shape = Shaped(name, gamma, shaping.weight, shaping.exponent, shaping.maximum, shaping.minimum)
        loss = PolicyGradient(shape, "advantages")
        return Term("off", loss, Members("demo", row_weight), self.aggregation("rl"), counted=counted)

    def likelihood_term(self, row_weight: str | None, coefficient: float) -> Term:
        """NLL of demonstration tokens: π_ref = π_θ and Â = 1."""
        loss = PolicyGradient(CurrentPolicy(), 1.0)
        return Term("sft", loss, Members("demo", row_weight), self.aggregation("sft"), coefficient)

    @property
    def regularisers(self) -> tuple[Term, ...]:
        """Entropy bonus and KL penalty, where their coefficients are not zero."""
        terms = []
        if self.settings.entropy_coeff:
            members = Members(ENTROPY_MEMBERS[self.fusion.entropy_on])
            terms.append(Term("entropy", Entropy(), members, self.aggregation("entropy"), -self.settings.entropy_coeff))
        if self.settings.use_kl_loss:
            loss = KL(self.settings.kl_loss_type)
            terms.append(Term("kl", loss, Members("on"), self.aggregation("kl"), self.settings.kl_loss_coef))
        return tuple(terms)
