"""What rollouts of a batch begin with: `hint` cells and demonstrations in, columns for agent loop and mixer out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from verl import DataProto

from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.hints import HintSchedule
from unify_posttrain.experience.mixer import PREFIX_LENGTH
from unify_posttrain.experience.prefixes import PrefixSchedule
from unify_posttrain.experience.rows import object_column
from unify_posttrain.experience.rules import NO_PREFIX, DemonstrationInGroup, ResponsePrefix, RolloutsAfterHint, RolloutsOnly
from unify_posttrain.rollout.agent_loop import PREFIX_COLUMN, PREFIX_TRAINED_COLUMN
from unify_posttrain.trainer.response_prefixes import draw_response_prefixes, hint_sentences, prefix_columns, prefix_metrics

# All five buckets, at every step: the longest hint that fits.
EVERYTHING = HintSchedule("stage", buckets=5, hint_steps=10**6, p_low=0.0, p_high=1.0, seed=0)
HINTED = RolloutsAfterHint(3, schedule=EVERYTHING, room=4)
HALVES = PrefixSchedule("random", n_prefix=2, min_ratio=0.5, max_ratio=0.5, steps=10, linear_max_ratio=0.8, share=False, seed=0)


def prompts(hints: list[Any] | None = None, rows: int = 3) -> DataProto:
    columns = {"uid": object_column(["a", "b", "c"][:rows]), "row_id": np.arange(10, 10 + rows)}
    if hints is not None:
        columns["hint"] = object_column(hints)
    return DataProto.from_dict(non_tensors=columns)


def draw(rule: Any, batch: DataProto, demonstrations: dict[str, Demonstration] | None = None, step: int = 1) -> list:
    return draw_response_prefixes(rule, batch, demonstrations or {}, lambda text: [ord(letter) for letter in text], step)


# --- hints -----------------------------------------------------------------------------------------------------------


def test_all_rollouts_of_a_prompt_share_its_hint() -> None:
    # a hint of three letters fits into four tokens; of six sentences, 5 buckets, only the cut of 4 does (0 1 2 4 5 6)
    batch = prompts([["x", "y", "z"], np.array(list("abcdef"), dtype=object), []])
    prefixes = draw(HINTED, batch)
    assert [len(row) for row in prefixes] == [3, 3, 3]
    assert all(len(set(row)) == 1 for row in prefixes)
    assert ["".join(map(chr, row[0].ids)) for row in prefixes] == ["xyz", "abcd", ""]
    assert [row[0].shortened for row in prefixes] == [False, True, False]
    assert "hint" not in batch.non_tensor_batch, "hints are no business of agent loops and reward workers"


def test_a_hint_is_the_same_after_a_resume_and_in_another_batch() -> None:
    rule = RolloutsAfterHint(2, schedule=replace(EVERYTHING, mode="uft", hint_steps=300, p_low=0.05, p_high=0.95), room=99)
    sentences = list("abcdefgh")
    drawn = [row[0] for row in draw(rule, prompts([sentences] * 3), step=40)]
    assert [row[0] for row in draw(rule, prompts([sentences] * 3), step=40)] == drawn
    batch = DataProto.from_dict(
        non_tensors={"uid": object_column(["z"]), "row_id": np.array([12]), "hint": object_column([sentences])}
    )
    assert draw(rule, batch, step=40)[0][0] == drawn[2]  # prompt 12, whatever its uid and company


def test_a_missing_column_is_an_error_and_an_unused_one_is_dropped() -> None:
    with pytest.raises(KeyError, match=r"column 'hint' is missing from the training data"):
        draw(HINTED, prompts())
    batch = prompts([5, "nobody", "looks"])
    assert draw(RolloutsOnly(2), batch) == [(NO_PREFIX, NO_PREFIX)] * 3
    assert "hint" not in batch.non_tensor_batch


@pytest.mark.parametrize(
    ("cell", "sentences"),
    [(None, ()), ([], ()), (["a", "b"], ("a", "b")), (("a",), ("a",)), (np.array(["a", "b"], dtype=object), ("a", "b"))],
    ids=str,
)
def test_hint_cells(cell: Any, sentences: tuple[str, ...]) -> None:
    assert hint_sentences(cell, 0) == sentences


@pytest.mark.parametrize("cell", ["one text", 7, [1, 2], ["a", None], {"a": 1}, 2.5], ids=str)
def test_other_hint_cells_name_the_row(cell: Any) -> None:
    with pytest.raises(ValueError, match=r"training row 11: column 'hint' must be a list of sentences"):
        draw(HINTED, prompts([["a"], cell, ["b"]]))


# --- prefixes --------------------------------------------------------------------------------------------------------


def test_prefixes_come_from_each_prompts_own_demonstration() -> None:
    demonstrations = {
        "a": Demonstration(10, 0, (1,), (5, 6, 7, 2)),
        "c": Demonstration(12, 0, (1,), (8, 9, 2)),
    }
    a, b, c = draw(DemonstrationInGroup(4, prefixes=HALVES), prompts(), demonstrations)
    assert a == (ResponsePrefix((5, 6), True, 0.5), ResponsePrefix((5, 6), True, 0.5), NO_PREFIX, NO_PREFIX)
    assert b == (NO_PREFIX,) * 4  # no demonstration
    assert [prefix.ids for prefix in c] == [(8,), (8,), (), ()]  # int(1.5) tokens
    assert c[0].share == 1 / 3


# --- columns and metrics ---------------------------------------------------------------------------------------------


def test_columns_have_a_row_per_rollout() -> None:
    columns = prefix_columns([ResponsePrefix((5, 6), True), NO_PREFIX, ResponsePrefix((7,), False)])
    assert list(columns[PREFIX_COLUMN]) == [[5, 6], [], [7]]
    assert columns[PREFIX_TRAINED_COLUMN].tolist() == [True, False, False]
    assert columns[PREFIX_LENGTH].tolist() == [2, 0, 1]
    equal = prefix_columns([ResponsePrefix((5, 6), True), ResponsePrefix((7, 8), True)])[PREFIX_COLUMN]
    assert equal.shape == (2,) and list(equal) == [[5, 6], [7, 8]], "lists of one length stay lists"


def test_plain_rollouts_ship_no_columns() -> None:
    assert prefix_columns([NO_PREFIX, ResponsePrefix((), shortened=True)]) == {}
    assert prefix_columns([]) == {}


def test_metrics() -> None:
    prefixes = [(ResponsePrefix((1, 2), share=0.75),) * 2, (ResponsePrefix((), share=0.0, shortened=True),) * 2, ()]
    assert prefix_metrics(prefixes) == {"fusion/hint_frac": 0.375, "fusion/hint_shortened": 1.0}
    assert prefix_metrics([(), ()]) == {"fusion/hint_frac": 0.0, "fusion/hint_shortened": 0.0}
