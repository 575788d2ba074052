"""SFT, then RL, in one run: the two-stage pipeline as a first-class baseline (corrected as in arXiv 2604.23747).

    phase 1: L_SFT, for `steps` training steps or until validation stalls;    phase 2: L_RL with a fresh optimizer and schedule

Any algorithms can follow each other: `fusion.phases` lists {algorithm, steps | stall, lr, fusion: {...}, actor: {...}}; the last
one runs to the end. Weights are kept at a boundary; the KL reference of a later phase, if it has one, is the model the run began
with.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from unify_posttrain.algorithms.base import Algorithm, Phase
from unify_posttrain.algorithms.settings import FusionConfig
from unify_posttrain.experience.rules import Experience
from unify_posttrain.objective import Term

KEYS = ("algorithm", "steps", "stall", "lr", "fusion", "actor")


def _once_per_run(phase: FusionConfig, run: FusionConfig) -> Iterator[tuple[str, Any, Any]]:
    """(key, the phase's, the run's) of settings that data and draws are read with once."""
    for key in ("seed", "group_size", "horizon"):
        yield key, getattr(phase, key), getattr(run, key)
    for key in ("overlong", "select", "require_verified", "max_length"):
        yield f"demo.{key}", getattr(phase.demo, key), getattr(run.demo, key)
    yield "shaping.name", phase.shaping.name == "target_prob", run.shaping.name == "target_prob"


class SFTThenRL(Algorithm):
    """A sequence of algorithms; `terms` and `experience` are the first one's."""

    name = "sft_then_rl"
    single_phase = True
    paper = "arXiv 2604.23747"

    def check(self) -> None:
        if len(self.fusion.phases) < 2:
            raise ValueError(
                f"fusion.phases has {len(self.fusion.phases)} entries; give two or more, or choose the algorithm itself"
            )
        self._phases = tuple(self._phase(number, dict(entry)) for number, entry in enumerate(self.fusion.phases))

    def _phase(self, number: int, entry: Mapping[str, Any]) -> Phase:
        from unify_posttrain.algorithms import ALGORITHMS  # the registry holds this class too

        path = f"fusion.phases[{number}]"
        for key in entry:
            if key not in KEYS:
                raise ValueError(f"{path}.{key} is unknown; known keys: {', '.join(KEYS)}")
        name = entry.get("algorithm")
        if name not in ALGORITHMS or ALGORITHMS[name].single_phase:
            known = sorted(key for key, cls in ALGORITHMS.items() if not cls.single_phase)
            raise ValueError(f"{path}.algorithm={name!r}; choose one of {', '.join(known)}")
        steps, stall, last = entry.get("steps"), entry.get("stall"), number == len(self.fusion.phases) - 1
        if last and (steps or stall):
            raise ValueError(f"{path} is the last phase and runs to trainer.total_training_steps; remove its steps and stall")
        if not last and (steps is None) == (stall is None):
            raise ValueError(f"{path} must say when it ends: either steps or stall (validations without a rise)")
        if any(value is not None and value < 1 for value in (steps, stall)) or not (entry.get("lr") or 1) > 0:
            raise ValueError(f"{path}: steps, stall and lr must be positive, not {dict(entry)}")
        fusion = {**(entry.get("fusion") or {}), "algorithm": name, "phases": ()}
        settings = self.settings.changed(fusion, entry.get("actor") or {}, path)
        for key, value, whole in _once_per_run(settings.fusion, self.fusion):
            if value != whole:
                raise ValueError(f"{path}.fusion.{key}={value}: it holds for the whole run, which has {whole}; set fusion.{key}")
        return Phase(ALGORITHMS[name](settings), steps, stall, entry.get("lr"))

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self._phases

    @property
    def terms(self) -> tuple[Term, ...]:
        return self._phases[0].algorithm.terms

    @property
    def experience(self) -> Experience:
        return self._phases[0].algorithm.experience
