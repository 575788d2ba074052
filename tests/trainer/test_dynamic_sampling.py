"""Dynamic sampling: which groups count, when to stop drawing prompts, and what is trained of what was drawn."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from verl import DataProto

from unify_posttrain.experience.rules import NO_PREFIX, Group, RolloutsOnly
from unify_posttrain.trainer.dynamic_sampling import DynamicSampling
from unify_posttrain.trainer.prompts import Generated, Prompts


def uids(text: str) -> np.ndarray:
    return np.array(list(text), dtype=object)


def test_groups_whose_rewards_differ() -> None:
    sampling = DynamicSampling(2, None, 10)
    # a: 1 0; b: 1 1; c: one rollout; d: .5 .5 .25, rows of groups may stand anywhere
    spread = sampling.spread(uids("abdbacdd"), np.array([1, 1, 0.5, 1, 0, 7, 0.5, 0.25]))
    assert spread == {"a": True, "b": False, "d": True, "c": False}
    assert list(spread) == ["a", "b", "d", "c"]  # in order of appearance: earlier prompts are trained first
    assert sampling.spread(uids("aa"), np.array([True, False])) == {"a": True}  # a reward field like `acc`


@pytest.mark.parametrize(
    ("found", "batches", "stops", "warns"),
    [
        (1, 1, False, False),
        (2, 1, True, False),
        (3, 1, True, False),
        (1, 9, False, False),
        (1, 10, True, True),
        (0, 10, True, True),
    ],
)
def test_when_to_stop(found: int, batches: int, stops: bool, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    spread = {str(number): number < found for number in range(4)}
    with caplog.at_level(logging.WARNING):
        assert DynamicSampling(2, None, 10).enough(spread, batches) is stops
    assert bool(caplog.records) == warns
    if warns:
        assert f"only {found} of 2 groups" in caplog.text and "max_num_gen_batches=10" in caplog.text


def test_the_first_groups_that_differ_are_kept() -> None:
    plan = RolloutsOnly(2).plan([Group(uid, 1, 2) for uid in "abcde"])
    spread = {"a": False, "b": True, "c": False, "d": True, "e": True}
    chosen = DynamicSampling(2, None, 10).select(plan, spread)
    assert [group.uid for group in chosen] == list("abcde"), "every prompt that was drawn stays on record"
    assert {group.uid: (group.kept, group.weight("rl")) for group in chosen} == {
        **dict.fromkeys("ace", (0, 0.0)),
        **dict.fromkeys("bd", (2, 1.0)),
    }
    assert chosen.zones() == {"rl": 2, "sft": 0, "off": 0, "skipped": 3}
    assert all(group.successes == 1 and group.rollouts == 2 for group in chosen)
    assert chosen.changes_rows


def test_too_few_groups_and_none() -> None:
    plan = RolloutsOnly(2).plan([Group(uid, 0, 2) for uid in "ab"])
    sampling = DynamicSampling(2, None, 1)
    assert sampling.select(plan, {"a": False, "b": True}).zones()["rl"] == 1
    assert sampling.select(plan, {"a": False, "b": False}).zones() == {"rl": 0, "sft": 0, "off": 0, "skipped": 2}
    # all that were wanted: nothing is dropped, and the rows keep their order
    assert not sampling.select(plan, {"a": True, "b": True}).changes_rows


def generated(**scores: tuple[float, float]) -> Generated:
    """Prompts by uid, with the scores of their two rollouts."""
    prompts = DataProto.from_dict(non_tensors={"uid": uids("".join(scores)), "row_id": np.arange(len(scores))})
    each = [score for pair in scores.values() for score in pair]
    rollouts = DataProto.from_dict(
        tensors={"rm_scores": torch.tensor(each).unsqueeze(-1)},
        non_tensors={"uid": uids("".join(uid * 2 for uid in scores)), "acc": np.array(each) > 0.5},
        meta_info={"batch": "".join(scores)},
    )
    return Generated(Prompts(prompts, {}, [(NO_PREFIX,) * 2] * len(scores)), rollouts)


def test_prompts_are_drawn_until_there_are_enough_groups() -> None:
    drawn = iter([generated(c=(0, 0), d=(1, 0)), generated(e=(0, 1), f=(1, 1))])
    sampling = DynamicSampling(3, None, 10)
    found, metrics = sampling.replenish(generated(a=(0, 1), b=(1, 1)), lambda: next(drawn))
    assert metrics == {"fusion/gen_batches": 3.0} and next(drawn, None) is None
    assert "".join(found.prompts.rows.non_tensor_batch["uid"]) == "abcdef" and len(found.prompts.prefixes) == 6
    assert "".join(found.rollouts.non_tensor_batch["uid"]) == "aabbccddeeff"
    assert found.rollouts.batch["rm_scores"].sum(-1).tolist() == [0, 1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 1]
    chosen = found.select(RolloutsOnly(2).plan([Group(uid, 1, 2) for uid in "abcdef"]))
    assert [group.uid for group in chosen if group.kept] == ["a", "d", "e"]


def test_a_batch_with_enough_groups_is_left_as_it_is() -> None:
    first = generated(a=(0, 1), b=(1, 0))
    found, metrics = DynamicSampling(2, "acc", 10).replenish(first, lambda: pytest.fail("nothing is wanted"))
    assert found.rollouts is first.rollouts and found.prompts is first.prompts and metrics == {"fusion/gen_batches": 1.0}


def test_a_field_that_the_reward_does_not_return_is_named() -> None:
    with pytest.raises(KeyError, match=r"algorithm\.filter_groups\.metric='accuracy'"):
        DynamicSampling(2, "accuracy", 10).replenish(generated(a=(0, 1)), lambda: None)


def test_settings() -> None:
    """`algorithm.filter_groups`, of the run or of a phase; the step says how many groups it wants."""
    found = DynamicSampling.from_node({"enable": True, "metric": "acc", "max_num_gen_batches": 3}, wanted=16)
    assert (found.wanted, found.metric, found.max_batches) == (16, "acc", 3)
    assert DynamicSampling.from_node({"enable": False, "metric": None, "max_num_gen_batches": 0}, wanted=16) is None
    assert DynamicSampling.from_node(None, wanted=16) is None
    node = OmegaConf.create({"enable": True, "metric": None, "max_num_gen_batches": 0})
    with pytest.raises(ValueError, match=r"algorithm\.filter_groups\.max_num_gen_batches=0"):
        DynamicSampling.from_node(node, wanted=16)
