r"""Grade one response: extraction, comparison, and the versions that the released codes call `data.reward_impl_version`.

    version  what is read                                 equality                                 score
    0        last box after </think>                      text, number, structure, symbols         1 / 0
    1        as 0                                         as 0                                     1 / -0.5 wrong / -1 no format
    2        last box                                     as 0                                     1 / 0
    3        between the first </think> and the second    math-verify alone                        1 / 0    (LUFFY, ReLIFT)
    4        everything                                   math-verify alone                        1 / 0
    5        box, or what follows "answer is", "=", ...   as 0, or numeric to 1e-4, π also 3.14    1 / 0    (as PRIME grades)
    6        last box                                     as 0, then math-verify                   1 / 0    (HPT)
    7        as 6, after the last </think>                as 6                                     1 / 0

A response cannot hold the `<think>` that a prompt ends with; every version that asks for thinking asks for its end only, so nothing
has to be prepended. The ground truth may be a list (any of them), or boxed.

Functions here may hang or take all memory: call them through `unify_posttrain.rewards.math`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unify_posttrain.rewards import extraction
from unify_posttrain.rewards.answers.spelling import spelled
from unify_posttrain.rewards.equality import PROBE, equal_answers, parse_latex, parse_published, same_as_published

# What PRIME's grader looks behind when there is no box, each at its last occurrence.
_LEADS = ("answer is", "answer:", "answers are", " is ", " are ", "=", ": ")


@dataclass(frozen=True)
class Version:
    """How a version reads, compares and scores.

    Attributes:
        scope: response -> the part that is read; None: the required format is missing.
        extract: that part -> the answer; None: math-verify finds it itself.
        math_verify, numeric: rungs of `equality.equal_answers`.
        wrong, no_format: scores.
    """

    scope: Callable[[str], str | None]
    extract: Callable[[str], str | None] | None = extraction.last_boxed
    math_verify: bool = False
    numeric: bool = False
    wrong: float = 0.0
    no_format: float = 0.0


@dataclass(frozen=True)
class Grade:
    """The verdict on one response.

    Attributes:
        score: the version's.
        acc: 1 right, 0 wrong.
        pred: normal form of the answer that was found, for majority votes; empty if none was.
        formatted: 1 if the response has the form that the version asks for and holds an answer.
        gold_ok: 0 if the ground truth cannot be graded against: leave such rows out, they say nothing of the response.
    """

    score: float
    acc: float
    pred: str
    formatted: float
    gold_ok: float


def _whole(text: str) -> str | None:
    return text


def _prime_answer(text: str) -> str | None:
    """The last box, else what stands behind the last lead on its line, without a full stop and dollar signs."""
    boxed = extraction.last_boxed(text)
    if boxed is not None:
        return boxed
    line = extraction.final_line(text) or ""
    lower = line.lower()
    for lead in _LEADS:
        position = lower.rfind(lead)
        if position >= 0:
            line = line[position + len(lead) :]
            break
    return line.strip().strip("$.").strip() or None


VERSIONS: dict[int, Version] = {
    0: Version(extraction.after_first_think),
    1: Version(extraction.after_first_think, wrong=-0.5, no_format=-1.0),
    2: Version(_whole),
    3: Version(extraction.between_thinks, extract=None),
    4: Version(_whole, extract=None),
    5: Version(_whole, extract=_prime_answer, numeric=True),
    6: Version(_whole, math_verify=True),
    7: Version(extraction.after_last_think, math_verify=True),
}


def check_version(version: Any) -> int:
    """The version as an integer.

    Raises:
        ValueError: there is no such version.
    """
    if isinstance(version, bool) or version not in VERSIONS:
        raise ValueError(f"data.reward_impl_version={version!r} is unknown; choose one of {', '.join(map(str, VERSIONS))}")
    return int(version)


def grade(text: str, ground_truth: Any, version: int) -> Grade:
    """Grade a response.

    Args:
        text: the response, thinking included.
        ground_truth: the answer or several of which any will do; text, LaTeX, boxed or not.
        version: see the module.

    Raises:
        ValueError: an unknown version.
        TimeoutError: math-verify takes too long.
    """
    rule = VERSIONS[check_version(version)]
    golds = [gold for gold in gold_answers(ground_truth) if _gradable(gold, rule)]
    part = rule.scope(text)
    if rule.extract is None:
        found = part
        pred = _found_by_math_verify(part) if part is not None else ""
    else:
        found = rule.extract(part) if part is not None else None
        pred = spelled(found) if found else ""
    if not golds:
        return Grade(0.0, 0.0, pred, float(bool(pred)), 0.0)
    if not pred:
        return Grade(rule.no_format, 0.0, "", 0.0, 1.0)
    right = _equals_any(found, golds, rule)
    return Grade(1.0 if right else rule.wrong, float(right), pred, 1.0, 1.0)


def _equals_any(found: str, golds: Sequence[str], rule: Version) -> bool:
    """Whether an answer equals one of several; that another one takes too long does not matter then."""
    late: TimeoutError | None = None
    for gold in golds:
        try:
            if _equal(found, gold, rule):
                return True
        except TimeoutError as error:
            late = error
    if late is not None:
        raise late
    return False


def _equal(found: str, gold: str, rule: Version) -> bool:
    if rule.extract is None:
        return same_as_published(found, gold)
    return equal_answers(found, gold, math_verify=rule.math_verify, numeric=rule.numeric)


def _found_by_math_verify(part: str) -> str:
    found = parse_published(part)
    return str(found[-1]) if found else ""


def gold_answers(ground_truth: Any) -> list[str]:
    r"""The acceptable answers: of a list each, of a number its digits, of boxes their contents (of several all together).

    Anything else than text, numbers and lists of them gives none; so do truth values and numbers that are not finite.
    """
    if isinstance(ground_truth, str):
        stripped = ground_truth.strip()
        if stripped.startswith('["'):
            try:
                return gold_answers(json.loads(stripped))
            except (json.JSONDecodeError, RecursionError):
                return [stripped]
        boxes = list(dict.fromkeys(extraction.boxes(stripped)))
        return [", ".join(boxes) if boxes else stripped]
    if isinstance(ground_truth, int | float) and not isinstance(ground_truth, bool):
        return [repr(ground_truth)] if math.isfinite(ground_truth) else []
    if isinstance(ground_truth, Sequence):
        return [
            answer
            for gold in ground_truth
            for answer in ([] if isinstance(gold, Sequence) and not isinstance(gold, str) else gold_answers(gold))
        ]
    return []


def _gradable(gold: str, rule: Version) -> bool:
    if rule.extract is None:
        return bool(parse_latex(f"\\boxed{{{gold}}}"))
    return bool(spelled(gold))


def gradable(ground_truth: Any, version: int) -> bool:
    """Whether a response can be graded against this ground truth: it holds text, which math-verify can read if it alone decides.

    A ground truth that cannot be computed, such as 10^{10^{10}}, is found out by comparing it with something else: this call then
    takes all time or memory, instead of that of every answer.

    Raises:
        ValueError: an unknown version.
    """
    rule = VERSIONS[check_version(version)]
    golds = [gold for gold in gold_answers(ground_truth) if _gradable(gold, rule)]
    for gold in golds:
        _equal(f"\\boxed{{{PROBE}}}" if rule.extract is None else PROBE, gold, rule)
    return bool(golds)


def grade_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """`grade` and `gradable` for a worker: ``{"text", "gold", "version"}`` -> the fields of a Grade; without text: {"gold_ok"}."""
    if "text" not in item:
        return {"gold_ok": float(gradable(item["gold"], item["version"]))}
    return asdict(grade(item["text"], item["gold"], item["version"]))


def compare_item(item: Mapping[str, Any]) -> bool:
    """Equality of two answers for a worker: ``{"answer", "gold"}``, by all rungs of version 6."""
    return equal_answers(item["answer"], item["gold"], math_verify=True)


# One parse before the first child is forked: the grammar's tables are built lazily, and every child inherits them.
_WARM = (equal_answers(r"\frac{1}{2}+x^2", r"x^{2}+\sqrt{\frac{1}{4}}", math_verify=True), gradable(r"\left(0,1\right]", 4))
