"""What an algorithm is: an experience rule and a list of terms. Adding one is a module of a few lines (see Agent.md)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unify_posttrain.algorithms.settings import Settings
from unify_posttrain.experience.advantages import BASELINES, OFF_ADVANTAGES
from unify_posttrain.experience.demonstrations import OVERLONG_POLICIES, SELECTIONS
from unify_posttrain.experience.gate import BatchPlan
from unify_posttrain.experience.replay import ReplayBuffer
from unify_posttrain.experience.rules import Experience
from unify_posttrain.objective import (
    KL,
    RATIO_SHAPES,
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


@dataclass(frozen=True)
class ScoredRows:
    """Rollouts of a step, for advantages that verl's estimators cannot compute. B rows, T response tokens.

    Attributes:
        scores: (B,) R.
        success: (B,) the value that is compared with `fusion.success_threshold`.
        uids: (B,) groups.
        mask: (B, T) bool, sampled tokens.
        old_log_probs, ref_log_prob: (B, T).
    """

    scores: Tensor
    success: Tensor
    uids: Sequence[str]
    mask: Tensor
    old_log_probs: Tensor
    ref_log_prob: Tensor


@dataclass(frozen=True)
class ReplayStep:
    """How a fine-tuning step on replayed demonstrations is taken.

    Attributes:
        lr: its learning rate, outside of the run's schedule.
        grad_clip: largest norm of its gradient.
        epochs: passes over the batch.
        mini_batch: demonstrations per optimizer step; None: all.
        separate: moments of its own instead of the run's.
    """

    lr: float
    grad_clip: float
    epochs: int
    mini_batch: int | None
    separate: bool


@dataclass(frozen=True)
class Phase:
    """A part of a run with an algorithm of its own.

    Attributes:
        algorithm: what is trained.
        steps: its length in training steps; None: to the end of the run, or until `stall`.
        stall: it ends when mean validation accuracy has not risen for so many validations; None: it does not.
        lr: base learning rate; None: `actor.optim.lr`.
    """

    algorithm: Algorithm
    steps: int | None = None
    stall: int | None = None
    lr: float | None = None


class Algorithm(ABC):
    """An algorithm under the estimator. `terms` is what the actor minimises, `experience` what the trainer asks for rows."""

    name: ClassVar[str]
    own_metrics: ClassVar[Mapping[str, str]] = {}  # `fusion/*` name -> estimator metric, where a name is one algorithm's
    paper: ClassVar[str]
    advantage: ClassVar[str] = "Â"  # what the stream `advantages` holds, for people
    needs_critic: ClassVar[bool] = False  # advantages come from the values of a critic (adv_estimator=gae)
    needs_reference: ClassVar[bool] = False  # a reference policy, whatever the coefficient of the KL term
    one_update: ClassVar[bool] = False  # the estimator holds for one optimizer step per batch of rollouts only
    single_phase: ClassVar[bool] = False  # brings workers or state of its own, so it cannot be a phase of another run
    group_baseline: ClassVar[bool] = True  # Â compares the rollouts of a prompt, so there must be two

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
            "sft_form": (fusion.sft_form, tuple(SFT_WEIGHTS)),
            "shaping.on": (fusion.shaping.on, RATIO_SHAPES),
            "demo.missing": (fusion.demo.missing, ("rl", "skip", "error")),
            "demo.overlong": (fusion.demo.overlong, OVERLONG_POLICIES),
            "demo.select": (fusion.demo.select, SELECTIONS),
            "hpt.off_advantage": (fusion.hpt.off_advantage, OFF_ADVANTAGES),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"fusion.{key}={value!r}; choose one of {', '.join(known)}")
        if fusion.shaping.on == "logp" and fusion.clip == "ppo":
            raise ValueError(
                "fusion.shaping.on=logp is log r, about 0, and fusion.clip=ppo bounds it around 1: every token would be clipped; "
                "set fusion.clip=none"
            )
        if self.needs_reference and not self.settings.use_kl_loss:
            raise ValueError(
                f"actor_rollout_ref.actor.use_kl_loss=false: algorithm={self.name} needs the reference policy; set it to true "
                "(kl_loss_coef may be 0)"
            )
        self.terms  # noqa: B018 - builds every aggregation, shape and clip, each of which checks its own numbers

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The objective, as terms to be summed."""

    @property
    @abstractmethod
    def experience(self) -> Experience:
        """How groups are composed."""

    # What only some algorithms have.

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        """Factors per term that depend on the whole training batch or on the step (1-based); 1 where absent."""
        return {}

    def step_metrics(self, step: int) -> Mapping[str, float]:
        """`fusion/*` of what the algorithm changes over training."""
        return {"fusion/chord_mu": 0.0}

    def rewards(self, rows: ScoredRows) -> Tensor:
        """(B,) R as the objective means it, if that is not the score."""
        return rows.scores

    def row_advantages(self, rows: ScoredRows) -> tuple[Tensor, Mapping[str, float]] | None:
        """(B,) advantages that replace the estimator's, and `fusion/*` metrics of them; None: the estimator's stand."""
        return None

    @property
    def replay(self) -> ReplayBuffer | None:
        """A new, empty buffer of unsolved questions that are fine-tuned on later; None: there is none."""
        return None

    @property
    def replay_step(self) -> ReplayStep | None:
        """How that fine-tuning is done; None without a buffer."""
        return None

    @property
    def replay_terms(self) -> tuple[Term, ...]:
        """The objective of a fine-tuning step on replayed demonstrations."""
        return ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The parts of a run, at least one."""
        return (Phase(self),)

    # What terms and advantages need.

    advantage_streams: ClassVar[tuple[str, ...]] = ()  # read by `row_advantages`, of sampled tokens

    @property
    def needs_entropy(self) -> bool:
        return any(term.needs_entropy for term in (*self.terms, *self.replay_terms))

    def token_classes_reading(self, stream: str) -> set[str]:
        """Token classes whose rows need a stream, e.g. the ones for which old log-probabilities must be computed."""
        classes = {"on"} if stream in self.advantage_streams else set()
        for term in self.terms:
            if stream in (*term.loss.streams, *term.members.streams):
                classes.add(term.members.tokens)
            if stream in term.normaliser.streams:
                classes.add(term.normaliser.tokens)
        return classes

    # Terms that several algorithms share.

    def aggregation(self, kind: str) -> Aggregation:
        """`fusion.agg.KIND` with the horizon and divisor of this run."""
        return Aggregation(getattr(self.fusion.agg, kind), self.fusion.horizon, self.fusion.sum_norm_divisor)

    @property
    def stabiliser(self) -> Stabiliser:
        """`fusion.clip` of on-policy tokens; demonstrations are never PPO-clipped, except by `fusion.sft_form=psft`."""
        if self.fusion.clip == "none":
            return NoStabiliser()
        return PPOClip(self.settings.clip_ratio_low, self.settings.clip_ratio_high, self.settings.clip_ratio_c)

    @property
    def missing_in_gate(self) -> str:
        """`fusion.demo.missing` as the gate knows it: `error` was raised when the target was read."""
        return "skip" if self.fusion.demo.missing == "skip" else "rl"

    def on_policy_term(self, row_weight: str | None = None, counted: Members | None = None, coefficient: float = 1.0) -> Term:
        """-Â·u(r), r = π_θ/π_old, on sampled tokens (PPO, GRPO, Dr. GRPO); u = r unless `fusion.shaping.on` reshapes it."""
        shaping = self.fusion.shaping
        reference: Reference = OldPolicy()
        if shaping.on != "none":
            reference = ShapedRatio(shaping.on, shaping.gamma, shaping.weight, shaping.exponent)
        members = Members("on", row_weight, shaping.all_maximum)
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

    def off_policy_term(self, row_weight: str | None = None, counted: Members | None = None, coefficient: float = 1.0) -> Term:
        """-Â·f(π_θ) on demonstration tokens (LUFFY)."""
        members = Members("demo", row_weight, self.fusion.shaping.all_maximum)
        return Term("off", PolicyGradient(self.shape, "advantages"), members, self.aggregation("rl"), coefficient, counted)

    def likelihood_term(self, row_weight: str | None, coefficient: float) -> Term:
        """Likelihood of demonstration tokens, Â = 1: NLL (π_ref = π_θ), or as `fusion.sft_form` weights or clips it."""
        form = self.fusion.sft_form
        loss = PolicyGradient(CurrentPolicy(), 1.0, token_weight=SFT_WEIGHTS[form])
        if form == "psft":
            loss = PolicyGradient(OldPolicy(), 1.0, PPOClip(self.settings.clip_ratio_low, self.settings.clip_ratio_high))
        return Term("sft", loss, Members("demo", row_weight), self.aggregation("sft"), coefficient)

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


def group_sums(values: Tensor, uids: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Sum of each row's group and its size, both (B,)."""
    index = {uid: number for number, uid in enumerate(dict.fromkeys(uids))}
    groups = torch.tensor([index[uid] for uid in uids], device=values.device)
    sums = torch.zeros(len(index), dtype=values.dtype, device=values.device).index_add(0, groups, values)
    sizes = torch.bincount(groups, minlength=len(index)).to(values.dtype)
    return sums[groups], sizes[groups]
