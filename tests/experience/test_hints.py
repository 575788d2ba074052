"""Hints: probabilities, cut points and draws of the specification; fitting by whole buckets."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience.hints import HintSchedule, cut_points, fit_hint, hint_probability

UFT = HintSchedule(mode="uft", buckets=5, hint_steps=300, p_low=0.05, p_high=0.95, seed=0)


@pytest.mark.parametrize(
    ("step", "p"),
    [  # .05 + .9 (1 + cos(pi t / 300)) / 2
        (1, 0.949975),  # cos .010472 = .9999452: .05 + .9 * .9999726
        (100, 0.725),  # cos = .5: .05 + .9 * .75
        (150, 0.5),  # cos = 0: .05 + .9 * .5
        (300, 0.05),  # cos = -1
        (301, 0.0),
    ],
)
def test_probability(step: int, p: float) -> None:
    assert hint_probability(step, 300, 0.05, 0.95) == pytest.approx(p, abs=1e-6)


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
def test_probability_falls_from_high_to_low(step: int, hint_steps: int, a: float, b: float) -> None:
    low, high = sorted((a, b))
    now, later = (hint_probability(t, hint_steps, low, high) for t in (step, step + 1))
    assert later <= now + 1e-12
    assert now == 0 if step > hint_steps else low - 1e-12 <= now <= high + 1e-12


def test_steps_count_from_one() -> None:
    with pytest.raises(ValueError, match=r"step=0.*counted from 1"):
        hint_probability(0, 300, 0.05, 0.95)


@pytest.mark.parametrize(
    ("sentences", "buckets", "cuts"),
    [
        (3, 5, [0, 1, 2, 3]),  # three buckets
        (8, 5, [0, 2, 3, 5, 6, 8]),  # 1.6, 3.2, 4.8, 6.4
        (12, 5, [0, 2, 5, 7, 10, 12]),  # 2.4, 4.8, 7.2, 9.6
        (5, 2, [0, 2, 5]),  # 2.5: a tie goes to the even number
        (7, 2, [0, 4, 7]),  # 3.5
        (1, 5, [0, 1]),
        (0, 5, [0]),
    ],
)
def test_cut_points(sentences: int, buckets: int, cuts: list[int]) -> None:
    assert cut_points(sentences, buckets) == cuts


@given(st.integers(1, 500), st.integers(1, 40))
def test_cut_points_are_spread_evenly(sentences: int, buckets: int) -> None:
    cuts, num = cut_points(sentences, buckets), min(sentences, buckets)
    assert len(cuts) == num + 1
    assert (cuts[0], cuts[-1]) == (0, sentences)
    assert all(a < b for a, b in pairwise(cuts))
    assert all(abs(cut - Fraction(j * sentences, num)) <= Fraction(1, 2) for j, cut in enumerate(cuts))


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "row_id", "bucket", "sentences"),
    [  # num = 5, seed 0; cuts of 8 sentences: 0 2 3 5 6 8
        (1, 0, 4, 6),  # .890 .557 .801 .957 .059, four below .949975
        (150, 7, 3, 5),  # .136 .109 .910 .762 .400, three below .5
        (250, 11, 1, 2),  # .588 .001 .694 .196 .513, one below .110288
        (301, 11, 0, 0),
    ],
)
def test_uft_draws(step: int, row_id: int, bucket: int, sentences: int) -> None:
    assert UFT.bucket(row_id, step, 8) == bucket
    assert UFT.sentences(row_id, step, 8) == sentences


def test_uft_is_binomial_in_the_buckets() -> None:
    # t = 100: p = .725; 3 buckets, 4000 prompts: mean 2.175, standard error sqrt(3 * .725 * .275 / 4000) = .0122
    drawn = [UFT.bucket(row_id, 100, 3) for row_id in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(2.175, abs=4 * 0.0122)
    # no bucket: .275^3 = .0208 of the prompts, standard error .00226
    assert drawn.count(0) / 4000 == pytest.approx(0.0208, abs=4 * 0.00226)


def test_certain_and_impossible_buckets() -> None:
    assert {replace(UFT, p_low=1, p_high=1).bucket(row_id, 7, 9) for row_id in range(50)} == {5}
    assert {replace(UFT, p_low=0, p_high=0).bucket(row_id, 7, 9) for row_id in range(50)} == {0}


def test_draws_depend_on_seed_step_and_row() -> None:
    def drawn(schedule: HintSchedule, step: int, first: int) -> list[int]:
        return [schedule.bucket(first + offset, step, 20) for offset in range(40)]

    for mode in ("uft", "r3"):
        schedule = replace(UFT, mode=mode)
        here = drawn(schedule, 150, 0)
        assert here == drawn(replace(schedule), 150, 0)
        assert here != drawn(schedule, 151, 0)
        assert here != drawn(schedule, 150, 1)
        assert here != drawn(replace(schedule, seed=1), 150, 0)


@pytest.mark.parametrize(
    ("sentences", "hint_steps", "buckets"),
    [  # a bucket less every max(1, hint_steps // (num + 1)) steps
        (8, 300, {1: 5, 49: 5, 50: 4, 100: 3, 249: 1, 250: 0, 500: 0}),  # num 5: 300 // 6 = 50
        (3, 300, {1: 3, 74: 3, 75: 2, 224: 1, 225: 0}),  # num 3: 300 // 4 = 75
        (8, 4, {1: 4, 2: 3, 5: 0, 6: 0}),  # num 5: 4 // 6 = 0, so every step
    ],
)
def test_stage(sentences: int, hint_steps: int, buckets: dict[int, int]) -> None:
    stage = replace(UFT, mode="stage", hint_steps=hint_steps)
    assert {step: stage.bucket(0, step, sentences) for step in buckets} == buckets
    assert stage.bucket(123, 1, sentences) == stage.bucket(0, 1, sentences)


@pytest.mark.parametrize("step", [1, 1000])
def test_r3_is_uniform_at_every_step(step: int) -> None:
    # 0..4 of 4 buckets over 3000 prompts: 600 each, standard deviation sqrt(3000 * .2 * .8) = 21.9
    r3 = replace(UFT, mode="r3")
    drawn = [r3.bucket(row_id, step, 4) for row_id in range(3000)]
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert all(abs(drawn.count(bucket) - 600) < 4 * 21.9 for bucket in range(5))


def test_r3_draw() -> None:
    # the first integers(6) of default_rng([0, 1, 0]); cuts of 8 sentences: 0 2 3 5 6 8
    assert replace(UFT, mode="r3").bucket(0, 1, 8) == 3
    assert replace(UFT, mode="r3").sentences(0, 1, 8) == 5


@given(st.sampled_from(["uft", "stage", "r3", "none"]), st.integers(0, 10**6), st.integers(1, 400), st.integers(0, 30))
def test_every_hint_ends_at_a_cut(mode: str, row_id: int, step: int, sentences: int) -> None:
    schedule = replace(UFT, mode=mode)
    bucket, hinted = schedule.bucket(row_id, step, sentences), schedule.sentences(row_id, step, sentences)
    assert 0 <= bucket <= min(5, sentences)
    assert hinted == cut_points(sentences, 5)[bucket]
    if mode == "none" or sentences == 0 or (mode == "uft" and step > 300):
        assert bucket == hinted == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "cosine"}, r"fusion.uft.hint_mode='cosine'.*uft, stage, r3, none"),
        ({"buckets": 0}, r"fusion.uft.buckets=0 .*at least 1"),
        ({"buckets": 2.5}, r"fusion.uft.buckets=2.5 .*integer"),
        ({"buckets": True}, r"fusion.uft.buckets=True .*integer"),
        ({"hint_steps": 0}, r"fusion.uft.T_hint=0 .*fusion.uft.hint_mode=none"),
        ({"p_low": -0.1}, r"fusion.uft.p_low=-0.1 .*\[0, 1\]"),
        ({"p_high": 1.1}, r"fusion.uft.p_high=1.1 .*\[0, 1\]"),
        ({"p_high": float("nan")}, r"fusion.uft.p_high=nan"),
        ({"p_low": 0.6, "p_high": 0.5}, r"fusion.uft.p_low=0.6 exceeds fusion.uft.p_high=0.5"),
    ],
)
def test_settings_are_checked(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(UFT, **changed)


# --- fitting ---------------------------------------------------------------------------------------------------------

CUTS = [0, 2, 3, 5]


def three_per_sentence(sentences: int) -> list[int]:
    return list(range(100, 100 + 3 * sentences))


@pytest.mark.parametrize(
    ("bucket", "room", "length", "moved"),
    [  # hints of 0, 6, 9, 15 tokens
        (3, 15, 15, 0),
        (3, 14, 9, 1),  # 12 tokens, four sentences, would fit but end inside the bucket
        (3, 6, 6, 2),
        (3, 5, 0, 3),
        (2, 100, 9, 0),  # never more than drawn
        (1, 5, 0, 1),
        (0, 0, 0, 0),
    ],
)
def test_fit(bucket: int, room: int, length: int, moved: int) -> None:
    assert fit_hint(bucket, CUTS, three_per_sentence, room) == (list(range(100, 100 + length)), moved)


def test_the_empty_hint_is_not_tokenised() -> None:
    def refuse(sentences: int) -> list[int]:
        raise AssertionError("asked for tokens")

    assert fit_hint(0, [0], refuse, 10) == ([], 0)


def test_no_room_for_the_continuation() -> None:
    with pytest.raises(ValueError, match=r"fusion.uft.max_new_tokens is 3 tokens more than data.max_response_length"):
        fit_hint(0, [0], three_per_sentence, -3)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 6), st.integers(0, 60), st.data())
def test_fit_is_the_largest_bucket_that_fits(sizes: list[int], buckets: int, room: int, data: st.DataObject) -> None:
    cuts = cut_points(len(sizes), buckets)
    drawn = data.draw(st.integers(0, len(cuts) - 1))
    ids, moved = fit_hint(drawn, cuts, lambda sentences: [7] * sum(sizes[:sentences]), room)
    fitting = [bucket for bucket in range(drawn + 1) if sum(sizes[: cuts[bucket]]) <= room]
    assert drawn - moved == max(fitting)
    assert len(ids) == sum(sizes[: cuts[drawn - moved]])
