"""Advantages as objects: the formulas of the specification, verl's to the last bit where it is verl's, and what they print."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.experience import BatchPlan, Centred, Estimated, GroupPlan, Reward, ScoredRows, Split, gate, row_advantages
from unify_posttrain.experience.advantages import Advantage, AgainstGenerated, Unread
from unify_posttrain.experience.rows import DEMONSTRATION, ROLLOUT


def rows(
    scores: Sequence[float], kinds: Sequence[int] | None = None, uids: Sequence[str] | None = None, **keys: object
) -> ScoredRows:
    kinds = [ROLLOUT] * len(scores) if kinds is None else kinds
    return ScoredRows(torch.tensor(scores, dtype=torch.float64), uids or ["u"] * len(scores), np.array(kinds), **keys)


def luffy_group(k: int, n_on: int = 7) -> ScoredRows:
    """One solved demonstration in row 0 and n_on rollouts, k of them solved."""
    return rows([1.0] * (1 + k) + [0.0] * (n_on - k), [DEMONSTRATION] + [ROLLOUT] * n_on)


@pytest.mark.parametrize(
    ("k", "over", "by_std", "demo", "wrong"),
    [
        (2, "group", False, 0.625, -0.375),  # 1 - 3/8, -3/8
        (2, "group", True, 1.207612, -0.724567),  # variance (3 - 9/8)/7 = 15/56, / .517549
        (2, "rollouts", False, 0.714286, -0.285714),  # 1 - 2/7, -2/7
        (2, "rollouts", True, 1.463847, -0.585539),  # variance (2 - 4/7)/6 = 5/21, / (.487950 + 1e-6)
        (0, "group", False, 0.875, -0.125),
        (0, "group", True, 2.474867, -0.353552),  # variance (1 - 1/8)/7 = 1/8
        (0, "rollouts", False, 1.0, 0.0),
        (0, "rollouts", True, 0.999999, 0.0),  # deviation 0 counts as 1: 1/(1 + 1e-6)
        (7, "group", False, 0.0, None),
        (7, "group", True, 0.0, None),
    ],
)
def test_one_demonstration_and_seven_rollouts(k: int, over: str, by_std: bool, demo: float, wrong: float | None) -> None:
    values = Centred(over, by_std)(luffy_group(k)).tolist()
    assert values[: 1 + k] == pytest.approx([demo] * (1 + k), abs=1e-6)  # a solved rollout is worth as much
    if wrong is not None:
        assert values[-1] == pytest.approx(wrong, abs=1e-6)


@pytest.mark.parametrize("by_std", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_over_the_group_is_verls_estimator_to_the_last_bit(by_std: bool, seed: int) -> None:
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    generator = torch.Generator().manual_seed(seed)
    uids = [f"u{int(i)}" for i in torch.randint(0, 5, (40,), generator=generator)] + ["alone"]
    mask = torch.arange(9) < torch.randint(1, 10, (41, 1), generator=generator)
    rewards = torch.zeros(41, 9)
    rewards[:, 0] = torch.rand(41, generator=generator) if seed else torch.randint(0, 2, (41,), generator=generator).float()
    theirs, _ = compute_grpo_outcome_advantage(
        rewards.clone(), mask.float(), np.array(uids, dtype=object), norm_adv_by_std_in_grpo=by_std
    )
    ours = Centred("group", by_std)(ScoredRows(rewards.sum(dim=-1), uids, np.full(41, ROLLOUT)))
    assert torch.equal(ours.unsqueeze(-1) * mask, theirs)


def test_a_rollout_that_continues_a_prefix_is_no_rollout_of_the_policy_alone() -> None:
    # scores 1 (after a prefix), 1, 0, 0: mean 1/3 and variance ((2/3)^2 + 2 (1/3)^2)/2 = 1/3 of the last three
    prefixed = torch.tensor([True, False, False, False])
    given_rows = rows([1, 1, 0, 0], prefixed=prefixed)
    assert Centred("rollouts")(given_rows).tolist() == pytest.approx([2 / 3, 2 / 3, -1 / 3, -1 / 3])
    by_std = Centred("rollouts", by_std=True)(given_rows).numpy()
    assert by_std == pytest.approx(np.array([2, 2, -1, -1]) / 3 / (1 / 3) ** 0.5, abs=1e-5)
    assert Centred("group")(given_rows).tolist() == pytest.approx([0.5, 0.5, -0.5, -0.5])
    everything = rows([1, 1, 0, 0], prefixed=torch.ones(4, dtype=torch.bool))
    assert Centred("rollouts")(everything).tolist() == pytest.approx([1, 1, 0, 0])  # mean 0 of none


def test_over_a_single_rollout_and_over_none() -> None:
    # one rollout: mean 0, deviation 1, as in verl's group of one; none: the same for the demonstration
    assert Centred("rollouts", True)(luffy_group(0, n_on=1)).tolist() == pytest.approx([0.999999, 0.0], abs=1e-9)
    assert Centred("rollouts")(luffy_group(1, n_on=1)).tolist() == pytest.approx([1.0, 1.0])
    assert Centred("rollouts")(luffy_group(0, n_on=0)).tolist() == pytest.approx([1.0])


def test_a_demonstration_alone() -> None:
    # it scores 1; its n = 7 dropped rollouts scored 1, 1, 0, 0, 0, 0, 0: against them 1 - 3/8
    alone = rows([1.0], [DEMONSTRATION], generated={"u": [1.0, 1, 0, 0, 0, 0, 0]})
    assert Reward()(alone).tolist() == [1.0]
    assert AgainstGenerated()(alone).tolist() == pytest.approx([0.625])
    half = rows([0.5], [DEMONSTRATION], generated={"u": [1.0, 0.0]})
    assert Reward()(half).tolist() == [0.5]
    assert AgainstGenerated()(half).tolist() == pytest.approx([0.0])  # .5 - (1 + 0 + .5)/3


def test_split_gives_each_kind_its_own() -> None:
    mixed = rows([1.0, 0.0, 0.25], [ROLLOUT, ROLLOUT, DEMONSTRATION], ["a", "a", "b"])
    split = Split(Centred(), Reward())
    assert split(mixed).tolist() == [0.5, -0.5, 0.25]
    with pytest.raises(ValueError, match="cannot both be verl's"):
        Split(Estimated("rloo"), Reward())(mixed)


def test_demonstrations_that_no_term_trains_get_zero() -> None:
    plan = gate([0, 1], 2, switch_gate=0, uids=["a", "b"])
    mixed = rows([1.0, 1.0, 0.0], [DEMONSTRATION, ROLLOUT, ROLLOUT], ["a", "b", "b"])
    assert row_advantages(Split(Centred(), Reward()), mixed, plan, {"off"}).tolist() == [0.0, 0.5, -0.5]


@pytest.mark.parametrize(("off", "expected"), [(0.25, 1 / 3), (0.0, 0.0)])
def test_a_soft_demonstration_is_in_the_group_if_its_term_has_weight(off: float, expected: float) -> None:
    plan = BatchPlan((GroupPlan("u", 1, 2, 2, 1, {"rl": 1.0, "off": off, "sft": 0.5}),))
    mixed = rows([1.0, 1.0, 0.0], [DEMONSTRATION, ROLLOUT, ROLLOUT])
    values = row_advantages(Centred(), mixed, plan, {"off"}).tolist()
    assert values == pytest.approx([expected, 1 / 3, -2 / 3])  # 1 - 2/3


def test_verls_estimators_stand() -> None:
    assert row_advantages(Estimated("gae"), luffy_group(1), BatchPlan(()), set()) is None
    assert [Estimated(name).compares for name in ("gae", "reinforce_plus_plus", "rloo")] == [False, False, True]
    assert (Estimated("rloo").estimator, Centred().estimator) == ("rloo", None)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(0, 5), st.booleans(), st.sampled_from(["group", "rollouts"])
)
def test_reinforced_groups_do_not_depend_on_demonstrations_or_on_other_prompts(
    successes: list[int], pick: int, by_std: bool, over: str
) -> None:
    """Invariant 3 of the specification, for the switch."""
    pick %= len(successes)
    uids = [f"u{i}" for i in range(len(successes))]
    plan = gate(successes, 4, switch_gate=0, uids=uids)
    kinds, names, scores = [], [], []
    for group in plan:
        solved = [1.0] * group.successes + [0.0] * (4 - group.successes) if group.kept else [1.0]
        kinds += [ROLLOUT if group.kept else DEMONSTRATION] * len(solved)
        names += [group.uid] * len(solved)
        scores += solved
    values = row_advantages(Centred(over, by_std), rows(scores, kinds, names), plan, {"off"})
    mine = values[torch.tensor([name == uids[pick] for name in names])].tolist()
    if successes[pick] == 0:
        assert mine == [0.0]
    else:
        alone = rows([1.0] * successes[pick] + [0.0] * (4 - successes[pick]))
        assert mine == pytest.approx(Centred(over, by_std)(alone).tolist(), abs=1e-12)


PRINTED: list[tuple[Advantage, str, str]] = [
    (Centred(), "on", "R - mean over the group"),
    (Centred("rollouts", True), "demo", "(R - mean over its rollouts) / std"),
    (Split(Centred(), Reward()), "on", "R - mean over the group"),
    (Split(Centred(), Reward()), "demo", "R"),
    (AgainstGenerated(), "demo", "R - mean over what was generated and itself"),
    (Split(Centred(), Reward()), "trained", "R - mean over the group; demonstrations: R"),
    (Estimated("gae"), "on", "GAE of the critic's values"),
    (Unread(), "on", "not read"),
]  # fmt: skip


@pytest.mark.parametrize(("advantage", "tokens", "text"), PRINTED)
def test_what_is_printed(advantage: Advantage, tokens: str, text: str) -> None:
    assert advantage.describe(tokens) == text


def test_unknown_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'demo' is unknown; choose one of group, rollouts"):
        Centred("demo")


def test_scores_are_left_alone() -> None:
    group = luffy_group(2)
    before: Tensor = group.scores.clone()
    for advantage in (Centred(), Centred("rollouts", True), Reward(), AgainstGenerated(), Unread(), Split(Centred(), Reward())):
        advantage(group)
        assert torch.equal(group.scores, before)
