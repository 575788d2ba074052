"""The verifier of general points: reading of answers, faults, rewards and words, as published and as ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.tasks.environments import node
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.general_points.answers import read_cards, read_formula
from unify_posttrain.tasks.general_points.cards import LABELS, Hand
from unify_posttrain.tasks.general_points.environment import GeneralPoints
from unify_posttrain.tasks.general_points.prompts import SHOWN_FAULTS, feedback, message
from unify_posttrain.tasks.general_points.verifier import Finding, Verifier

# --- reading -----------------------------------------------------------------------------------------------------------

READING = [
    ('{"formula": "(1+2+3)*4=24"}', "(1+2+3)*4", "(1+2+3)*4"),
    ('{"cards": ["A"], "formula": "(1+2+3)*4=24",}', "(1+2+3)*4", "(1+2+3)*4"),  # a comma: no JSON
    ('{"formula":"4*6"}', "4*6", "4*6"),  # JSON
    ('{"formula" : "4*6=25",}', "4*6", None),
    ("{\"formula\": '4*6=24'}", "4*6", None),
    ('I think "formula": "1+1=2" no, "formula": "4*6=24",', "4*6", "1+1"),
    ('{"formula": "=24"}', "", ""),
    ('{"formula": 24}', None, None),
    ('{"formula": ["4*6"]}', None, None),
    ('{"formula": "4*6', None, None),
    ("formula: 4*6", None, None),
    ("[1,2]", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("text", "native", "upstream"), READING)
def test_reading_table(text: str, native: str | None, upstream: str | None) -> None:
    for style, expected in (("native", native), ("upstream", upstream)):
        found = read_formula(text, style)
        assert (None if found is None else found.left) == expected


@pytest.mark.parametrize(
    ("text", "left", "right"),
    [
        ("{c:K 3 8;n:10 3 8;f:(10-3)*8=24}", "(10-3)*8", "24"),
        ("f:1+1=2;f:4*6}", "4*6", None),
        ("{c:K;f:4*6", None, None),
        ("half:4*6}", None, None),
        ('{"formula": "4*6"}', None, None),
    ],
)
def test_compact_answers(text: str, left: str | None, right: str | None) -> None:
    found = read_formula(text, "compact")
    assert (found and found.left, found and found.right) == (left, right)


def test_cards_of_an_answer() -> None:
    assert read_cards('{"cards": ["A", "10"]}', "native") == ("A", "10")
    assert read_cards("{\"cards\": ['A', '10'],\n}", "upstream") == ("A", "10")
    assert read_cards("{c:K 3 8;f:1}", "compact") == ("K", "3", "8")
    assert read_cards("nothing", "native") is None


# --- verdicts ----------------------------------------------------------------------------------------------------------

NO_MATCH = "{} is partially correct but the full formula does not match any solution"
NONE = "your formula does not match any solution"
UNUSED, INVALID = "you didn't use numbers: [{}]", "you used invalid numbers: [{}]"
# values, left-hand side, reward and outcome and message of upstream, (reward, outcome) of native where they differ
VERDICTS: list[tuple[tuple[int, ...], str, float, str, str | None, Any]] = [
    *(
        ((1, 2, 3, 4), text, 5, "correct_solution", None, None)
        for text in ("(1+2+3)*4", "((1+2)+3)*4", "(1+2+3)*(4)", "(4+2)*(3+1)")
    ),
    ((4, 3, 2, 10), "4*3+2+10", 5, "correct_solution", None, None),
    ((13, 1, 3, 6), "(13-1)*6/3", 5, "correct_solution", None, None),
    ((1, 5, 5, 5), "5*(5-1/5)", 5, "correct_solution", None, None),
    ((4, 4, 10, 10), "(10*10-4)/4", 5, "correct_solution", None, None),
    ((3, 3, 8, 8), "8/(3-8/3)", 5, "correct_solution", None, None),
    *(
        ((1, 2, 3, 4), text, 1, "partial_solution", "partial solution", (0, "partial_solution"))
        for text in ("4*(1+2+3", "1*(2*3*4")
    ),
    ((1, 2, 3, 4), "(1+2+3*4", -1, "no_solution", NO_MATCH.format("(1+2+3"), None),
    ((1, 2, 3, 4), "1*2*3*4*", -1, "no_solution", NO_MATCH.format("1*2*3*4"), None),
    ((1, 2, 3, 4), "1+2+3+4", -1, "no_solution", NO_MATCH.format("1"), None),
    ((1, 2, 3, 4), "4/(3-2-1)", -1, "no_solution", NO_MATCH.format("4/("), None),
    ((10, 10, 10, 4), "10*4-10-10", -1, "no_solution", NONE, None),
    ((1, 2, 3, 4), "04*(1+2+3)", -1, "no_solution", NONE, (-3, "illegal_formula")),
    ((3, 1, 13, 6), "(1+6)*3+13", -1, "no_solution", NO_MATCH.format("(1+"), None),
    *(((1, 2, 3, 4), text, -2, "incorrect_number", UNUSED.format(4), None) for text in ("1+2+3", "(1+2+3)*")),
    ((1, 2, 3, 4), "(1+2+3)*4+4", -2, "incorrect_number", "you used numbers: [4] too many times", None),
    ((1, 2, 3, 4), "", -2, "incorrect_number", UNUSED.format("1, 2, 3, 4"), None),
    ((1, 2, 3, 4), "1+2+3+5", -4, "aggregated_error", f"{INVALID.format(5)}, {UNUSED.format(4)}", None),
    ((1, 2, 3, 4), "24", -4, "aggregated_error", f"{INVALID.format(24)}, {UNUSED.format('1, 2, 3, 4')}", None),
    ((3, 1, 10, 6), "(1+6)*3+13", -4, "aggregated_error", f"{INVALID.format(13)}, {UNUSED.format(10)}", None),
    ((3, 1, 13, 6), "(1+6)*3+10", -4, "aggregated_error", f"{INVALID.format(10)}, {UNUSED.format(13)}", None),
    ((1, 2, 3, 4), "(1 + 2 + 3) * 4", -3, "illegal_formula", "illegal characters", (5, "correct_solution")),
    *(((1, 2, 3, 4), text, -3, "illegal_formula", "illegal characters", None) for text in ("None", "(1+2+3)*4.0", "(1+2+3)×4")),
    *(((1, 2, 3, 4), text, -3, "illegal_formula", "invalid sequence after operator", None) for text in ("-1+2+3+4", "2**3+1*4")),
    ((1, 2, 3, 4), "1+2+3)*4", -3, "illegal_formula", "unmatched closing parenthesis", None),
    (
        (1, 2, 3, 4), "(1+2)(3+4)", -6, "aggregated_error", "invalid sequence before '(', unmatched closing parenthesis",
        (-5, "aggregated_error"),
    ),
    *(
        (
            (1, 2, 3, 4), text, -6, "aggregated_error", "invalid sequence after ')', invalid sequence after number",
            (-5, "aggregated_error"),
        )
        for text in (")1+2+3+4", "()1+2+3+4")
    ),
    (
        (1, 2, 3, 4), "8//3", -7, "aggregated_error",
        f"invalid sequence after operator, {INVALID.format(8)}, {UNUSED.format('1, 2, 4')}", (-5, "aggregated_error"),
    ),
]  # fmt: skip


def verifier(**changes: Any) -> Verifier:
    made = make_environment(node("general_points", **changes))
    assert isinstance(made, GeneralPoints)
    return made.verifier


def hand(values: tuple[int, ...], style: str, rule: str | None = None) -> Hand:
    return Hand(tuple(LABELS[value - 1] for value in values), rule or ("rank" if max(values) > 10 else "ten"), 24, style)


def judged(values: tuple[int, ...], left: str, style: str, **changes: Any) -> Finding:
    return verifier(**changes).judge(f'{{"formula": "{left}=24"}}', hand(values, style))


@pytest.mark.parametrize(("values", "left", "reward", "outcome", "said", "native"), VERDICTS)
def test_verdicts(values: tuple[int, ...], left: str, reward: float, outcome: str, said: str | None, native: Any) -> None:
    found = judged(values, left, "upstream")
    assert (found.outcome, found.reward) == (outcome, reward)
    if said is not None:
        assert feedback(found, "upstream") == f"You failed this trial because {said}."
    ours = judged(values, left, "native")
    assert (ours.reward, ours.outcome) == (native or (reward, outcome))
    assert (ours.outcome == "correct_solution") == (not message(ours, "native"))
    assert judged(values, left, "native", upstream_compat=True).outcome == outcome or left == "8/(3-8/3)"


def test_published_floats_miss_the_only_solution() -> None:
    found = judged((3, 3, 8, 8), "8/(3-8/3)", "upstream", upstream_compat=True)
    # 8/3 = 2.666…5 in floats, so 8/(3-8/3) = 23.99…
    assert (found.outcome, found.reward) == ("no_solution", 0)
    assert feedback(found, "upstream") == "You failed this trial because ."


@pytest.mark.parametrize(
    ("right", "checked", "outcome"),
    [("=24", True, "correct_solution"), ("= 24 ", True, "correct_solution"), ("=25", True, "no_solution"),
     ("=25", False, "correct_solution"), ("", True, "correct_solution"), ("=24=24", True, "no_solution")],
)  # fmt: skip
def test_the_right_hand_side(right: str, checked: bool, outcome: str) -> None:
    found = verifier(check_rhs=checked).judge(f'{{"formula": "(1+2+3)*4{right}"}}', hand((1, 2, 3, 4), "native"))
    assert found.outcome == outcome


@pytest.mark.parametrize(
    ("rule", "left", "other"),
    [
        ("rank", "(1+6)*3+10", False),  # the values of the other rule, another value: 31
        ("rank", "(10-6+(1*3))", False),
        ("rank", "10*3-6*1", True),  # 24 with K worth 10
        ("rank", "(13-1)*6/3", False),  # right as asked
        ("ten", "(13-1)*6/3", True),
        ("ten", "10*3-6*1", False),
        ("ten", "(13-1)**6/3", False),
    ],
)
def test_right_under_the_other_rule(rule: str, left: str, other: bool) -> None:
    found = verifier().judge(f'{{"formula": "{left}"}}', hand((13, 1, 3, 6), "native", rule))
    assert found.other_rule == other


def test_a_hand_without_faces_has_no_other_rule() -> None:
    assert not judged((1, 2, 3, 4), "(1+2+3)*4", "native").other_rule


def test_pictures_are_read_before_anything_else() -> None:
    of_hand = hand((1, 2, 3, 4), "native")
    right, wrong = (json.dumps({"cards": [label, "2", "3", "4"], "formula": "(1+2+3)*4"}) for label in ("A", "5"))
    assert verifier().judge(right, of_hand, check_cards=True).outcome == "correct_solution"
    found = verifier().judge(wrong, of_hand, check_cards=True)
    assert (found.outcome, found.reward) == ("incorrect_vision", -1.5)
    assert verifier().judge(wrong, of_hand).outcome == "correct_solution"


HOSTILE = [
    "9**9**9", "(" * 10_000, ")" * 10_000, "9" * 5_000, "\x00", "\ud800", "x" * 1_000_000, "1+" * 500_000, "__import__('os')",
    "\u0661+\u0662",
    "((((1))))+2+3+4", "1e9", "0x10", "1_0", "/" * 4096, "1/0", "1/(2-2)+3*4",
]  # fmt: skip


@pytest.mark.parametrize("left", HOSTILE, ids=lambda left: ascii(left[:12]))
@pytest.mark.parametrize("style", ["native", "upstream"])
def test_hostile_formulas_cost_their_reward_and_no_more(left: str, style: str) -> None:
    found = judged((1, 2, 3, 4), left, style)
    assert found.reward <= 0 and found.outcome != "correct_solution"
    assert len(feedback(found, style)) < 400
    assert len(found.left) <= 4096


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"formula": ' + "9" * 5000 + "}", '{"formula": "4*6"' * 1000])
def test_hostile_documents(text: str) -> None:
    assert verifier().judge(text, hand((1, 2, 3, 4), "native")).reward < 0


def test_the_end_of_a_long_answer_is_read() -> None:
    answer = '"formula": "(1+2+3)*4=24"}'
    assert verifier().judge("x" * 1_000_000 + answer, hand((1, 2, 3, 4), "native")).outcome == "correct_solution"
    assert verifier(read_characters=20).judge(answer, hand((1, 2, 3, 4), "native")).outcome == "illegal_formula"


def test_many_faults_are_said_once_each() -> None:
    found = judged((1, 2, 3, 4), ")(1(2*/" * 200, "native")
    assert len(found.faults) > 500 and found.reward == -5  # reward_floor
    assert message(found, "native").count(";") < SHOWN_FAULTS


@pytest.mark.parametrize("style", ["native", "upstream", "compact"])
def test_feedback_has_words_for_every_fault(style: str) -> None:
    lefts = {left for _, left, *_ in VERDICTS} | {"04*(1+2+3)", "1+2+3+4"}
    findings = [judged((1, 2, 3, 4), left, "native") for left in lefts]
    said = {feedback(found, style) for found in findings if found.faults}
    assert len(said) > 8 and all("{}" not in text for text in said)
    assert {fault.name for found in findings for fault in found.faults} >= {
        "leading_zero",
        "partial",
        "unmatched",
        "too_often",
        "invalid",
    }
