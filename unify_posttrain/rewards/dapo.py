"""The verdict on a last line `Answer: …` (DAPO, arXiv 2503.14476; its data asks for it and has whole numbers as answers)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from unify_posttrain.rewards import extraction
from unify_posttrain.rewards.answers.spelling import spelled
from unify_posttrain.rewards.equality import PROBE, equal_answers
from unify_posttrain.rewards.grading import Grade, gold_answers


def grade_answer_line(text: str, ground_truth: Any, bold: bool = False) -> Grade:
    """Compare what follows the last `Answer:` (out of its box, if it is in one) with the ground truth, as far as sympy goes.

    Args:
        text: the response.
        ground_truth: the answer, or several of which any will do.
        bold: whether the line may be in bold (`**Answer:** 13`), see `extraction.answer_line`.

    Returns:
        score 1 or 0, and the other fields of a Grade.
    """
    golds = [gold for gold in gold_answers(ground_truth) if spelled(gold)]
    line = extraction.answer_line(text, bold)
    answer = None if line is None else extraction.last_boxed(line) or line
    pred = spelled(answer) if answer else ""
    right = bool(pred) and any(equal_answers(answer, gold) for gold in golds)
    return Grade(float(right), float(right), pred, float(bool(pred)), float(bool(golds)))


def grade_item(item: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`grade_answer_line` for a worker: ``{"text", "gold", "bold"}``; without text: {"gold_ok"}, see `grading.gradable`."""
    if "text" not in item:
        golds = [gold for gold in gold_answers(item["gold"]) if spelled(gold)]
        for gold in golds:
            equal_answers(PROBE, gold)
        return {"gold_ok": float(bool(golds))}
    return asdict(grade_answer_line(item["text"], item["gold"], bool(item.get("bold"))))
