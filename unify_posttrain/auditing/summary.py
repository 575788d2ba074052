"""What came of judging, in numbers: plain data, ready for JSON."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unify_posttrain.auditing.judging import MASKED, MATH_VERIFY, NO_ANSWER, OWN, RIGHT, Judged, Verdict
from unify_posttrain.auditing.settings import Settings
from unify_posttrain.rewards.pool import FAULTS

SLOW_SHARE = 100  # the slowest of so many: p99


def summarise(judged: Sequence[Judged], settings: Settings) -> dict[str, Any]:
    """Counts of everything that is shown.

    Returns:
        rows, differing: counts. judges: name -> counts of its states, accuracy over the rows that are not masked, seconds.
        against_math_verify: name -> how often both, one or none of the two say right. pairs: (judge, judge, rows on which they
        differ). slowest: places with judge, seconds, state, answer. expected: None, or `judge` (the one that is held against it),
        its counts, those of the other judges, and families by name.
    """
    judges = list(dict.fromkeys(name for each in judged for name in each.verdicts))
    by_judge = {name: [each.verdicts[name] for each in judged if name in each.verdicts] for name in judges}
    return {
        "rows": len(judged),
        "differing": sum(each.differs for each in judged),
        "judges": {name: _counts(verdicts) for name, verdicts in by_judge.items()},
        "against_math_verify": {name: _crossed(judged, name) for name in judges if name != MATH_VERIFY},
        "pairs": [
            {"judges": [one, other], "rows": sum(_differ(each, one, other) for each in judged)}
            for number, one in enumerate(judges)
            for other in judges[number + 1 :]
        ],
        "slowest": _slowest(judged, settings.slowest),
        "expected": _expected(judged, judges, settings),
    }


def _counts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    states = Counter(verdict.state for verdict in verdicts)
    graded = len(verdicts) - states[MASKED]
    seconds = sorted(verdict.seconds for verdict in verdicts if verdict.state != MASKED)
    return {
        "rows": len(verdicts),
        "graded": graded,
        "right": states[RIGHT],
        "accuracy": states[RIGHT] / graded if graded else None,
        "no_answer": states[NO_ANSWER],
        "masked": states[MASKED],
        "faults": {fault: states[fault] for fault in FAULTS if states[fault]},
        "seconds_median": statistics.median(seconds) if seconds else None,
        "seconds_p99": seconds[-1 - len(seconds) // SLOW_SHARE] if seconds else None,
        "seconds_most": seconds[-1] if seconds else None,
    }


def _crossed(judged: Sequence[Judged], name: str) -> dict[str, int]:
    """Rows on which both say something."""
    pairs = [
        (each.verdicts[name].right, each.verdicts[MATH_VERIFY].right)
        for each in judged
        if {name, MATH_VERIFY} <= set(each.verdicts)
    ]
    said = Counter(pair for pair in pairs if None not in pair)
    return {
        "both_right": said[True, True],
        "only_judge": said[True, False],
        "only_math_verify": said[False, True],
        "both_wrong": said[False, False],
        "one_masked": len(pairs) - sum(said.values()),
    }


def _differ(each: Judged, one: str, other: str) -> bool:
    rights = {each.verdicts[name].right for name in (one, other) if name in each.verdicts}
    return rights == {True, False}


def _slowest(judged: Sequence[Judged], most: int) -> list[dict[str, Any]]:
    found = [
        {"row": each.record.place, "judge": name, "seconds": verdict.seconds, "state": verdict.state, "answer": verdict.answer}
        for each in judged
        for name, verdict in each.verdicts.items()
    ]
    return sorted(found, key=lambda one: -one["seconds"])[:most]


def main_judge(judged: Sequence[Judged], settings: Settings) -> str:
    """The judge that is held against `expected`: the rows' own version, the one that was asked for, or that of the settings."""
    judges = dict.fromkeys(name for each in judged for name in each.verdicts)
    versions = [name for name in judges if name not in (OWN, MATH_VERIFY)]
    if OWN in judges:
        return OWN
    return str(settings.version) if str(settings.version) in versions else versions[0]


def _expected(judged: Sequence[Judged], judges: Sequence[str], settings: Settings) -> dict[str, Any] | None:
    known = [each for each in judged if each.record.expected is not None]
    if not known:
        return None
    main = main_judge(judged, settings)
    families = sorted({each.record.family for each in known} - {""})
    return {
        "judge": main,
        "judges": {name: agreement(known, name) for name in judges},
        "families": {
            family: {
                name: agreement([each for each in known if each.record.family == family], name) for name in (main, MATH_VERIFY)
            }
            for family in families
        },
    }


def agreement(known: Sequence[Judged], name: str) -> dict[str, int]:
    """How often a judge says what is expected. A row that it masks counts as not accepted, as it does for a policy."""
    said = Counter((bool(each.verdicts[name].right), each.record.expected) for each in known if name in each.verdicts)
    return {
        "rows": sum(said.values()),
        "agree": said[True, True] + said[False, False],
        "false_accepts": said[True, False],
        "false_rejects": said[False, True],
    }


def as_json(judged: Sequence[Judged], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary, and every row with its verdicts."""
    rows = [
        {
            "row": each.record.place,
            "expected": each.record.expected,
            "family": each.record.family,
            "differs": each.differs,
            "verdicts": {
                name: {"state": verdict.state, "answer": verdict.answer, "seconds": round(verdict.seconds, 6)}
                for name, verdict in each.verdicts.items()
            },
        }
        for each in judged
    ]
    return {**summary, "verdicts": rows}
