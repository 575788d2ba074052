"""Which part of a run a step belongs to, for algorithms that are a sequence of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unify_posttrain.algorithms import Phase
from unify_posttrain.trainer.port import ActorPort


class PhaseClock:
    """Counts steps and validations; a phase ends after its `steps`, or when validation has not risen `stall` times in a row.

    Args:
        phases: at least one; the last has no end.
        own_schedule: the learning rate follows the algorithm's schedule instead of verl's.
    """

    def __init__(self, phases: Sequence[Phase], own_schedule: bool = False) -> None:
        self.phases, self.own_schedule = tuple(phases), own_schedule
        self.index = 0
        self.started = 0  # steps taken before this phase
        self.best: float | None = None
        self.waited = 0

    @property
    def phase(self) -> Phase:
        return self.phases[self.index]

    @property
    def needs_target(self) -> bool:
        """Whether a phase reads demonstrations."""
        return any(phase.algorithm.experience.needs_target for phase in self.phases)

    def due(self, step: int) -> bool:
        """Whether training step `step` (1-based) belongs to the next phase, as far as is known."""
        phase = self.phase
        if self.index + 1 == len(self.phases):
            return False
        if phase.steps is not None:
            return step > self.started + phase.steps
        return phase.stall is not None and self.waited >= phase.stall

    def at(self, step: int) -> Phase:
        """The phase of `step`, this one or the next."""
        return self.phases[self.index + 1] if self.due(step) else self.phase

    def generates_at(self, step: int) -> bool:
        """Whether `step` may want rollouts."""
        experience = self.at(step).algorithm.experience
        return bool(experience.rollouts(True) or experience.rollouts(False))

    def advance(self, step: int) -> bool:
        """Move to the phase of `step`; True if that is a new one."""
        if not self.due(step):
            return False
        self.index, self.started, self.best, self.waited = self.index + 1, step - 1, None, 0
        return True

    def validated(self, accuracy: float) -> None:
        """Tell it the mean validation accuracy of the phase's latest step."""
        if self.best is None or accuracy > self.best:
            self.best, self.waited = accuracy, 0
        else:
            self.waited += 1

    def length(self, total_steps: int) -> int:
        """Training steps of the current phase, for its learning-rate schedule; to the end of the run if its end is open."""
        return max(1, self.phase.steps or total_steps - self.started)

    def announce(self, port: ActorPort, total_steps: int) -> None:
        """Tell the workers which phase begins; a run of one phase on verl's schedule begins as verl began it."""
        if len(self.phases) > 1 or self.own_schedule:
            port.start_phase(self.index, self.length(total_steps))

    @property
    def state(self) -> dict[str, Any]:
        """JSON form."""
        return {"index": self.index, "started": self.started, "best": self.best, "waited": self.waited}

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self.index, self.started = int(state["index"]), int(state["started"])
        self.best, self.waited = state["best"], int(state["waited"])
