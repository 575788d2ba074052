"""The reward of UFT on countdown (arXiv 2505.16984): 0 without an answer, 0.1 for a wrong one, 1 for a right one.

The answer is what the last line of the response has between its last `<answer>` and `</answer>`: a formula that uses every given
number exactly once and makes the target. The released code evaluates it as Python in floats; here it is computed exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from unify_posttrain.tasks.formula import FormulaError, evaluate

ANSWER = re.compile(r"<answer>(.*?)</answer>")
ANSWERED, RIGHT = 0.1, 1.0


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Mapping[str, Any],
    extra_info: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """Score of a response; verl's reward-function signature.

    Args:
        ground_truth: {"target": int, "numbers": [int, ...]}, as a mapping or as JSON text.

    Returns:
        ``{"score": 0.0 | 0.1 | 1.0, "acc": 1.0 if the answer is right else 0.0}``.

    Raises:
        ValueError: ``ground_truth`` is not such a mapping.
    """
    target, numbers = _truth(data_source, ground_truth)
    answers = ANSWER.findall(solution_str.rpartition("\n")[2])
    if not answers:
        return {"score": 0.0, "acc": 0.0}
    try:
        formula = evaluate(answers[-1].strip())
    except FormulaError:
        return {"score": ANSWERED, "acc": 0.0}
    right = formula.value == target and formula.numbers == numbers
    return {"score": RIGHT if right else ANSWERED, "acc": float(right)}


def _truth(data_source: str, ground_truth: str | Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    try:
        truth = json.loads(ground_truth) if isinstance(ground_truth, str) else ground_truth
        return int(truth["target"]), tuple(sorted(int(number) for number in truth["numbers"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(
            f"reward_model.ground_truth of data_source={data_source!r} is {ground_truth!r}; give a target and numbers, such as "
            '{"target": 29, "numbers": [8, 3, 5]}'
        ) from None
