"""What an algorithm is: its rows, its advantage, its terms and its settings. CONTRIBUTING.md says how one is added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from unify_posttrain.algorithms.parts import CLIPS, ENTROPY_MEMBERS, SFT_WEIGHTS, Parts
from unify_posttrain.algorithms.settings import Settings, own_settings
from unify_posttrain.experience.advantages import Advantage
from unify_posttrain.experience.demonstrations import OVERLONG_POLICIES, SELECTIONS
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.replay import ReplayBuffer
from unify_posttrain.experience.rules import Experience
from unify_posttrain.objective import RATIO_SHAPES, Term


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
        optim: keys of `actor.optim` (lr, schedule, …) that differ from the run's.
        mini_batches: optimizer steps per training step; None: the run's.
        grad_clip: largest norm of a gradient; None: the run's.
        filter_groups: `algorithm.filter_groups`; None: the run's.
        kept: settings of the algorithm's file that hold for a whole run and are the run's: (key, the file's, the run's).
    """

    algorithm: Algorithm
    steps: int | None = None
    stall: int | None = None
    optim: Mapping[str, Any] = field(default_factory=dict)
    mini_batches: int | None = None
    grad_clip: float | None = None
    filter_groups: Mapping[str, Any] | None = None
    kept: tuple[tuple[str, Any, Any], ...] = ()


class Algorithm(Parts, ABC):
    """An algorithm under the estimator. `terms` is what the actor minimises, `experience` what the trainer asks for rows."""

    name: ClassVar[str]
    paper: ClassVar[str] = ""  # "arXiv ID", or its name; a method without one is not listed in the documents
    nodes: ClassVar[Mapping[str, type]] = {}  # its own keys of the `fusion` node: name -> dataclass, or the type of a plain value
    own_metrics: ClassVar[Mapping[str, str | None]] = {}  # its own `fusion/*` -> estimator metric; None: it fills them itself
    needs_critic: ClassVar[bool] = False  # advantages come from the values of a critic (adv_estimator=gae)
    needs_reference: ClassVar[bool] = False  # a reference policy, whatever the coefficient of the KL term
    one_update: ClassVar[bool] = False  # the estimator holds for one optimizer step per batch of rollouts only
    single_phase: ClassVar[bool] = False  # brings workers or state of its own, so it cannot be a phase of another run

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.fusion = settings.fusion
        for key, value in own_settings(self.nodes, self.fusion.own, self.name).items():
            if not hasattr(type(self), key):  # `phases` is read where it is turned into objects
                setattr(self, key, value)
        self.check()

    # What an algorithm is.

    @property
    @abstractmethod
    def experience(self) -> Experience:
        """Which rows a group is made of."""

    @property
    def advantage(self) -> Advantage:
        """What the stream `advantages` holds."""
        return self.group_advantage()

    @property
    @abstractmethod
    def terms(self) -> tuple[Term, ...]:
        """The objective, as terms to be summed."""

    def check(self) -> None:
        """Refuse contradictory settings. Overridden where an algorithm needs something of its own.

        Raises:
            ValueError: names key, value and remedy.
        """
        fusion = self.fusion
        choices = {
            "clip": (fusion.clip, CLIPS),
            "entropy_on": (fusion.entropy_on, tuple(ENTROPY_MEMBERS)),
            "sft_form": (fusion.sft_form, tuple(SFT_WEIGHTS)),
            "shaping.on": (fusion.shaping.on, RATIO_SHAPES),
            "demo.missing": (fusion.demo.missing, ("rl", "skip", "error")),
            "demo.overlong": (fusion.demo.overlong, OVERLONG_POLICIES),
            "demo.select": (fusion.demo.select, SELECTIONS),
        }
        for key, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"fusion.{key}={value!r}; choose one of {', '.join(known)}")
        if not fusion.sum_norm_divisor > 0:
            raise ValueError(f"fusion.sum_norm_divisor={fusion.sum_norm_divisor} must be > 0")
        if fusion.dual_clip is not None and not fusion.dual_clip > 1:
            raise ValueError(f"fusion.dual_clip={fusion.dual_clip} must be > 1 (the bound c of dual clip), or null for none")
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
        self.terms, self.advantage  # noqa: B018 - builds every aggregation, shape and clip, each of which checks its own numbers

    # What only some algorithms have.

    def check_run(self, config: Any) -> None:
        """Refuse what contradicts the rest of a composed configuration: keys of other nodes that only this algorithm understands.

        Raises:
            ValueError: names key, value and remedy.
        """

    def scales(self, plan: BatchPlan, step: int = 1) -> Mapping[str, float]:
        """Factors per term that depend on the whole training batch or on the step (1-based); 1 where absent."""
        return {}

    def step_metrics(self, step: int) -> Mapping[str, float]:
        """`fusion/*` of what the algorithm changes over training, declared in `own_metrics`."""
        return {}

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

    # What follows from terms and advantage.

    @property
    def needs_entropy(self) -> bool:
        return any(term.needs_entropy for term in (*self.terms, *self.replay_terms))

    @property
    def weighted_terms(self) -> tuple[str, ...]:
        """Names of the terms whose coefficients the batch plan gives row by row, so that their streams must be shipped."""
        return tuple(term.name for term in self.terms if term.members.row_weight == f"{term.name}_weight")

    @property
    def advantage_terms(self) -> frozenset[str]:
        """Names of the terms that read Â on demonstration tokens."""
        reading = (term for term in self.terms if term.members.tokens in ("demo", "trained"))
        return frozenset(term.name for term in reading if "advantages" in term.loss.streams)

    def token_classes_reading(self, stream: str) -> set[str]:
        """Token classes whose rows need a stream, e.g. the ones for which old log-probabilities must be computed."""
        classes = {"on"} if stream in self.advantage.streams else set()
        for term in self.terms:
            if stream in (*term.loss.streams, *term.members.streams):
                classes.add(term.members.tokens)
            if stream in term.normaliser.streams:
                classes.add(term.normaliser.tokens)
        return classes

    @classmethod
    def released(cls) -> type[Algorithm]:
        """The same class under the name of its published balance, which is configuration: conf/algorithm/NAME_released.yaml."""
        return cls.preset("released", f"{cls.name} with the balance of its published runs.")

    @classmethod
    def preset(cls, suffix: str, documentation: str) -> type[Algorithm]:
        """The same class under the name of another file of settings: conf/algorithm/NAME_SUFFIX.yaml."""
        return type(f"{cls.__name__}{suffix.title()}", (cls,), {"name": f"{cls.name}_{suffix}", "__doc__": documentation})
