"""Schedules of coefficients against the specification's vectors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.algorithms.schedules import chord_mu, warmup_cosine


@pytest.mark.parametrize(
    ("step", "mu"),
    [  # warm 200, decay 400, peak .5, valley .02
        (0, 0.0),
        (100, 0.25),  # .5 * 100/200
        (200, 0.5),
        (300, 0.429706),  # .02 + .48 (1 + cos(pi/4)) / 2 = .02 + .48 * .853553
        (400, 0.26),  # .02 + .48 / 2
        (600, 0.02),
        (601, 0.02),
        (10**6, 0.02),
    ],
)
def test_chord_mu(step: int, mu: float) -> None:
    assert chord_mu(step, warm=200, decay=400, peak=0.5, valley=0.02) == pytest.approx(mu, abs=1e-6)


def test_chord_mu_without_a_phase() -> None:
    assert [chord_mu(step, 0, 2, 0.5, 0.1) for step in range(4)] == pytest.approx([0.5, 0.3, 0.1, 0.1])
    assert [chord_mu(step, 2, 0, 0.5, 0.1) for step in range(4)] == pytest.approx([0.0, 0.25, 0.1, 0.1])
    assert chord_mu(0, 0, 0, 0.5, 0.1) == 0.1


@given(st.integers(0, 300), st.integers(0, 100), st.integers(0, 100), st.floats(0, 1), st.floats(0, 1))
def test_chord_mu_rises_then_falls(step: int, warm: int, decay: int, a: float, b: float) -> None:
    valley, peak = sorted((a, b))
    now, later = (chord_mu(at, warm, decay, peak, valley) for at in (step, step + 1))
    assert 0 <= now <= peak + 1e-12
    if step + 1 < warm:
        assert later >= now
    elif step >= warm:
        assert valley - 1e-12 <= later <= now + 1e-12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"warm": -1}, r"fusion.chord.warm=-1 .*0 or more"),
        ({"decay": -1}, r"fusion.chord.decay=-1 .*0 or more"),
        ({"peak": 1.5}, r"fusion.chord.peak=1.5 .*\[0, 1\]"),
        ({"valley": -0.5}, r"fusion.chord.valley=-0.5 .*\[0, 1\]"),
        ({"step": -1}, r"step=-1.*from 0"),
    ],
)
def test_chord_mu_checks(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chord_mu(**{"step": 0, "warm": 200, "decay": 400, "peak": 0.5, "valley": 0.02, **changed})


@pytest.mark.parametrize(
    ("step", "rate"),
    [  # base 1e-6, least 1e-8 (floor .01), T = 100, from 5 % over int(.1 T) = 10 steps
        (0, 5e-8),
        (1, 1.45e-7),  # .05 + .95/10 = .145
        (10, 1e-6),
        (55, 5.05e-7),  # halfway from 10 to 100: .01 + .99/2 = .505
        (100, 1e-8),
        (101, 1e-8),
        (10**6, 1e-8),
    ],
)
def test_warmup_cosine(step: int, rate: float) -> None:
    factor = warmup_cosine(step, total=100, start=0.05, warmup_ratio=0.1, floor=1e-8 / 1e-6)
    assert 1e-6 * factor == pytest.approx(rate, rel=1e-6)


def test_warmup_cosine_at_the_ends() -> None:
    # int(.1 * 9) = 0 warm-up steps: full rate at once; a warm-up of all steps drops to the floor after them
    assert warmup_cosine(0, 9, 0.05, 0.1, 0.0) == 1.0
    assert [warmup_cosine(step, 4, 0.0, 1.0, 0.1) for step in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 0.1, 0.1])
    assert [warmup_cosine(step, 1, 0.05, 0.0, 0.1) for step in range(2)] == [1.0, 0.1]
    assert {warmup_cosine(step, 7, 1.0, 0.5, 1.0) for step in range(10)} == {1.0}


@given(st.integers(0, 300), st.integers(1, 200), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_warmup_cosine_rises_then_falls(step: int, total: int, start: float, ratio: float, floor: float) -> None:
    now, later = (warmup_cosine(at, total, start, ratio, floor) for at in (step, step + 1))
    warm = int(ratio * total)
    assert min(start, floor) - 1e-12 <= now <= 1 + 1e-12
    if step + 1 < warm:
        assert later >= now
    elif step >= warm:
        assert floor - 1e-12 <= later <= now + 1e-12
    if step >= total:
        assert now == floor


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"total": 0}, r"trainer.total_training_steps=0 .*at least 1"),
        ({"start": -0.1}, r"fusion.lr_schedule.start=-0.1 .*\[0, 1\]"),
        ({"warmup_ratio": 1.2}, r"fusion.lr_schedule.warmup_ratio=1.2 .*\[0, 1\]"),
        ({"floor": 10.0}, r"fusion.lr_schedule.min_lr / lr=10.0 .*\[0, 1\]"),
        ({"step": -1}, r"step=-1.*from 0"),
    ],
)
def test_warmup_cosine_checks(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**{"step": 0, "total": 100, "start": 0.05, "warmup_ratio": 0.1, "floor": 0.01, **changed})
