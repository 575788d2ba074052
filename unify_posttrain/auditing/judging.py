"""Every response before every judge: versions of the grader, the version that a row names, and math-verify alone.

Each verdict is found in a process that can be killed and is confined: a judge that hangs costs that verdict, which is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unify_posttrain.auditing.records import Record
from unify_posttrain.auditing.settings import Settings
from unify_posttrain.rewards.grading import grade_item
from unify_posttrain.rewards.math import plain_ground_truth
from unify_posttrain.rewards.pool import KillablePool, Outcome

OWN, MATH_VERIFY = "own", "math-verify"
TARGET = "unify_posttrain.auditing.judging:judge_item"
RIGHT, WRONG, NO_ANSWER, MASKED = "right", "wrong", "no answer", "masked"  # or a fault of `rewards.pool.FAULTS`


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a response.

    Attributes:
        state: RIGHT, WRONG, NO_ANSWER (wrong, too), MASKED (the ground truth cannot be graded against, so nothing is said),
            or the fault of the judge.
        answer: that was found.
        seconds: of processor time; of a fault the time limit, if that was it, else 0.
    """

    state: str
    answer: str = ""
    seconds: float = 0.0

    @property
    def right(self) -> bool | None:
        """None: masked."""
        return None if self.state == MASKED else self.state == RIGHT


@dataclass(frozen=True)
class Judged:
    """A record and its verdicts, by judge."""

    record: Record
    verdicts: Mapping[str, Verdict]

    @property
    def differs(self) -> bool:
        """Whether a judge finds it right and another one finds it wrong."""
        return len({verdict.right for verdict in self.verdicts.values()} - {None}) == 2


def judge(records: Sequence[Record], versions: Sequence[int], settings: Settings) -> list[Judged]:
    """All records before the versions, before their own version if any names one, and before math-verify.

    Raises:
        WorkerStartError: the graders cannot start.
    """
    asked = [_asked(record, versions) for record in records]
    wanted = list(dict.fromkeys((number, by) for number, judges in enumerate(asked) for by in judges.values()))
    items = [_item(records[number], by) for number, by in wanted]
    with KillablePool(TARGET, settings.workers, settings.timeout_seconds, settings.memory_mb, confined=True) as pool:
        # As in training: a ground truth is asked about once, and one that cannot be computed is no fault of an answer.
        golds = list({_key(item): {"gold": item["gold"], "by": item["by"]} for item in items}.values())
        usable = {_key(item): _usable(outcome) for item, outcome in zip(golds, pool.map(golds), strict=True)}
        outcomes = iter(pool.map(item for item in items if usable[_key(item)]))
    found = {
        pair: _verdict(next(outcomes), settings) if usable[_key(item)] else Verdict(MASKED)
        for pair, item in zip(wanted, items, strict=True)
    }
    return [
        Judged(record, {name: found[number, by] for name, by in judges.items()})
        for number, (record, judges) in enumerate(zip(records, asked, strict=True))
    ]


def _asked(record: Record, versions: Sequence[int]) -> dict[str, int | str]:
    own: dict[str, int | str] = {} if record.version is None else {OWN: record.version}
    return {**own, **{str(version): version for version in versions}, MATH_VERIFY: MATH_VERIFY}


def _item(record: Record, by: int | str) -> dict[str, Any]:
    return {"text": record.response, "gold": plain_ground_truth(record.ground_truth), "by": by}


def _key(item: Mapping[str, Any]) -> tuple[str, Any]:
    return repr(item["gold"]), item["by"]


def _usable(outcome: Outcome) -> bool:
    return outcome.fault is None and bool(outcome.value["gold_ok"])


def _verdict(outcome: Outcome, settings: Settings) -> Verdict:
    if outcome.fault is not None:
        return Verdict(outcome.fault, outcome.detail, settings.timeout_seconds if outcome.fault == "timeout" else 0.0)
    value = outcome.value
    if not value["gold_ok"]:
        return Verdict(MASKED, value["pred"], value["seconds"])
    state = RIGHT if value["acc"] else WRONG if value["pred"] else NO_ANSWER
    return Verdict(state, value["pred"], value["seconds"])


# In the worker -------------------------------------------------------------------------------------------------------


def judge_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """{"gold", "by"} -> {"gold_ok"}; with "text" the verdict: {"acc", "pred", "gold_ok", "seconds"}."""
    begun = time.process_time()
    find: Callable[[Mapping[str, Any]], dict[str, Any]] = _by_math_verify if item["by"] == MATH_VERIFY else _by_version
    return {**find(item), "seconds": time.process_time() - begun}


def _by_version(item: Mapping[str, Any]) -> dict[str, Any]:
    return grade_item({**{name: item[name] for name in ("text", "gold") if name in item}, "version": item["by"]})


def _by_math_verify(item: Mapping[str, Any]) -> dict[str, Any]:
    """The library as it is, of which nothing of the grader is a part. It reads LaTeX; its parser of plain text would run that."""
    golds = item["gold"] if isinstance(item["gold"], list) else [item["gold"]]
    parsed = [found for gold in golds if (found := _parsed(str(gold) if "\\boxed" in str(gold) else f"\\boxed{{{gold}}}"))]
    if "text" not in item:
        return {"gold_ok": float(bool(parsed))}
    answer = _parsed(item["text"])
    right = bool(answer) and any(_verified(gold, answer) for gold in parsed)
    return {"acc": float(right), "pred": str(answer[-1]) if answer else "", "gold_ok": float(bool(parsed))}


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    return parse(text, extraction_config=(LatexExtractionConfig(),), parsing_timeout=None)


def _verified(gold: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None))
