"""Prefix ratios: the schedules of the specification, and who draws what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience.prefixes import STRATEGIES, PrefixSchedule

# The published runs: one row of the group is the whole demonstration.
HEADLINE = PrefixSchedule(
    strategy="random", n_prefix=1, min_ratio=1.0, max_ratio=1.0, steps=1000, linear_max_ratio=0.8, share=False, seed=0
)
# The first five numbers of default_rng([0, 1, 0]): seed 0, step 1, row 0.
DRAWS = [0.88973879, 0.55713805, 0.80090809, 0.95651382, 0.05861516]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [  # 1000 steps, M = .8; step 0 lies in the first window, 999 in the last
        ("reverse_linear", {0: 0.08, 999: 0.8}),  # 1 * .8/10, 10 * .8/10
        ("linear_max", {0: 0.8, 999: 0.08}),
        ("linear", {0: 0.8, 999: 0.0008}),  # .8 (1 - .999)
        # windows hold both ends and the first counts: 100 is still in window 0, 101 in window 1
        ("reverse_linear", {100: 0.08, 101: 0.16, 900: 0.72, 901: 0.8, 1000: 0.8, 5000: 0.8}),
        ("linear_max", {100: 0.8, 101: 0.72, 900: 0.16, 901: 0.08, 1000: 0.08, 5000: 0.08}),
        ("linear", {500: 0.4, 1000: 0.0, 5000: 0.0}),
    ],
)
def test_upper(strategy: str, expected: dict[int, float]) -> None:
    schedule = replace(HEADLINE, strategy=strategy)
    assert {step: schedule.upper(step) for step in expected} == pytest.approx(expected, abs=1e-9)


def test_upper_of_windows_that_are_no_whole_steps() -> None:
    # 25 steps: windows of 2.5, so 0..2, 3..5, 6, 7, …
    schedule = replace(HEADLINE, strategy="reverse_linear", steps=25, linear_max_ratio=1.0)
    tenths = [round(10 * schedule.upper(step)) for step in range(12)]
    assert tenths == [1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("strategy", ["random", "fixed"])
def test_upper_without_schedule(strategy: str) -> None:
    schedule = replace(HEADLINE, strategy=strategy, min_ratio=0.2, max_ratio=0.7)
    assert schedule.upper(0) == schedule.upper(5000) == 0.7


@pytest.mark.parametrize("share", [False, True])
def test_headline_is_the_whole_demonstration(share: bool) -> None:
    headline = replace(HEADLINE, share=share)
    for row_id in range(200):
        assert headline.ratios(row_id, 17, 8) == (1.0,)
        assert headline.prefix_lengths(row_id, 17, 8, 4242) == (4242,)


def test_ratio_zero_is_a_plain_rollout() -> None:
    assert replace(HEADLINE, n_prefix=-1, min_ratio=0, max_ratio=0).prefix_lengths(3, 1, 4, 100) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("changed", "scale", "offset"),
    [  # global step 1 is step 0 of the schedule
        ({"strategy": "random", "min_ratio": 0.2, "max_ratio": 0.7}, 0.5, 0.2),  # .2 + .5 u
        ({"strategy": "reverse_linear"}, 0.08, 0.0),
        ({"strategy": "linear_max"}, 0.8, 0.0),
    ],
)
def test_row_j_takes_the_jth_number(changed: dict, scale: float, offset: float) -> None:
    expected = [offset + scale * u for u in DRAWS]
    schedule = replace(HEADLINE, **changed)
    assert replace(schedule, n_prefix=-1).ratios(0, 1, 5) == pytest.approx(expected, abs=1e-8)
    assert replace(schedule, n_prefix=3).ratios(0, 1, 5) == pytest.approx(expected[:3], abs=1e-8)
    assert replace(schedule, n_prefix=-1, share=True).ratios(0, 1, 5) == pytest.approx(expected[:1] * 5, abs=1e-8)


def test_prefix_lengths_round_down() -> None:
    # 51 tokens with EOS; q = .8 u = .711791 .445710 .640726 -> 36.30 22.73 32.68
    schedule = replace(HEADLINE, strategy="linear_max", n_prefix=3)
    assert schedule.prefix_lengths(0, 1, 8, 51) == (36, 22, 32)


def test_fixed_spreads_the_rows_over_the_interval() -> None:
    fixed = replace(HEADLINE, strategy="fixed", min_ratio=0.2, max_ratio=0.8)
    assert replace(fixed, n_prefix=4).ratios(5, 9, 8) == pytest.approx((0.2, 0.4, 0.6, 0.8))  # .2 + j .6/3
    assert replace(fixed, n_prefix=-1).ratios(5, 9, 3) == pytest.approx((0.2, 0.5, 0.8))  # all three rows of the group
    assert replace(fixed, n_prefix=1).ratios(5, 9, 8) == (0.2,)


@given(st.floats(0, 1), st.integers(2, 64), st.integers(1, 20000))
def test_fixed_ends_with_the_whole_demonstration(low: float, rows: int, tokens: int) -> None:
    fixed = replace(HEADLINE, strategy="fixed", n_prefix=-1, min_ratio=low, max_ratio=1.0)
    assert fixed.prefix_lengths(0, 1, rows, tokens)[-1] == tokens


def test_linear_is_the_same_for_all_rows() -> None:
    linear = replace(HEADLINE, strategy="linear", n_prefix=2)
    assert linear.ratios(5, 501, 8) == pytest.approx((0.4, 0.4))  # step 500 of 1000: .8 * .5
    assert linear.ratios(5, 501, 8) == linear.ratios(6, 501, 8) == replace(linear, share=True).ratios(5, 501, 8)


def test_draws_depend_on_seed_step_and_row() -> None:
    schedule = replace(HEADLINE, min_ratio=0.0, n_prefix=-1)
    here = schedule.ratios(5, 9, 8)
    assert here == replace(schedule).ratios(5, 9, 8)
    assert len(set(here)) == 8
    others = [schedule.ratios(6, 9, 8), schedule.ratios(5, 10, 8), replace(schedule, seed=1).ratios(5, 9, 8)]
    assert not set(here) & {ratio for other in others for ratio in other}


def test_draws_are_uniform() -> None:
    # U(.2, .7) over 4000 prompts: mean .45, standard error .5/sqrt(12 * 4000) = .00228; a fifth lies below .3
    schedule = replace(HEADLINE, min_ratio=0.2, max_ratio=0.7)
    drawn = [schedule.ratios(row_id, 1, 8)[0] for row_id in range(4000)]
    assert sum(drawn) / 4000 == pytest.approx(0.45, abs=4 * 0.00228)
    assert sum(ratio < 0.3 for ratio in drawn) / 4000 == pytest.approx(0.2, abs=4 * 0.0063)  # sqrt(.2 * .8 / 4000)


@given(
    st.sampled_from(STRATEGIES),
    st.integers(1, 8) | st.just(-1),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 500),
    st.floats(0, 1),
    st.booleans(),
    st.integers(1, 600),
    st.integers(1, 9000),
)
def test_ratios_stay_inside(
    strategy: str, n_prefix: int, ends: tuple, steps: int, most: float, share: bool, global_step: int, tokens: int
) -> None:
    low, high = sorted(ends)
    schedule = PrefixSchedule(strategy, n_prefix, low, high, steps, most, share and strategy != "fixed", seed=3)
    ratios = schedule.ratios(11, global_step, 8)
    lengths = schedule.prefix_lengths(11, global_step, 8, tokens)
    lower = {"random": low, "fixed": low, "linear": schedule.upper(global_step - 1)}.get(strategy, 0.0)
    assert len(ratios) == len(lengths) == (8 if n_prefix == -1 else n_prefix)
    assert all(lower - 1e-12 <= ratio <= schedule.upper(global_step - 1) + 1e-12 for ratio in ratios)
    assert lengths == tuple(int(tokens * ratio) for ratio in ratios)
    assert all(0 <= length <= tokens for length in lengths)
    if schedule.share:
        assert len(set(ratios)) == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "linear_variance"}, r"fusion.prefix.strategy='linear_variance'.*random, reverse_linear"),
        ({"n_prefix": 0}, r"fusion.prefix.n_prefix=0 .*-1 for all"),
        ({"n_prefix": -2}, r"fusion.prefix.n_prefix=-2"),
        ({"n_prefix": True}, r"fusion.prefix.n_prefix=True"),
        ({"n_prefix": 1.5}, r"fusion.prefix.n_prefix=1.5"),
        ({"min_ratio": -0.1}, r"fusion.prefix.min_ratio=-0.1 .*\[0, 1\]"),
        ({"max_ratio": 1.1}, r"fusion.prefix.max_ratio=1.1 .*\[0, 1\]"),
        ({"linear_max_ratio": 2}, r"fusion.prefix.linear_max_ratio=2 .*\[0, 1\]"),
        ({"max_ratio": 0.5}, r"fusion.prefix.min_ratio=1.0 exceeds fusion.prefix.max_ratio=0.5"),
        ({"steps": 0}, r"fusion.prefix.steps=0 .*at least 1"),
        ({"steps": 10.0}, r"fusion.prefix.steps=10.0 .*integer"),
        ({"share": "group"}, r"fusion.prefix.share='group'.*true or false"),
        ({"share": True, "strategy": "fixed"}, r"fusion.prefix.share=true.*fixed.*share=false"),
    ],
)
def test_settings_are_checked(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(HEADLINE, **changed)


def test_more_prefixes_than_rows() -> None:
    with pytest.raises(ValueError, match=r"fusion.prefix.n_prefix=9 exceeds actor_rollout_ref.rollout.n=8"):
        replace(HEADLINE, n_prefix=9).ratios(0, 1, 8)
    assert len(replace(HEADLINE, n_prefix=8).ratios(0, 1, 8)) == 8


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_steps_count_from_one(strategy: str) -> None:
    with pytest.raises(ValueError, match="counted from 1"):
        replace(HEADLINE, strategy=strategy).ratios(0, 0, 8)
