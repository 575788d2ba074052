"""Rows of general points: pools that share no values, sources of the test, styles of prompts, several turns, exports."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tasks.environments import node, task_settings
from unify_posttrain.tasks.environment import compute_score, make_environment
from unify_posttrain.tasks.general_points.cards import FACES, Hand
from unify_posttrain.tasks.general_points.pools import Pools
from unify_posttrain.tasks.general_points.prompts import answer, hint, question
from unify_posttrain.tasks.general_points.rows import SCHEMA, Settings, build_rows, write_splits
from unify_posttrain.tasks.general_points.solver import solve

BASE = task_settings("general_points")
SMALL = {"train": 300, "gp_id": 20, "gp_id_seen": 20, "gp_ood": 60, "gp_ood_target": 10}


def settings(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(BASE), "rows": dict(SMALL), **changes}


def rows_of(**changes: Any) -> list[dict[str, Any]]:
    return build_rows(Settings.from_node(settings(**changes)))


def hand_of(row: dict[str, Any]) -> Hand:
    return Hand.from_truth(json.loads(row["reward_model"]["ground_truth"]))


def values_of(row: dict[str, Any]) -> tuple[int, ...]:
    return tuple(sorted(hand_of(row).values))


def test_pools_hold_out_a_tenth_of_the_values() -> None:
    pools = Pools.draw(4, "ten", 24, 12, 0.1, seed=0)
    assert len(pools.held_out) == 57  # of 566
    train, unseen = pools.train(), pools.unseen()
    assert len(train) + len(unseen) == 20_876 and len(train) >= 16_000
    values = [{pools.id.values(hand) for hand in hands} for hands in (train, unseen)]
    assert values[1] == pools.held_out and not values[0] & values[1]
    assert Pools.draw(4, "ten", 24, 12, 0.1, seed=1).held_out != pools.held_out
    assert len(pools.other_rule()) == 14_057


def test_sources_and_their_hands() -> None:
    rows = rows_of()
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_source.setdefault(row["data_source"], []).append(row)
    assert {source: len(found) for source, found in by_source.items()} == {
        "gp_train": 300,
        **{k: v for k, v in SMALL.items() if k != "train"},
    }
    train = by_source["gp_train"]
    hands = {hand_of(row).labels for row in train}
    assert len(hands) == 300 and {hand_of(row).rule for row in train} == {"ten"}
    seen_values, seen_labels = {values_of(row) for row in train}, {tuple(sorted(hand)) for hand in hands}
    assert not {values_of(row) for row in by_source["gp_id"]} & seen_values
    assert {hand_of(row).labels for row in by_source["gp_id_seen"]} <= hands
    for row in by_source["gp_ood"]:
        assert hand_of(row).rule == "rank" and set(hand_of(row).labels) & set(FACES)
    assert {(hand_of(row).rule, hand_of(row).target) for row in by_source["gp_ood_target"]} == {("ten", 12)}
    for row in rows:
        hand, info = hand_of(row), row["extra_info"]
        assert info["solutions"] == len(solve(hand.values, hand.target).texts) > 0
        assert info["other_rule_playable"] == bool(solve(hand.other_values, hand.target).texts)
        assert info["seen_labels"] == (tuple(sorted(hand.labels)) in seen_labels)
        assert info["faces"] == sum(label in FACES for label in hand.labels)
    flags = Counter(row["extra_info"]["other_rule_playable"] for row in by_source["gp_ood"])
    assert min(flags.values()) > 5  # 529 of 796 multisets are playable under both rules
    for split in ("train", "test"):
        of_split = [row["extra_info"]["index"] for row in rows if row["extra_info"]["split"] == split]
        assert of_split == list(range(len(of_split)))


def test_a_source_does_not_depend_on_the_others() -> None:
    few = {**SMALL, "gp_ood": 5, "gp_id": 0}
    first, second = ([row for row in rows_of(rows=rows) if row["data_source"] == "gp_id_seen"] for rows in (SMALL, few))
    assert [row["prompt"] for row in first] == [row["prompt"] for row in second]
    assert rows_of() == rows_of() and rows_of() != rows_of(seed=1)


def test_three_cards() -> None:
    rows = rows_of(
        cards=3, rows={"train": 200, "gp_id": 5, "gp_id_seen": 5, "gp_ood": 5, "gp_ood_target": 0}, prompt_style="compact"
    )
    assert {len(hand_of(row).labels) for row in rows} == {3}


@pytest.mark.parametrize("style", ["native", "upstream", "compact"])
@pytest.mark.parametrize("choose", ["shortest", "random"])
def test_demonstrations_are_what_their_style_reads(style: str, choose: str) -> None:
    for row in rows_of(prompt_style=style, choose=choose)[:60]:
        found = compute_score(
            "", row["target"][0]["content"], row["reward_model"]["ground_truth"], environment=node("general_points")
        )
        assert found["acc"] == 1, row["target"]
        texts = solve(hand_of(row).values, 24).texts
        assert found["pred"] in texts and (choose == "random" or len(str(found["pred"])) == min(map(len, texts)))


def test_words_of_the_styles() -> None:
    hand = Hand(("K", "3", "8", "A"), "ten", 24, "native")
    native, upstream, compact = (Hand(hand.labels, rule, 24, style) for rule, style in
                                 (("ten", "native"), ("rank", "upstream"), ("rank", "compact")))  # fmt: skip
    assert "Cards: K, 3, 8, A\n" in question(native) and "J, Q and K are worth 10 each." in question(native)
    assert json.loads(answer(native, "1+2")) == {"cards": ["K", "3", "8", "A"], "number": [10, 3, 8, 1], "formula": "1+2=24"}
    asked = question(upstream)
    assert [asked.index(f"[{block}]") for block in ("Task Description", "Input", "Output")] == sorted(
        asked.index(f"[{block}]") for block in ("Task Description", "Input", "Output")
    )
    assert asked.count("count as '11', '12', and '13' respectively.") == 2 and "Cards: ['K', '3', '8', 'A']\n" in asked
    assert '"cards": [x, y, z, w],\n"number": [a, b, c, d],\n"formula": \'…\'' in asked
    assert question(Hand(hand.labels, "ten", 24, "upstream")).count("count as '10'.") == 2
    assert answer(upstream, "1+2") == "{\n\"cards\": ['K', '3', '8', 'A'],\n\"number\": [13, 3, 8, 1],\n\"formula\": \"1+2=24\",\n}"
    assert question(compact) == "JQK=11,12,13|K 3 8 A"
    assert question(Hand(("K", "3", "8"), "ten", 24, "compact")) == "JQK=10|K 3 8"
    three = Hand(("K", "3", "8"), "ten", 24, "compact")
    assert answer(three, "(10-3)*8") == "{c:K 3 8;n:10 3 8;f:(10-3)*8=24}"
    assert hint(three, answer(three, "8")) == ["{c:K 3 8;", "n:10 3 8;", "f:8=24}"]
    assert "|12|" in question(Hand(("K", "3", "8"), "ten", 12, "compact"))  # only another target is said


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text('Cards {cards} ({labels}): reach {target}. {rule} {"formula": …}')
    asked = rows_of(prompt_file=str(path))[0]["prompt"][0]["content"]
    assert 'reach 24. J, Q and K are worth 10 each. {"formula": …}' in asked and "{cards}" not in asked and "['" in asked
    path.write_text("no place")
    with pytest.raises(ValueError, match=r"prepare.task.prompt_file=.*no place for the cards; write \{cards\} or \{labels\}"):
        rows_of(prompt_file=str(path))
    with pytest.raises(ValueError, match=r"prepare.task.prompt_file=.*cannot be read"):
        rows_of(prompt_file=str(tmp_path / "none.txt"))


def test_all_solutions_of_a_hand() -> None:
    for row in rows_of(solutions_per_hand="all")[:40]:
        assert len(row["target_lst"]) == row["extra_info"]["solutions"] == len(set(row["target_lst"]))
        assert row["target"][0]["content"] in row["target_lst"]


def test_demonstrations_that_begin_wrong() -> None:
    rows = rows_of(revise=0.5)
    revised = [row for row in rows if row["extra_info"]["revised"]]
    assert 100 < len(revised) < 200 and {row["extra_info"]["split"] for row in revised} == {"train"}  # half of 300
    environment = make_environment(node("general_points"))
    for row in revised[:50]:
        assert [message["role"] for message in row["target"]] == ["assistant", "user", "assistant"]
        environment.reset(row)
        first = environment.step(row["target"][0]["content"], True)
        assert first.reward == -1 and first.feedback == (row["target"][1]["content"],)
        assert environment.step(row["target"][2]["content"], True).solved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cards": 5}, r"prepare.task.cards=5: a hand has 2 to 4 cards"),
        ({"target": 0}, r"prepare.task.target=0: give a whole number from 1 to 999"),
        ({"other_target": 24}, r"prepare.task.other_target=24 is prepare.task.target; give another"),
        ({"rule": "face"}, r"prepare.task.rule='face' is unknown; choose one of ten, rank"),
        ({"prompt_style": "plain"}, r"prepare.task.prompt_style='plain' is unknown; choose one of native, upstream, compact"),
        ({"held_out": 1.5}, r"prepare.task.held_out=1.5: give a share from 0 to 1"),
        ({"revise": True}, r"prepare.task.revise=True: give a share"),
        ({"choose": "longest"}, r"prepare.task.choose='longest' is unknown; choose one of shortest, random"),
        ({"export": "csv"}, r"prepare.task.export='csv' is unknown; choose one of null, sharegpt"),
        ({"solutions_per_hand": "all", "revise": 0.5}, r"prepare.task.revise=0.5 makes one demonstration per hand"),
        ({"rows": {**SMALL, "gp_id": -1}}, r"prepare.task.rows.gp_id=-1: give a number of rows"),
        ({"rows": {"train": 1}}, r"prepare.task.rows=.*give exactly train, gp_id, gp_id_seen, gp_ood, gp_ood_target"),
        ({"rows": dict.fromkeys(SMALL, 0)}, r"need at least one row each"),
        ({"rows": {**SMALL, "train": 30_000}}, r"prepare.task.rows.train=30000: only \d+ distinct ones exist; ask for fewer"),
        ({"rows": {**SMALL, "gp_ood": 14_058}}, r"prepare.task.rows.gp_ood=14058: only 14057 distinct ones exist"),
        ({"rows": {**SMALL, "gp_id_seen": 301}}, r"prepare.task.rows.gp_id_seen=301: only 300 distinct ones exist"),
        ({"seed": "x"}, r"prepare.task.seed='x': give an integer"),
        ({"typo": 1}, r"settings of the general_points task"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(**changes)


def test_files_and_their_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(export="sharegpt", revise=0.3)
    paths = write_splits(tmp_path, given)
    assert set(paths) == {"train", "test", "sharegpt"}
    table = pq.read_table(paths["train"])
    assert table.schema.equals(SCHEMA) and table.num_rows == 300
    found = json.loads(paths["sharegpt"].read_text(encoding="utf-8"))
    assert len(found) == 300 and set(found[0]) == {"id", "image", "conversations"} and found[0]["image"] is None
    assert Counter(len(each["conversations"]) for each in found).keys() == {2, 4}
    row = table.to_pylist()[0]
    assert [each["value"] for each in found[0]["conversations"]] == [m["content"] for m in (*row["prompt"], *row["target"])]
    monkeypatch.setattr("unify_posttrain.tasks.general_points.rows.build_rows", lambda *_: pytest.fail("nothing changed"))
    write_splits(tmp_path, given)
    several = write_splits_schema(tmp_path / "all", monkeypatch)
    assert "target_lst" in several


def write_splits_schema(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.undo()
    return list(pq.read_schema(write_splits(folder, settings(solutions_per_hand="all"))["train"]).names)
