"""Advantages of mixed groups: verl's formula where it stands, ours where it is replaced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience import BatchPlan, GroupPlan, gate, override_advantages
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, ROLLOUT
from unify_posttrain.experience.rules import DemonstrationInGroup, Group

EPSILON = 1e-6


def mixed_grpo(scores: list[float], with_std: bool) -> np.ndarray:
    """GRPO over one group as verl computes it: unbiased deviation + 1e-6; a group of one has mean 0 and deviation 1."""
    values = np.array(scores)
    mean, deviation = (0.0, 1.0) if len(values) < 2 else (values.mean(), values.std(ddof=1))
    return (values - mean) / (deviation + EPSILON) if with_std else values - mean


def luffy_group(k: int, n_on: int = 7) -> tuple[BatchPlan, np.ndarray, np.ndarray, np.ndarray]:
    """One solved demonstration in row 0 and n_on rollouts, k of them solved."""
    plan = DemonstrationInGroup(n_on + 1).plan([Group("u", k, n_on, True, True)])
    kinds = np.array([DEMONSTRATION] + [ROLLOUT] * n_on)
    scores = np.array([1.0] * (1 + k) + [0.0] * (n_on - k))
    return plan, kinds, np.array(["u"] * (n_on + 1), dtype=object), scores


def combined(
    plan: BatchPlan, kinds: np.ndarray, uids: np.ndarray, scores: np.ndarray, with_std: bool, **keys: object
) -> np.ndarray:
    """What the trainer uses: verl's mixed group, replaced where override_advantages gives a value."""
    keys.setdefault("dropped", {})
    own = override_advantages(plan, kinds, uids, scores, normalise_by_std=with_std, **keys)
    verls = np.zeros(len(scores))
    for uid in dict.fromkeys(uids):
        verls[uids == uid] = mixed_grpo(scores[uids == uid].tolist(), with_std)
    return np.where(np.isnan(own), verls, own)


@pytest.mark.parametrize(
    ("k", "baseline", "with_std", "demo", "wrong"),
    [
        (2, "group", False, 0.625, -0.375),  # 1 - 3/8, -3/8
        (2, "group", True, 1.207612, -0.724567),  # variance (3 - 9/8)/7 = 15/56, / .517549
        (2, "on", False, 0.714286, -0.285714),  # 1 - 2/7, -2/7
        (2, "on", True, 1.463847, -0.585539),  # variance (2 - 4/7)/6 = 5/21, / (.487950 + 1e-6)
        (0, "group", False, 0.875, -0.125),
        (0, "group", True, 2.474867, -0.353552),  # variance (1 - 1/8)/7 = 1/8
        (0, "on", False, 1.0, 0.0),
        (0, "on", True, 0.999999, 0.0),  # deviation 0 counts as 1: 1/(1 + 1e-6)
        (7, "group", False, 0.0, None),
        (7, "group", True, 0.0, None),
    ],
)
def test_one_demonstration_and_seven_rollouts(k: int, baseline: str, with_std: bool, demo: float, wrong: float | None) -> None:
    values = combined(*luffy_group(k), with_std, baseline=baseline)
    assert values[0] == pytest.approx(demo, abs=1e-6)
    assert values[1 : 1 + k] == pytest.approx([demo] * k, abs=1e-6)  # a solved rollout is worth as much
    if wrong is not None:
        assert values[-1] == pytest.approx(wrong, abs=1e-6)


def test_group_baseline_leaves_verls_values() -> None:
    assert np.isnan(override_advantages(*luffy_group(2), {}, baseline="group")).all()


def test_a_rollout_that_continues_a_prefix_is_no_on_policy_row_to_the_on_baseline() -> None:
    # scores 1 (after a prefix), 1, 0, 0: mean 1/3 and variance ((2/3)^2 + 2 (1/3)^2)/2 = 1/3 of the last three
    plan = DemonstrationInGroup(4).plan([Group("u", 2, 4, False)])
    arguments = (plan, np.array([ROLLOUT] * 4), np.array(["u"] * 4, dtype=object), np.array([1.0, 1, 0, 0]))
    prefixed = np.array([True, False, False, False])
    assert combined(*arguments, False, baseline="on", prefixed=prefixed) == pytest.approx([2 / 3, 2 / 3, -1 / 3, -1 / 3])
    with_std = combined(*arguments, True, baseline="on", prefixed=prefixed)
    assert with_std == pytest.approx(np.array([2, 2, -1, -1]) / 3 / (1 / 3) ** 0.5, abs=1e-5)
    assert combined(*arguments, False, baseline="on") == pytest.approx([0.5, 0.5, -0.5, -0.5])
    assert np.isnan(override_advantages(*arguments, {}, baseline="group", prefixed=prefixed)).all()  # verl's mixed group
    everything = np.ones(4, dtype=bool)
    assert combined(*arguments, False, baseline="on", prefixed=everything) == pytest.approx([1, 1, 0, 0])  # mean 0 of none


