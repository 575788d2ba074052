"""SFT, then RL, in one run: the two-stage pipeline as a first-class baseline (corrected as in arXiv 2604.23747).

    phase 1: L_SFT, for `steps` training steps or until validation stalls;    phase 2: L_RL with a fresh optimizer and schedule

Any algorithms can follow each other: `fusion.phases` lists {algorithm, steps | stall, lr, fusion: {...}, actor: {...}}; the last
one runs to the end. A name means its conf file, as everywhere: `unify_posttrain.phase_files` has put what `algorithm=NAME`
composes to, changed by the phase's own keys, into each entry before this class reads it. Weights are kept at a boundary; the KL
reference of a later phase, if it has one, is the model the run began with.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from unify_posttrain.algorithms.base import Algorithm, Phase
from unify_posttrain.algorithms.settings import FusionConfig, Settings
from unify_posttrain.experience.advantages import Advantage
from unify_posttrain.experience.rules import Experience
from unify_posttrain.objective import Term

COMPOSED = ("fusion", "actor", "optim", "mini_batches", "grad_clip", "filter_groups", "kept")


class SFTThenRL(Algorithm):
    """Demonstrations, then rollouts: `fusion.phases`. `terms`, `advantage` and `experience` are the first phase's."""

    name = "sft_then_rl"
    paper = "arXiv 2604.23747"
    nodes: ClassVar[Mapping[str, type]] = {"phases": list}
    single_phase = True

    def check(self) -> None:
        """
        Raises:
            ValueError: fewer than two phases, one without an end or with two, or an algorithm that cannot be one.
        """
        entries = list(self.fusion.own["phases"] or ())
        if len(entries) < 2:
            raise ValueError(f"fusion.phases has {len(entries)} entries; give two or more, or choose the algorithm itself")
        self._phases = tuple(self._phase(number, dict(entry), len(entries)) for number, entry in enumerate(entries))
        for number, phase in enumerate(self._phases):
            self._check_reading(f"fusion.phases[{number}].fusion", phase.algorithm.fusion)

    def _check_reading(self, path: str, theirs: FusionConfig) -> None:
        """Targets are read by one reader in the whole run: a phase cannot have it read them otherwise."""
        ours = self.fusion
        for key in ("overlong", "select", "max_length"):
            if getattr(theirs.demo, key) != getattr(ours.demo, key):
                raise ValueError(
                    f"{path}.demo.{key}={getattr(theirs.demo, key)}: it holds for the whole run, which has "
                    f"{getattr(ours.demo, key)}; set fusion.demo.{key} outside of the phases"
                )
        if (theirs.shaping.name == "target_prob") != (ours.shaping.name == "target_prob"):
            raise ValueError(
                f"{path}.shaping.name={theirs.shaping.name}: probabilities of targets are read in the whole run or not at all, and "
                f"the run has {ours.shaping.name}; set fusion.shaping.name outside of the phases too"
            )

    def _phase(self, number: int, entry: Mapping[str, Any], total: int) -> Phase:
        from unify_posttrain.algorithms import ALGORITHMS  # the registry holds this class too

        path = f"fusion.phases[{number}]"
        name = entry.get("algorithm")
        if name not in ALGORITHMS or ALGORITHMS[name].single_phase:
            known = sorted(key for key, cls in ALGORITHMS.items() if not cls.single_phase)
            raise ValueError(f"{path}.algorithm={name!r}; choose one of {', '.join(known)}")
        steps, stall, last = entry.get("steps"), entry.get("stall"), number == total - 1
        if last and (steps or stall):
            raise ValueError(f"{path} is the last phase and runs to trainer.total_training_steps; remove its steps and stall")
        if not last and (steps is None) == (stall is None):
            raise ValueError(f"{path} must say when it ends: either steps or stall (validations without a rise)")
        if any(value is not None and value < 1 for value in (steps, stall)) or not (entry.get("lr") or 1) > 0:
            shown = {key: entry.get(key) for key in ("steps", "stall", "lr") if key in entry}
            raise ValueError(f"{path}: steps, stall and lr must be positive, not {shown}")
        absent = [key for key in COMPOSED if key not in entry]
        if absent:
            raise ValueError(
                f"{path} was not composed (it has no {absent[0]}): take the configuration from "
                "unify_posttrain.config.compose_config, or pass it through unify_posttrain.config.expand"
            )
        settings = Settings.from_actor({**entry["actor"], "fusion": entry["fusion"]})
        return Phase(
            ALGORITHMS[name](settings),
            steps,
            stall,
            optim=dict(entry["optim"]),
            mini_batches=entry["mini_batches"],
            grad_clip=entry["grad_clip"],
            filter_groups=entry["filter_groups"],
            kept=tuple((each[0], each[1], each[2]) for each in entry["kept"]),
        )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self._phases

    @property
    def terms(self) -> tuple[Term, ...]:
        return self._phases[0].algorithm.terms

    @property
    def advantage(self) -> Advantage:
        return self._phases[0].algorithm.advantage

    @property
    def experience(self) -> Experience:
        return self._phases[0].algorithm.experience
