"""Ground truths before a run or an evaluation: those that no reward can use are refused, those that ours cannot read are counted.

Asked here once for all rows, nobody has to find out from a masked prompt in step 40. Functions of others take what they like, so of
them only the trial asks (`trial.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unify_posttrain.rewards.contract import shown

MODULE = "unify_posttrain.rewards.math"
FUNCTIONS = ("compute_score", "compute_dapo_score")
SYMBOLIC = 2  # the version whose ground truths `compute_dapo_score` takes: what the normal form can read
KEY = "reward_model.ground_truth"
EXACT = 2.0**53  # a whole number above it may be another one in the file that the float was read from
POOL = ("workers", "timeout_seconds", "memory_mb")


@dataclass(frozen=True)
class LeftOut:
    """Ground truths that cannot be graded against: how many of how many, and the first.

    Attributes:
        rows: positions of the rows among those that were asked about.
        asked: number of rows.
        first: the first such ground truth, for people.
    """

    rows: Sequence[int]
    asked: int
    first: str

    def sentence(self, place: str, consequence: str) -> str:
        """In words; `place` is that of the first row."""
        return (
            f"{len(self.rows)} of {self.asked} ground truths cannot be graded ({place} holds {self.first}), and {consequence}; "
            f"mend {KEY}, or leave such rows out by preparing the file with prepare.task.gold_version"
        )


def unusable(truth: Any) -> str | None:
    """Why the mathematics rewards cannot use a value at all, as the end of a sentence; None: they can."""
    if isinstance(truth, np.ndarray | np.generic):
        truth = truth.tolist()
    if isinstance(truth, list | tuple):
        if not truth:
            return "is an empty list"
        found = next((fault for each in truth if (fault := unusable(each))), None)
        return found and f"is a list in which a value {found}"
    if truth is None:
        return "is null"
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        return f"is of type {type(truth).__name__}: {shown(truth, 60)}"
    if isinstance(truth, str):
        return None if truth.strip() else "is empty"
    if isinstance(truth, float) and not math.isfinite(truth):
        return f"is {truth}"
    if isinstance(truth, float) and abs(truth) >= EXACT:
        return f"is the float {truth!r}, which stands for several whole numbers; write it as text"
    return None


def judges_mathematics(node: Mapping[str, Any]) -> bool:
    """Whether a node {path, name, …} is one of this package's rewards for mathematics."""
    return str(node.get("path")).endswith(MODULE) and node.get("name") in FUNCTIONS


def check_truths(node: Mapping[str, Any], truths: Iterable[tuple[str, Any]]) -> LeftOut | None:
    """Ask about every ground truth that a reward is going to meet.

    Args:
        node: {path, name, reward_kwargs} of the reward function.
        truths: (place of the row, ground truth).

    Returns:
        None if there is nothing to say: all can be graded, or the function is not ours to ask.

    Raises:
        ValueError: one of a type that no reward of this package can use, or none that can be graded; names row and key.
    """
    if not judges_mathematics(node):
        return None
    rows = list(truths)
    for place, truth in rows:
        fault = unusable(truth)
        if fault is not None:
            raise ValueError(f"{place}: {KEY} {fault}; the reward takes text, a number, or a list of accepted answers")
    options = node.get("reward_kwargs") or {}
    if any(key not in options for key in POOL):
        return None  # the function cannot be called, which the trial says
    version = int(options.get("version", SYMBOLIC)) if node["name"] == "compute_score" else SYMBOLIC
    from unify_posttrain.rewards.math import gradable

    fine = gradable([truth for _, truth in rows], version, **{key: options[key] for key in POOL})
    out = [row for row, usable in enumerate(fine) if not usable]
    if not out:
        return None
    place, truth = rows[out[0]]
    found = LeftOut(out, len(rows), shown(truth, 60))
    if len(out) == len(rows):
        raise ValueError(
            f"{place}: {KEY} {found.first} cannot be graded, nor can any of the {len(rows)}; see docs/rewards.md for what can"
        )
    return found