def test_on_baseline_of_a_single_rollout_and_of_none() -> None:
    # one rollout: mean 0, deviation 1, as in verl's group of one; none: the same for the demonstration
    assert combined(*luffy_group(0, n_on=1), True, baseline="on") == pytest.approx([0.999999, 0.0], abs=1e-9)
    assert combined(*luffy_group(1, n_on=1), False, baseline="on") == pytest.approx([1.0, 1.0])
    assert combined(*luffy_group(0, n_on=0), False, baseline="on") == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("off_advantage", "expected"),
    [("reward", 1.0), ("group", 0.625)],
)
def test_middle_zone(off_advantage: str, expected: float) -> None:
    # the demonstration scores 1; its n = 7 dropped rollouts scored 1, 1, 0, 0, 0, 0, 0: group is 1 - 3/8
    plan = gate([2], 7, switch_gate=0, switch_gate_off=2, uids=["u"])
    dropped = {"u": np.array([1.0, 1, 0, 0, 0, 0, 0])}
    for with_std in (False, True):  # a rule of its own: no deviation in either case
        values = override_advantages(
            plan,
            np.array([DEMONSTRATION]),
            np.array(["u"], dtype=object),
            np.array([1.0]),
            dropped,
            off_advantage=off_advantage,
            normalise_by_std=with_std,
        )
        assert values == pytest.approx([expected])


def test_middle_zone_uses_the_demonstrations_own_score() -> None:
    plan = gate([1], 2, switch_gate=0, switch_gate_off=1, uids=["u"])
    arguments = (
        plan,
        np.array([DEMONSTRATION]),
        np.array(["u"], dtype=object),
        np.array([0.5]),
        {"u": np.array([1.0, 0.0])},
    )
    assert override_advantages(*arguments, off_advantage="reward") == pytest.approx([0.5])
    assert override_advantages(*arguments, off_advantage="group") == pytest.approx([0.0])  # .5 - (1 + 0 + .5)/3


def test_padding_and_demonstrations_without_off_policy_term_are_zero() -> None:
    plan = gate([0, 1], 2, switch_gate=0, uids=["a", "b"])
    kinds = np.array([DEMONSTRATION, ROLLOUT, PADDING, ROLLOUT])
    uids = np.array(["a", "b", "padding-0", "b"], dtype=object)
    values = override_advantages(plan, kinds, uids, np.array([1.0, 1.0, 9.0, 0.0]), {"a": np.zeros(2)})
    assert values[[0, 2]].tolist() == [0.0, 0.0]
    assert np.isnan(values[[1, 3]]).all()


def test_soft_demonstration_is_in_the_group_if_its_term_has_weight() -> None:
    def plan(off: float) -> BatchPlan:
        return BatchPlan((GroupPlan("u", 1, 2, 2, 1, 1.0, off, 0.5),))

    kinds, uids = np.array([DEMONSTRATION, ROLLOUT, ROLLOUT]), np.array(["u"] * 3, dtype=object)
    scores = np.array([1.0, 1.0, 0.0])
    assert np.isnan(override_advantages(plan(0.25), kinds, uids, scores, {})).all()
    values = override_advantages(plan(0.0), kinds, uids, scores, {})
    assert values[0] == 0.0
    assert np.isnan(values[1:]).all()


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.integers(0, 5),
    st.booleans(),
    st.sampled_from(["group", "on"]),
)
def test_reinforced_groups_do_not_depend_on_demonstrations_or_on_other_prompts(
    successes: list[int], pick: int, with_std: bool, baseline: str
) -> None:
    """Invariant 3 of the specification, for the switch."""
    pick %= len(successes)
    uids = [f"u{i}" for i in range(len(successes))]
    plan = gate(successes, 4, switch_gate=0, uids=uids)
    kinds, names, scores = [], [], []
    for group in plan:
        rows = [1.0] * group.successes + [0.0] * (4 - group.successes) if group.kept else [1.0]
        kinds += [ROLLOUT if group.kept else DEMONSTRATION] * len(rows)
        names += [group.uid] * len(rows)
        scores += rows
    names_ = np.array(names, dtype=object)
    values = combined(plan, np.array(kinds), names_, np.array(scores), with_std, baseline=baseline)[names_ == uids[pick]]
    if successes[pick] == 0:
        assert values.tolist() == [0.0]
    else:
        alone = mixed_grpo([1.0] * successes[pick] + [0.0] * (4 - successes[pick]), with_std)
        assert values == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"baseline": "demo"}, r"fusion\.baseline='demo'.*group, on"),
        ({"off_advantage": "one"}, r"fusion\.hpt\.off_advantage='one'.*reward, group"),
    ],
)
def test_unknown_rules_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override_advantages(*luffy_group(1), {}, **keys)
