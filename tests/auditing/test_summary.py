"""Counts of verdicts, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from unify_posttrain.auditing.judging import MASKED, MATH_VERIFY, NO_ANSWER, OWN, RIGHT, WRONG, Judged, Verdict
from unify_posttrain.auditing.records import Record
from unify_posttrain.auditing.settings import Settings, load_settings
from unify_posttrain.auditing.summary import main_judge, summarise

SETTINGS = load_settings()


def judged(place: int, expected: bool | None = None, family: str = "", **states: str) -> Judged:
    names = {name.replace("v", "").replace("maths", MATH_VERIFY): state for name, state in states.items()}
    record = Record(place, "r", "g", None, expected, family)
    return Judged(record, {name: Verdict(state, "x", place / 10) for name, state in names.items()})


ROWS = [
    judged(1, True, "a", v6=RIGHT, v2=RIGHT, maths=WRONG),
    judged(2, False, "a", v6=RIGHT, v2=WRONG, maths=WRONG),
    judged(3, True, "b", v6=NO_ANSWER, v2="timeout", maths=NO_ANSWER),
    judged(4, True, "b", v6=MASKED, v2=RIGHT, maths=RIGHT),
    judged(5, None, "", v6=WRONG, v2="crash", maths=MASKED),
]


def test_counts() -> None:
    summary = summarise(ROWS, SETTINGS)
    assert (summary["rows"], summary["differing"]) == (5, 2), "rows 1 and 2; who masks says nothing"
    six, two = summary["judges"]["6"], summary["judges"]["2"]
    assert {name: six[name] for name in ("rows", "graded", "right", "no_answer", "masked", "faults")} == {
        "rows": 5, "graded": 4, "right": 2, "no_answer": 1, "masked": 1, "faults": {},
    }  # fmt: skip
    assert six["accuracy"] == 2 / 4 and two["accuracy"] == 2 / 5, "a fault is not right"
    assert two["faults"] == {"timeout": 1, "crash": 1}
    # Seconds of version 6, without the masked row: 0.1, 0.2, 0.3, 0.5.
    assert (six["seconds_median"], six["seconds_p99"], six["seconds_most"]) == (pytest.approx(0.25), 0.5, 0.5)
    assert summary["against_math_verify"]["6"] == {
        "both_right": 0, "only_judge": 2, "only_math_verify": 0, "both_wrong": 1, "one_masked": 2,
    }  # fmt: skip
    assert {"judges": ["6", "2"], "rows": 1} in summary["pairs"]
    assert [each["row"] for each in summary["slowest"]][:4] == [5, 5, 5, 4]


def test_against_what_is_expected() -> None:
    expected = summarise(ROWS, SETTINGS)["expected"]
    assert expected["judge"] == "6"
    assert expected["judges"]["6"] == {"rows": 4, "agree": 1, "false_accepts": 1, "false_rejects": 2}, "a masked row is a reject"
    assert expected["families"]["a"]["6"] == {"rows": 2, "agree": 1, "false_accepts": 1, "false_rejects": 0}
    assert expected["families"]["b"][MATH_VERIFY] == {"rows": 2, "agree": 1, "false_accepts": 0, "false_rejects": 1}
    assert summarise([judged(1, v6=RIGHT, maths=RIGHT)], SETTINGS)["expected"] is None


def test_who_is_held_against_it() -> None:
    assert main_judge([judged(1, v2=RIGHT, v3=RIGHT, maths=RIGHT)], SETTINGS) == "2"
    assert main_judge([judged(1, v2=RIGHT, v6=RIGHT, maths=RIGHT)], SETTINGS) == "6"
    assert main_judge([Judged(Record(1, "", ""), {OWN: Verdict(RIGHT), "6": Verdict(RIGHT)})], SETTINGS) == OWN


@pytest.mark.parametrize("change", [{"workers": 0}, {"timeout_seconds": -1.0}, {"version": 8}])
def test_settings_are_checked(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}|{next(iter(change.values()))}"):
        load_settings(**change)
    assert load_settings(workers=None) == SETTINGS == Settings(**vars(SETTINGS))
