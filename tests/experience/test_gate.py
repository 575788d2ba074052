"""The gate: switch, soft and no, against the specification's tables; plans as plain data."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience import SOFT_TABLES, BatchPlan, GroupPlan, gate, soft_coefficients
from unify_posttrain.experience.mixer import plan_metrics
from unify_posttrain.experience.rules import DemonstrationIfUnsolved, Group

# The published tables as printed in the specification: rows 0..8 of (on, off, sft).
TABLES = {
    0: "1 1 1|0 0 1|.125 .5 .5|.25 1 .25|.5 .5 .125|1 .25 0|1 .125 0|1 0 0|1 0 0",
    1: "1 1 1|0 1 1|.125 1 .5|.25 1 .25|.5 1 .125|1 1 0|1 1 0|1 1 0|1 1 0",
    2: "1 1 1|0 0 1|.125 0 .5|.25 0 .25|.5 0 .125|1 0 0|1 0 0|1 0 0|1 0 0",
}
TABLES = {name: [tuple(float(v) for v in row.split()) for row in rows.split("|")] for name, rows in TABLES.items()}


def zones(plan: BatchPlan) -> list[str]:
    return [group.zone for group in plan]


# --- switch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "off", "expected"),
    [  # n = 8, s = 0..8
        (0, 0, ["sft"] + ["rl"] * 8),
        (0, None, ["sft"] + ["rl"] * 8),
        (0, 2, ["sft", "off", "off"] + ["rl"] * 6),
        (2, 2, ["sft"] * 3 + ["rl"] * 6),
        (2, 0, ["sft"] * 3 + ["rl"] * 6),  # RL begins above the larger of the two
        (-1, None, ["rl"] * 9),
        (-1, 1, ["off", "off"] + ["rl"] * 7),
        (8, None, ["sft"] * 9),
        (7, 8, ["sft"] * 8 + ["off"]),
    ],
)
def test_switch_table(low: int, off: int | None, expected: list[str]) -> None:
    assert zones(gate(range(9), 8, "switch", switch_gate=low, switch_gate_off=off)) == expected


def test_switch_rows_and_weights() -> None:
    sft, off, rl = gate([0, 1, 3], 8, switch_gate=0, switch_gate_off=2, uids=["a", "b", "c"])
    assert sft == GroupPlan("a", 0, 8, 0, 1, {"sft": 1.0})
    assert off == GroupPlan("b", 1, 8, 0, 1, {"off": 1.0})
    assert rl == GroupPlan("c", 3, 8, 8, 0, {"rl": 1.0})


def test_group_of_four() -> None:
    # n = 4, s = 0, 2, 4, gate 0: one demonstration and two groups of four, 1/9 of the rows
    plan = gate([0, 2, 4], 4, switch_gate=0)
    assert zones(plan) == ["sft", "rl", "rl"]
    rows = [group.kept + group.demonstrations for group in plan]
    assert rows == [1, 4, 4]
    assert sum(group.demonstrations for group in plan) / sum(rows) == pytest.approx(0.111111, abs=1e-6)
    assert plan.shares(("rl", "off", "sft")) == {"rl": pytest.approx(2 / 3), "off": 0.0, "sft": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("rate", "n", "low"),
    [(0.0, 8, 0), (0.25, 8, 2), (0.24, 8, 1), (0.3, 10, 3), (0.1, 30, 3), (0.58, 50, 29), (1.0, 8, 8)],
)
def test_gate_rate(rate: float, n: int, low: int) -> None:
    # floor(gamma n + 1e-9): .58 * 50 is 28.999… in floating point
    plan = gate(range(n + 1), n, switch_gate=0, gate_rate=rate)
    assert zones(plan).count("sft") == low + 1


@pytest.mark.parametrize(("missing", "zone", "kept"), [("rl", "rl", 8), ("skip", "skipped", 0)])
def test_switch_without_target(missing: str, zone: str, kept: int) -> None:
    plan = gate([0, 1, 5, 0], 8, switch_gate=1, has_demonstration=[False, False, False, True], missing=missing)
    assert zones(plan) == [zone, zone, "rl", "sft"]
    assert [group.kept for group in plan] == [kept, kept, 8, 0]
    assert [group.demonstrations for group in plan] == [0, 0, 0, 1]
    assert plan.zones() == {"rl": 3 if zone == "rl" else 1, "sft": 1, "off": 0, "skipped": 0 if zone == "rl" else 2}


def test_demonstrations_are_trained_even_if_their_own_check_fails() -> None:
    assert gate([0, 5], 8, demonstration_solved=[False, False]) == gate([0, 5], 8, demonstration_solved=[True, True])


def test_no_keeps_every_rollout() -> None:
    plan = gate([0, 4, 8], 8, "no", switch_gate=8, has_demonstration=[True, False, True])
    assert zones(plan) == ["rl"] * 3
    assert not plan.changes_rows
    assert all((g.kept, g.demonstrations, g.weight("rl"), g.weight("off"), g.weight("sft")) == (8, 0, 1, 0, 0) for g in plan)


def test_changes_rows() -> None:
    assert gate([0], 8, switch_gate=0).changes_rows
    assert not gate([1, 8], 8, switch_gate=0).changes_rows
    assert gate([0], 8, switch_gate=0, has_demonstration=[False], missing="skip").changes_rows
    assert gate([7], 8, "soft").changes_rows


# --- soft ------------------------------------------------------------------------------------------------------------


def test_tables_are_the_published_ones() -> None:
    assert {name: [tuple(map(float, row)) for row in table] for name, table in SOFT_TABLES.items()} == TABLES


@pytest.mark.parametrize("soft_type", [0, 1, 2])
@pytest.mark.parametrize("solved", [True, False])
@pytest.mark.parametrize("k", range(8))
def test_group_of_eight_is_the_table_exactly(soft_type: int, solved: bool, k: int) -> None:
    # n = 8: x = v + k is whole. Unverified: row 0 for k = 0, else row k; verified: row k + 1
    row = k + 1 if solved else k
    assert soft_coefficients(k, 7, solved, soft_type) == TABLES[soft_type][row]
    (group,) = gate([k], 8, "soft", soft_type=soft_type, demonstration_solved=[solved])
    assert (group.weight("rl"), group.weight("off"), group.weight("sft")) == TABLES[soft_type][row]
    assert (group.rollouts, group.kept, group.demonstrations) == (7, 7, 1)


@pytest.mark.parametrize(("k", "soft_type", "expected"), [(0, 0, (0, 0, 1)), (3, 0, (0.5, 0.5, 0.125)), (4, 2, (1, 0, 0))])
def test_specified_vectors_of_eight(k: int, soft_type: int, expected: tuple) -> None:
    assert soft_coefficients(k, 7, True, soft_type) == expected


def test_specified_vector_of_sixteen() -> None:
    # x = 1 + 7*3/15 = 2.4: .6*(.125, .5, .5) + .4*(.25, 1, .25) = (.175, .7, .4)
    assert soft_coefficients(3, 15, True, 0) == pytest.approx((0.175, 0.7, 0.4), abs=1e-12)


def test_small_x_is_raised_to_one() -> None:
    # n = 16, unverified, k = 1: x = 7/15 < 1, but something was solved: row 1
    assert soft_coefficients(1, 15, False, 0) == TABLES[0][1]
    assert soft_coefficients(0, 15, False, 0) == TABLES[0][0]


GROUPS = st.tuples(st.integers(2, 32), st.integers(0, 31), st.booleans(), st.sampled_from([0, 1, 2]))


@given(GROUPS)
def test_any_group_size_interpolates_the_table(group: tuple[int, int, bool, int]) -> None:
    n, k, solved, soft_type = group
    k = min(k, n - 1)
    actual = soft_coefficients(k, n - 1, solved, soft_type)
    table = np.array(TABLES[soft_type])
    assert np.all(actual >= table.min(axis=0) - 1e-12)
    assert np.all(actual <= table.max(axis=0) + 1e-12)
    x = 0 if k == 0 and not solved else max(1.0, solved + 7 * k / (n - 1))
    expected = [np.interp(x, range(9), table[:, column]) for column in range(3)]
    assert actual == pytest.approx(expected, abs=1e-9)


@given(st.integers(2, 32), st.booleans(), st.sampled_from([0, 1, 2]))
def test_more_successes_mean_more_reinforcement_and_less_imitation(n: int, solved: bool, soft_type: int) -> None:
    ks = range(0 if solved else 1, n)
    weights = np.array([soft_coefficients(k, n - 1, solved, soft_type) for k in ks])
    assert np.all(np.diff(weights[:, 0]) >= -1e-12)
    assert np.all(np.diff(weights[:, 2]) <= 1e-12)
    # continuous: the steepest step between two rows of the tables is 1, over 7/(n-1) rows per success
    assert np.all(np.abs(np.diff(weights, axis=0)) <= 7 / (n - 1) + 1e-9)


def test_own_table_and_its_last_row() -> None:
    table = [[row / 8, 1 - row / 8, 0.1 * row] for row in range(9)]
    assert soft_coefficients(7, 7, True, soft_table=table) == pytest.approx((1.0, 0.0, 0.8), abs=1e-12)
    assert soft_coefficients(2, 4, True, soft_table=table) == pytest.approx((4.5 / 8, 3.5 / 8, 0.45), abs=1e-12)
    (group,) = gate([7], 8, "soft", soft_table=table)
    assert group.weight("rl") == pytest.approx(1.0)


def test_soft_without_target_gets_one_more_rollout() -> None:
    with_target, without = gate([7, 8], 8, "soft", has_demonstration=[True, False])
    assert (with_target.rollouts, with_target.demonstrations) == (7, 1)
    assert without == GroupPlan("1", 8, 8, 8, 0, {"rl": 1.0})


def test_soft_without_target_under_skip_contributes_no_row() -> None:
    """Specification 3, demo.missing: `skip` (no row), for soft as for LUFFY."""
    _, without = gate([3, 0], 8, "soft", has_demonstration=[True, False], missing="skip")
    assert (without.kept, without.demonstrations, without.zone) == (0, 0, "skipped")


# --- plans -----------------------------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> tuple[BatchPlan, int]:
    n = draw(st.integers(2, 12))
    strategy = draw(st.sampled_from(["switch", "soft", "no"]))
    prompts = draw(st.integers(0, 12))
    demos = draw(st.lists(st.booleans(), min_size=prompts, max_size=prompts))
    solved = draw(st.lists(st.booleans(), min_size=prompts, max_size=prompts))
    most = [n - 1 if strategy == "soft" and demo else n for demo in demos]
    successes = [draw(st.integers(0, limit)) for limit in most]
    plan = gate(
        successes,
        n,
        strategy,
        switch_gate=draw(st.integers(-1, n)),
        switch_gate_off=draw(st.none() | st.integers(-1, n)),
        soft_type=draw(st.sampled_from([0, 1, 2])),
        has_demonstration=demos,
        demonstration_solved=solved,
        missing=draw(st.sampled_from(["rl", "skip"])),
    )
    return plan, n


@given(plans())
def test_every_prompt_is_in_exactly_one_zone(drawn: tuple[BatchPlan, int]) -> None:
    plan, n = drawn
    assert sum(plan.zones().values()) == len(plan)
    assert set(plan.zones()) == {"rl", "sft", "off", "skipped"}
    metrics = plan_metrics(plan, n)
    assert sum(metrics[f"fusion/prompts_{zone}"] for zone in plan.zones()) == len(plan)
    rolled_out = sum(bool(group.rollouts) for group in plan)  # a prompt without rollouts has no place in the histogram
    assert sum(metrics[f"fusion/gate_hist/{s}"] for s in range(n + 1)) == rolled_out


@given(plans())
def test_plans_survive_json(drawn: tuple[BatchPlan, int]) -> None:
    plan, _ = drawn
    assert BatchPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@given(plans())
def test_a_group_is_kept_whole_or_not_at_all(drawn: tuple[BatchPlan, int]) -> None:
    for group in drawn[0]:
        assert group.kept in (0, group.rollouts)
        assert group.demonstrations in (0, 1)
        assert min(group.weights.values(), default=0) >= 0
        if not group.demonstrations:
            assert group.weight("off") == group.weight("sft") == 0


@given(st.lists(st.integers(0, 8), max_size=10), st.integers(-1, 8), st.none() | st.integers(-1, 8))
def test_prompts_are_decided_independently(successes: list[int], low: int, off: int | None) -> None:
    together = gate(successes, 8, switch_gate=low, switch_gate_off=off, uids=["u"] * len(successes))
    alone = [gate([s], 8, switch_gate=low, switch_gate_off=off, uids=["u"]).groups[0] for s in successes]
    assert list(together) == alone


def test_metric_names_do_not_trigger_verls_reduction_by_min_or_max() -> None:
    for name in plan_metrics(gate([0, 1], 8), 8):
        assert "min" not in name
        assert "max" not in name


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"strategy": "balance"}, r"trainer\.unify_strategy='balance'.*switch, soft, no"),
        ({"switch_gate": -2}, r"trainer\.switch_gate=-2.*-1.*rollout\.n=8"),
        ({"switch_gate": 9}, r"trainer\.switch_gate=9"),
        ({"switch_gate": 0.5}, r"trainer\.switch_gate=0\.5"),
        ({"switch_gate": True}, r"trainer\.switch_gate=True"),
        ({"switch_gate_off": 9}, r"trainer\.switch_gate_off=9"),
        ({"gate_rate": 1.5}, r"fusion\.hpt\.gate_rate=1\.5"),
        ({"gate_rate": -0.1}, r"fusion\.hpt\.gate_rate=-0\.1"),
        ({"missing": "pad"}, r"fusion\.demo\.missing='pad'"),
        ({"strategy": "soft", "soft_type": 3}, r"fusion\.hpt\.soft_type=3.*0, 1, 2"),
        ({"strategy": "soft", "soft_table": [[1, 1, 1]] * 8}, r"fusion\.hpt\.soft_table.*nine"),
        ({"strategy": "soft", "soft_table": [[1, 1]] * 9}, r"fusion\.hpt\.soft_table"),
        ({"group_size": 1}, r"rollout\.n=1"),
        ({"successes": [9]}, r"group 0: 9 successes among 8"),
        ({"successes": [-1]}, r"group 0: -1 successes"),
        ({"successes": [8], "strategy": "soft"}, r"8 successes among 7"),
        ({"has_demonstration": [True, True]}, "zip"),
    ],
)
def test_errors_name_the_key(keywords: dict, message: str) -> None:
    arguments = {"successes": [0], "group_size": 8, "strategy": "switch", **keywords}
    with pytest.raises(ValueError, match=message):
        gate(**arguments)


@pytest.mark.parametrize("keywords", [{"soft_type": 3}, {"soft_table": [[1, 1, 1]] * 8}])
def test_a_bad_table_is_refused_before_the_first_batch(keywords: dict) -> None:
    """HPT.check asks the gate with an empty batch: what it accepts must not fail once there are prompts."""
    with pytest.raises(ValueError, match=r"fusion\.hpt\.soft_t"):
        gate([], 8, "soft", **keywords)


def test_a_skipped_prompt_without_rollouts_is_not_counted_as_unsolved() -> None:
    """soft, demo.missing=skip: nothing is generated for a prompt without target, so it says nothing about the policy."""
    rule = DemonstrationIfUnsolved(4, "soft", {"missing": "skip"})
    assert rule.rollouts(False) == 0
    plan = rule.plan([Group("a", 0, 0, False, False), Group("b", 3, 3, True, True)])
    metrics = plan_metrics(plan, 4)
    assert plan.zones() == {"rl": 1, "sft": 0, "off": 0, "skipped": 1}
    assert metrics["fusion/solve_rate"] == 1.0  # 3 of 3 rollouts
    assert metrics["fusion/solve_none"] == 0.0
    assert metrics["fusion/gate_hist/0"] == 0.0
