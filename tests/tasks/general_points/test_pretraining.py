"""What the tiny base model sees of general points, and which hands it must not see."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.tasks.general_points.cards import RANKS, Hand
from unify_posttrain.tasks.general_points.pools import Pools, Puzzle, has_face
from unify_posttrain.tasks.general_points.pretraining import PretrainingExamples
from unify_posttrain.tasks.general_points.rows import Settings, build_rows

from ..environments import task_settings

MODELS = ("tiny_qwen2_points", "tiny_llama_points")


def pretraining(model: str = MODELS[0], **changes: Any) -> dict[str, Any]:
    node = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{model}.yaml").prepare.model.pretraining)
    assert isinstance(node, dict)
    return {**node, **changes}


@cache
def examples() -> list[tuple[str, str]]:
    return PretrainingExamples(pretraining()).draw(random.Random(0), 2000)


def asked(question: str) -> tuple[tuple[str, ...], str, int]:
    """Labels, rule and target of a compact question."""
    rule, *target, labels = question.split("|")
    return tuple(labels.split()), "ten" if rule.endswith("=10") else "rank", int(target[0]) if target else 24


@pytest.mark.parametrize("model", MODELS)
def test_model_and_data_hold_the_same_hands_out(model: str) -> None:
    task, node = task_settings("general_points_small"), pretraining(model)
    assert node["hands"] == {key: task[key] for key in ("held_out", "held_out_ood", "seed")}
    assert (node["cards"], node["target"], task["prompt_style"]) == (task["cards"], task["target"], "compact")


def test_no_test_hand_is_seen_under_either_rule_nor_trained() -> None:
    rows = build_rows(Settings.from_node(task_settings("general_points_small")))
    hands: dict[str, list[Hand]] = {}
    for row in rows:
        hands.setdefault(row["data_source"], []).append(Hand.from_truth(json.loads(row["reward_model"]["ground_truth"])))
    held_values = {tuple(sorted(hand.values)) for source in ("gp_id", "gp_ood") for hand in hands[source]}
    held_labels = {tuple(sorted(hand.labels)) for hand in hands["gp_ood"]}
    assert len(held_labels) > 15 and len(held_values) > 30
    for question, _ in examples():
        labels, rule, target = asked(question)
        if target == 24:
            shown = Hand(labels, rule, target, "compact")
            assert tuple(sorted(shown.values)) not in held_values and tuple(sorted(labels)) not in held_labels, question
    assert not {tuple(sorted(hand.labels)) for hand in hands["gp_train"]} & held_labels
    assert all(has_face(tuple(RANKS[label] for label in hand.labels)) for hand in hands["gp_ood"])


def test_examples_are_right_answers_mostly_in_another_form() -> None:
    from unify_posttrain.tasks.general_points.solver import solve

    rules, targets, forms = set(), set(), 0
    for question, answer in examples():
        labels, rule, target = asked(question)
        hand = Hand(labels, rule, target, "compact")
        wanted = answer.startswith("{c:")
        forms += wanted
        formula = answer.partition("f:")[2].partition("=")[0] if wanted else answer.partition(" ")[2]
        assert formula in solve(hand.values, target).texts
        rules.add(rule)
        targets.add(target)
    assert rules == {"ten", "rank"} and targets >= set(range(12, 40)) and 0.07 < forms / len(examples()) < 0.13


def test_the_longest_example_is_as_long_as_any() -> None:
    question, answer = PretrainingExamples(pretraining()).longest
    assert len(question) >= max(len(each) for each, _ in examples()) and len(answer) >= max(len(each) for _, each in examples())


def test_without_a_share_nothing_changes_for_hands_with_a_face() -> None:
    pools = Pools.draw(3, "ten", 24, 12, 0.2, 0)
    assert len(pools.other_rule()) == 276  # the specification's count
    some = Pools.draw(3, "ten", 24, 12, 0.2, 0, 0.5)
    assert some.held_out == pools.held_out and len(some.held_out_ood) == 26
    assert set(some.other_rule()) < set(pools.other_rule()) and set(some.train()) < set(pools.train())
    assert some.may_be_shown((13, 13, 13), Puzzle("rank", 39)), "another target is another puzzle"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asked": 2}, r"pretraining\.asked=2: give a share"),
        ({"cards": 5}, r"pretraining\.cards=5"),
        ({"hands": {"seed": 0}}, r"pretraining\.hands=.*give exactly held_out, held_out_ood, seed"),
        ({"rules": {"twelve": 1}}, r"pretraining\.rules='twelve' is unknown; choose one of ten, rank"),
        ({"rules": {"ten": -1}}, r"pretraining\.rules=.*shares >= 0"),
        ({"targets": [30, 10]}, r"pretraining\.targets=\[30, 10\]: give the lowest and the highest"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainingExamples(pretraining(**changes))
