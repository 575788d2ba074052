"""Demonstration rows: reading targets, choosing among them, too long ones, packing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unify_posttrain.experience import Demonstration, DemonstrationReader, demonstration_tensors
from unify_posttrain.experience.demonstrations import Reading, teacher_probabilities
from unify_posttrain.experience.targets import targets_of
from unify_posttrain.experience.transcript import Transcript, TurnBudget, TurnFrame

EOS, PAD = 2, 0
PROMPT = [{"role": "user", "content": "p"}]


def reader(**keys: Any) -> DemonstrationReader:
    """Tokens are character codes; the prompt renders as `rendered` (default "p")."""
    rendered = keys.pop("rendered", "p")
    return DemonstrationReader(
        encode=lambda text: [ord(character) for character in text],
        render=lambda messages: (rendered, [ord(character) for character in rendered]),
        eos_id=EOS,
        **{"max_length": 16, **keys},
    )


def read(target: Any = None, row: Mapping | None = None, row_id: int = 7, step: int = 1, **keys: Any) -> Reading:
    return reader(**keys).read(row_id, PROMPT, {"target": target} if row is None else row, step)


def response(reading: Reading) -> str:
    """The response as text, EOS written as $."""
    assert reading.demonstration is not None
    return "".join("$" if token == EOS else chr(token) for token in reading.demonstration.response_ids)


# --- the specification's row: target 5, 6, 7, eos 2, pad 0 ----------------------------------------------------------


def digits(overlong: str, max_length: int) -> Reading:
    return DemonstrationReader(
        encode=lambda text: [int(character) for character in text],
        render=lambda messages: ("9", [9]),
        eos_id=EOS,
        max_length=max_length,
        overlong=overlong,
    ).read(0, PROMPT, {"target": "567"}, step=1)


def test_row_that_fits() -> None:
    reading = digits("drop", 6)
    assert reading == Reading(Demonstration(0, 0, (9,), (5, 6, 7, 2)), missing=False, overlong=False)
    packed = demonstration_tensors([reading.demonstration], prompt_length=2, response_length=6, pad_id=PAD)
    assert packed["responses"].tolist() == [[5, 6, 7, 2, 0, 0]]
    assert packed["response_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert packed["prefix_mask"].tolist() == [[True, True, True, True, False, False]]


def test_row_that_just_fits() -> None:
    # complete if and only if len(target) + 1 <= T
    assert digits("error", 4) == Reading(Demonstration(0, 0, (9,), (5, 6, 7, 2)), overlong=False)


def test_truncated_row_has_no_eos() -> None:
    assert digits("truncate", 3) == Reading(Demonstration(0, 0, (9,), (5, 6, 7)), overlong=True)
    assert digits("truncate", 2) == Reading(Demonstration(0, 0, (9,), (5, 6)), overlong=True)


def test_dropped_row_is_as_missing_and_counted() -> None:
    assert digits("drop", 3) == Reading(None, missing=False, overlong=True)


def test_overlong_error_names_row_and_remedies() -> None:
    with pytest.raises(ValueError, match=r"row 7.*4 tokens.*data\.max_response_length.*3.*fusion\.demo\.overlong"):
        read("abc", max_length=3, overlong="error")


# --- think blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rendered", "target", "expected"),
    [
        ("ask<think>\n", "<think>\nwell", "well$"),
        ("ask<think>\n", "<think>\n<think>\nx", "<think>\nx$"),  # once
        ("ask<think>\n", "well", "well$"),
        ("ask<think>\n", "<think>well", "well$"),  # white space behind the tag is the prompt's
        ("ask", "<think>\nwell", "<think>\nwell$"),
        ("ask<think>", "<think>\nwell", "\nwell$"),  # ... and what the target has beyond it stays
    ],
)
def test_think_opening_is_stripped_once(rendered: str, target: str, expected: str) -> None:
    assert response(read(target, rendered=rendered, max_length=64)) == expected


# --- forms of targets ------------------------------------------------------------------------------------------------

MESSAGE = [{"role": "assistant", "content": "abc"}]


@pytest.mark.parametrize(
    "target",
    ["abc", MESSAGE, tuple(MESSAGE), np.array(MESSAGE, dtype=object), json.dumps(MESSAGE), " " + json.dumps(MESSAGE)],
    ids=["text", "messages", "tuple", "array", "json", "json-with-space"],
)
def test_forms(target: Any) -> None:
    assert response(read(target)) == "abc$"


def test_text_that_only_looks_like_json_is_text() -> None:
    assert response(read("[{1,2}]")) == "[{1,2}]$"


@pytest.mark.parametrize("target", [None, "", [], [{"role": "assistant", "content": ""}], np.array([], dtype=object)])
def test_null_and_empty_are_missing(target: Any) -> None:
    assert read(target) == Reading(None, missing=True, overlong=False)


@pytest.mark.parametrize(
    "row", [{"target_lst": None}, {"target_lst": []}, {"target_lst": [None, ""]}, {"target": None, "target_lst": []}]
)
def test_lists_without_text_are_missing(row: dict) -> None:
    assert read(row=row).missing


@pytest.mark.parametrize(
    "target",
    [
        3,
        2.5,
        {"role": "assistant", "content": "abc"},
        [*MESSAGE, *MESSAGE],
        [{"role": "assistant", "content": ["x"]}],
        [5],
        b"abc",
    ],
    ids=["int", "float", "dict", "two turns", "parts", "tokens", "bytes"],
)
def test_wrong_types_name_row_and_column(target: Any) -> None:
    with pytest.raises(ValueError, match=r"training row 7: column 'target'"):
        read(target)


def test_missing_column_is_named() -> None:
    with pytest.raises(KeyError, match=r"training row 7.*'target'"):
        read(row={"prompt": "p"})


# --- several targets -------------------------------------------------------------------------------------------------


def texts(row: Mapping[str, Any]) -> list[str]:
    return [text for target in targets_of(row, 0) for text in target.texts]


def test_first_takes_target_before_the_list() -> None:
    row = {"target": "t", "target_lst": ["a", "b"]}
    assert texts(row) == ["t", "a", "b"]
    assert response(read(row=row)) == "t$"
    assert response(read(row={"target_lst": ["a", "b"]})) == "a$"
    assert response(read(row={"target": None, "target_lst": np.array(["a", "b"], dtype=object)})) == "a$"


def test_doubles_and_empty_ones_are_no_choice() -> None:
    assert texts({"target": "a", "target_lst": ["", "a", None, "b"]}) == ["a", "b"]


ROW = {"target_lst": ["a", "b", "c", "d"]}


def choices(seed: int, pairs: list[tuple[int, int]]) -> dict[tuple[int, int], str]:
    random = reader(select="random", seed=seed)
    return {(step, row_id): response(random.read(row_id, PROMPT, ROW, step)) for step, row_id in pairs}


def test_random_choice_does_not_depend_on_order_or_on_what_else_is_read() -> None:
    pairs = [(step, row_id) for step in range(5) for row_id in range(8)]
    forward = choices(3, pairs)
    assert choices(3, pairs[::-1]) == forward
    assert choices(3, [(4, 7)]) == {(4, 7): forward[4, 7]}
    assert set(forward.values()) == {"a$", "b$", "c$", "d$"}
    # it varies with each of seed, step and row
    assert choices(4, pairs) != forward
    assert len({forward[step, 0] for step in range(5)}) > 1
    assert len({forward[0, row_id] for row_id in range(8)}) > 1


def test_random_choice_is_uniform() -> None:
    drawn = list(choices(0, [(1, row_id) for row_id in range(2000)]).values())
    # 2000 draws, p = 1/4: deviation sqrt(2000 * 3/16) = 19.4; five of them
    assert all(abs(drawn.count(text) - 500) < 97 for text in ("a$", "b$", "c$", "d$"))


def test_key_names_row_and_target() -> None:
    demonstrations = [reader(select="random").read(5, PROMPT, ROW, step).demonstration for step in range(12)]
    for demonstration in demonstrations:
        assert demonstration.key == (5, "abcd".index(chr(demonstration.response_ids[0])))


# --- a teacher's probabilities ---------------------------------------------------------------------------------------


def test_one_probability_per_token_that_of_eos_may_be_absent() -> None:
    assert teacher_probabilities({"target_probs": [0.5, 0.25, 1.0]}, 0, 3) == (0.5, 0.25, 1.0)
    assert teacher_probabilities({"target_probs": np.array([0.5, 0.25])}, 0, 3) == (0.5, 0.25, 1.0)
    assert teacher_probabilities({"target_probs": (0, 1)}, 0, 2) == (0.0, 1.0)


@pytest.mark.parametrize("value", [None, [], [0.5], [0.5] * 4, [0.5, 1.5], [-0.1, 0.5], [float("nan"), 0.5]])
def test_other_lengths_and_numbers_name_row_column_and_setting(value: list | None) -> None:
    with pytest.raises(ValueError, match=r"training row 7: column 'target_probs' must hold 3 .*shaping\.name=target_prob"):
        teacher_probabilities({"target_probs": value}, 7, 3)


def test_probabilities_are_read_only_if_asked_for_and_stay_with_their_tokens() -> None:
    row = {"target": "abc", "target_probs": [0.1, 0.2, 0.3]}
    assert read(row=row).demonstration.probabilities == ()
    assert read(row=row, with_probabilities=True).demonstration.probabilities == (0.1, 0.2, 0.3, 1.0)
    cut = read(row=row, with_probabilities=True, max_length=2, overlong="truncate").demonstration
    assert (cut.response_ids, cut.probabilities) == ((97, 98), (0.1, 0.2))
    with pytest.raises(ValueError, match="training row 7: column 'target_probs'"):
        read(row={"target": "abc"}, with_probabilities=True)


def test_packed_probabilities() -> None:
    rows = [Demonstration(0, 0, (1,), (5, 2), (0.25, 0.5)), Demonstration(1, 0, (1,), (6, 7, 2), (0.1, 0.2, 1.0))]
    packed = demonstration_tensors(rows, prompt_length=1, response_length=4, pad_id=PAD)["target_probs"]
    assert packed.dtype == torch.float32
    torch.testing.assert_close(packed, torch.tensor([[0.25, 0.5, 1, 1], [0.1, 0.2, 1, 1]]))
    assert "target_probs" not in demonstration_tensors([Demonstration(0, 0, (1,), (5, 2))], 1, 4, PAD)


# --- packing ---------------------------------------------------------------------------------------------------------


def test_packing_by_hand() -> None:
    rows = [Demonstration(0, 0, (11, 12, 13), (5, 2)), Demonstration(1, 0, (14,), (6, 7, 8, 2))]
    packed = demonstration_tensors(rows, prompt_length=3, response_length=4, pad_id=PAD)
    assert packed["prompts"].tolist() == [[11, 12, 13], [0, 0, 14]]
    assert packed["responses"].tolist() == [[5, 2, 0, 0], [6, 7, 8, 2]]
    assert packed["input_ids"].tolist() == [[11, 12, 13, 5, 2, 0, 0], [0, 0, 14, 6, 7, 8, 2]]
    assert packed["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
    # positions count attended tokens, and the response continues the prompt
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 1, 2, 3, 4]]
    assert packed["response_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert {name: tensor.dtype for name, tensor in packed.items()} == {
        **dict.fromkeys(packed, torch.int64),
        "prefix_mask": torch.bool,
    }


TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=5).map(tuple)


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=4), st.integers(5, 7), st.integers(5, 7))
def test_packing_loses_nothing(pairs: list, prompt_length: int, response_length: int) -> None:
    """Left-padded prompts, right-padded responses; tokens equal to the padding token are still attended."""
    rows = [Demonstration(index, 0, prompt, answer) for index, (prompt, answer) in enumerate(pairs)]
    packed = demonstration_tensors(rows, prompt_length, response_length, PAD)
    for row, (prompt, answer) in enumerate(pairs):
        attended = packed["attention_mask"][row].bool()
        assert packed["input_ids"][row][attended].tolist() == [*prompt, *answer]
        assert packed["prompts"][row].tolist() == [PAD] * (prompt_length - len(prompt)) + list(prompt)
        assert packed["responses"][row].tolist() == list(answer) + [PAD] * (response_length - len(answer))
        assert packed["position_ids"][row][attended].tolist() == list(range(len(prompt) + len(answer)))
        assert packed["response_mask"][row].tolist() == [1] * len(answer) + [0] * (response_length - len(answer))
    assert torch.equal(packed["prefix_mask"], packed["response_mask"].bool())
    assert torch.equal(packed["input_ids"], torch.cat([packed["prompts"], packed["responses"]], dim=1))


@pytest.mark.parametrize(("prompt_length", "response_length"), [(2, 4), (3, 3)])
def test_what_does_not_fit_is_refused(prompt_length: int, response_length: int) -> None:
    with pytest.raises(ValueError, match=r"row 9: prompt of 3 and demonstration of 4.*data\.max_prompt_length"):
        demonstration_tensors([Demonstration(9, 0, (1, 1, 1), (5, 6, 7, 2))], prompt_length, response_length, PAD)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"overlong": "cut"}, r"fusion\.demo\.overlong='cut'.*drop, truncate, error"),
        ({"select": "best"}, r"fusion\.demo\.select='best'.*first, random"),
        ({"max_length": 0}, r"fusion\.demo\.max_length=0"),
    ],
)
def test_bad_settings_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reader(**keys)


# --- several turns -----------------------------------------------------------------------------------------------------

FRAME = TurnFrame((91, 92), (93,))
WORDS = st.text("abcd", min_size=1, max_size=6)


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(texts)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=4), WORDS)
def test_a_demonstration_of_several_turns_is_the_rollout_with_these_answers(turns: list[tuple[str, str]], last: str) -> None:
    recorded = Transcript(1, TurnBudget(9, 99, 1, 999))
    for answer, said in turns:
        recorded.answer([*map(ord, answer), EOS])
        recorded.judged(-1, True, False, False)
        recorded.feedback(FRAME.around([ord(character) for character in said]))
    recorded.answer([*map(ord, last), EOS])
    messages = conversation(*(text for turn in turns for text in turn), last)
    for target in (messages, json.dumps(messages)):
        found = reader(frame=lambda: FRAME, max_length=999).read(7, PROMPT, {"target": target}, 1).demonstration
        assert found is not None and list(found.response_ids) == recorded.ids
        assert (list(found.mask) or [1] * len(found.response_ids)) == recorded.mask
        assert [list(ids) for ids in found.answers] == [recorded.ids[begin:end] for begin, end in recorded.spans]
        tensors = demonstration_tensors([found], 4, 400, PAD)
        padded = recorded.mask + [0] * (400 - len(recorded.mask))
        assert tensors["response_mask"][0].tolist() == padded and tensors["prefix_mask"][0].long().tolist() == padded
        assert tensors["attention_mask"][0, 4:].sum() == len(recorded.ids)


def test_turns_that_do_not_fit_end_with_an_answer() -> None:
    """a b end, 3 tokens of frame around 1 of the user, c d end: cut in what the user says, nothing of it is kept."""
    target = conversation("ab", "x", "cd")
    whole = reader(frame=lambda: FRAME, max_length=10).read(7, PROMPT, {"target": target}, 1).demonstration
    assert whole is not None and len(whole.response_ids) == 10
    for length, kept in ((9, 9), (8, 8), (7, 3), (5, 3), (3, 3), (2, 2)):
        found = reader(frame=lambda: FRAME, max_length=length, overlong="truncate").read(7, PROMPT, {"target": target}, 1)
        assert found.overlong and found.demonstration is not None
        assert (found.demonstration.response_ids, found.demonstration.mask) == (whole.response_ids[:kept], whole.mask[:kept])
        assert found.demonstration.mask[-1] == 1
    assert reader(frame=lambda: FRAME, max_length=9).read(7, PROMPT, {"target": target}, 1).demonstration is None, "dropped"


def response_of(ids: tuple[int, ...]) -> str:
    return "".join("$" if token == EOS else chr(token) for token in ids)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (conversation("a", "b"), r"'target' holds 2 messages \(assistant, user\); those of several turns are assistant, user, …"),
        (conversation("a", "b", "c")[1:], r"\(user, assistant\)"),
        ([*conversation("a"), {"role": "tool", "content": "b"}, *conversation("c")], r"\(assistant, tool, assistant\)"),
        ([*conversation("a", "b"), {"role": "assistant", "content": ["c"]}], r"must hold messages with text content, not list"),
        ([*conversation("a", "b"), {"role": "assistant", "content": None}], r"must hold messages with text content, not NoneType"),
    ],
)
def test_messages_that_are_no_turns_name_the_row(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"training row 7: column {message}" if message.startswith("'") else message):
        reader(frame=lambda: FRAME).read(7, PROMPT, {"target": target}, 1)


def test_turns_need_a_frame_and_the_prompt_opens_the_first() -> None:
    with pytest.raises(TypeError, match="needs a frame"):
        read(conversation("a", "b", "c"))
    opened = reader(frame=lambda: FRAME, max_length=99, rendered="p<think>")
    found = opened.read(7, PROMPT, {"target": conversation("<think>ab", "x", "<think>cd")}, 1).demonstration
    assert found is not None and response_of(found.answers[0]) == "ab$" and response_of(found.answers[1]) == "<think>cd$"
