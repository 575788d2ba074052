"""The clock of a run's phases: where each step belongs, and that a resume at any step belongs there too."""

from __future__ import annotations

import json

import pytest

from unify_posttrain.algorithms import Phase
from unify_posttrain.trainer.phases import PhaseClock


def phases(*ends: dict) -> list[Phase]:
    """Phases whose algorithm is only a letter; the last has no end."""
    return [Phase("abcdef"[number], **end) for number, end in enumerate((*ends, {}))]


def run(clock: PhaseClock, accuracies: dict[int, float], first: int, last: int) -> dict[int, str]:
    """The algorithm of every step, as the trainer asks: advance before the step, validate after its checkpoint."""
    trained = {}
    for step in range(first, last + 1):
        before, due, upcoming = clock.phase, clock.due(step), clock.at(step)
        assert clock.advance(step) == due == (clock.phase is not before)
        assert clock.phase is upcoming
        assert not clock.due(step) and not clock.advance(step), "asking twice changes nothing"
        trained[step] = clock.phase.algorithm
        if step in accuracies:
            clock.validated(accuracies[step])
    return trained


def text(trained: dict[int, str]) -> str:
    return "".join(trained.values())


def test_phases_of_given_lengths() -> None:
    assert text(run(PhaseClock(phases({"steps": 3}, {"steps": 2})), {}, 1, 9)) == "aaabbcccc"


def test_one_phase_never_ends() -> None:
    clock = PhaseClock(phases())
    assert text(run(clock, {1: 0.5, 2: 0.1, 3: 0.1}, 1, 5)) == "aaaaa"
    assert clock.index == 0


@pytest.mark.parametrize(
    ("stall", "accuracies", "expected"),
    [
        (1, {2: 0.1, 4: 0.2, 6: 0.2}, "aaaaaabb"),  # the third is no rise
        (2, {2: 0.1, 4: 0.2, 6: 0.2}, "aaaaaaaa"),
        (2, {1: 0.3, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.1}, "aaaaabbb"),  # a new best starts the count again
        (1, {}, "aaaaaaaa"),  # without validation it cannot stall
        (1, {1: 0.0, 2: 0.0}, "aabbbbbb"),
    ],
)
def test_a_phase_ends_when_validation_stalls(stall: int, accuracies: dict, expected: str) -> None:
    assert text(run(PhaseClock(phases({"stall": stall})), accuracies, 1, 8)) == expected


def test_every_phase_begins_its_own_count() -> None:
    # a ends after 0.5, 0.5; b's first validation, though lower, is b's best so far; it ends after the next two
    accuracies = {1: 0.5, 2: 0.5, 3: 0.2, 4: 0.1, 5: 0.1, 6: 0.9}
    assert text(run(PhaseClock(phases({"stall": 1}, {"stall": 2})), accuracies, 1, 8)) == "aabbbccc"


def test_lengths_for_the_schedules() -> None:
    clock = PhaseClock(phases({"steps": 3}, {"stall": 1}))
    assert clock.length(10) == 3
    run(clock, {}, 1, 4)
    assert clock.length(10) == 7  # its end is open: to the end of the run
    clock.validated(0.5)
    clock.validated(0.5)
    run(clock, {}, 5, 5)
    assert (clock.phase.algorithm, clock.length(10)) == ("c", 6)  # steps 5 to 10
    assert PhaseClock(phases()).length(10) == 10
    late = PhaseClock(phases({"steps": 10}))
    run(late, {}, 1, 11)
    assert late.length(10) == 1  # a schedule needs a length


@pytest.mark.parametrize("ends", [({"steps": 3}, {"steps": 2}), ({"stall": 2}, {"steps": 3}), ({"steps": 2}, {"stall": 1})])
def test_a_resume_at_any_step_goes_on_as_if_nothing_had_happened(ends: tuple) -> None:
    accuracies = {2: 0.5, 4: 0.4, 5: 0.4, 6: 0.6, 7: 0.6, 9: 0.7}
    whole = run(PhaseClock(phases(*ends)), accuracies, 1, 12)
    assert len(set(whole.values())) == 3
    for stopped in range(12):
        clock, resumed = PhaseClock(phases(*ends)), PhaseClock(phases(*ends))
        before = run(clock, accuracies, 1, stopped)
        resumed.state = json.loads(json.dumps(clock.state))
        assert resumed.state == clock.state and resumed.length(12) == clock.length(12)
        assert before | run(resumed, accuracies, stopped + 1, 12) == whole


def test_a_resume_from_before_the_validation_of_its_step_only_forgets_that_one() -> None:
    """The checkpoint is written before its step is validated; the state is rewritten afterwards, unless the run is killed."""
    clock, resumed = PhaseClock(phases({"stall": 1})), PhaseClock(phases({"stall": 1}))
    run(clock, {1: 0.5}, 1, 2)
    resumed.state = clock.state
    clock.validated(0.5)
    assert clock.due(3) and not resumed.due(3)
