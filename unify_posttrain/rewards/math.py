"""Reward functions for answers to mathematical questions, in verl's signature; every grading runs in a process that can be killed.

    reward:
      custom_reward_function:
        path: pkg://unify_posttrain.rewards.math
        name: compute_score                 # or compute_dapo_score
        reward_kwargs: {version: 6, workers: 4, timeout_seconds: 5.0, memory_mb: 1024}

One and the same function scores rollouts, demonstrations, validation and evaluation. It may be called from many threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unify_posttrain.rewards.pool import KillablePool, Outcome

logger = logging.getLogger(__name__)

GRADE = "unify_posttrain.rewards.grading:grade_item"
GRADE_DAPO = "unify_posttrain.rewards.dapo:grade_item"
VERSIONS = range(8)

_pools: dict[tuple[str, int, float, int], KillablePool] = {}
_lock = threading.Lock()


def pool(target: str, workers: int, timeout_seconds: float, memory_mb: int) -> KillablePool:
    """The pool of this process with these settings; started once, ended with the process."""
    key = (target, workers, timeout_seconds, memory_mb)
    with _lock:
        if key not in _pools:
            _pools[key] = KillablePool(*key)
        return _pools[key]


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Sequence[str],
    extra_info: Mapping[str, Any] | None = None,
    *,
    version: int,
    workers: int,
    timeout_seconds: float,
    memory_mb: int,
    **_: Any,
) -> dict[str, Any]:
    """Score a response by a version of `unify_posttrain.rewards.grading`.

    Args:
        data_source: not looked at; no source is ever handed to another grader.
        solution_str: the response.
        ground_truth: the answer, or several of which any will do.
        extra_info: not looked at.
        version: 0 to 7 (`data.reward_impl_version`).
        workers, timeout_seconds, memory_mb: of the pool, see `KillablePool`.

    Returns:
        score, acc (1 right, 0 wrong), pred (normal form of the answer, empty if none was found), formatted (1 if the response has
        the form that the version asks for), gold_ok (0: the ground truth cannot be graded against; such prompts are masked, not
        scored 0), grader_fault (1: grading hung, died or took too much memory; the response scores 0).

    Raises:
        ValueError: an unknown version.
    """
    if isinstance(version, bool) or version not in VERSIONS:
        raise ValueError(f"data.reward_impl_version={version!r} is unknown; choose one of {', '.join(map(str, VERSIONS))}")
    item = {"text": solution_str, "gold": _plain(ground_truth), "version": int(version)}
    return _result(pool(GRADE, workers, timeout_seconds, memory_mb).run(item), data_source)


def compute_dapo_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Sequence[str],
    extra_info: Mapping[str, Any] | None = None,
    *,
    workers: int,
    timeout_seconds: float,
    memory_mb: int,
    **_: Any,
) -> dict[str, Any]:
    """Score a response by its last `Answer:` line (DAPO, arXiv 2503.14476): 1 if it equals the ground truth, else 0.

    Arguments and result are those of :func:`compute_score`. Online SFT's +1 and -1 are made of it by `fusion.online_sft`, DAPO's
    length penalty by `reward.reward_manager.name=dapo`.
    """
    item = {"text": solution_str, "gold": _plain(ground_truth)}
    return _result(pool(GRADE_DAPO, workers, timeout_seconds, memory_mb).run(item), data_source)


def compute_scores(
    responses: Iterable[str], ground_truths: Iterable[Any], *, version: int, workers: int, timeout_seconds: float, memory_mb: int
) -> list[dict[str, Any]]:
    """:func:`compute_score` of many responses, side by side, in their order."""
    items = [
        {"text": text, "gold": _plain(gold), "version": int(version)} for text, gold in zip(responses, ground_truths, strict=True)
    ]
    outcomes = pool(GRADE, workers, timeout_seconds, memory_mb).map(items)
    return [_result(outcome, "") for outcome in outcomes]


def gradable(ground_truth: Any, version: int, *, workers: int, timeout_seconds: float, memory_mb: int) -> bool:
    """Whether responses can be graded against a ground truth; one that hangs or kills the grader cannot be."""
    outcome = pool(GRADE, workers, timeout_seconds, memory_mb).run({"gold": _plain(ground_truth), "version": int(version)})
    return outcome.fault is None and bool(outcome.value["gold_ok"])


def _plain(ground_truth: Any) -> Any:
    """What JSON can say; anything else cannot be graded against."""
    if isinstance(ground_truth, str):
        return ground_truth
    if isinstance(ground_truth, np.ndarray):
        ground_truth = ground_truth.tolist()
    return [gold for gold in ground_truth if isinstance(gold, str)] if isinstance(ground_truth, list | tuple) else []


def _result(outcome: Outcome, data_source: str) -> dict[str, Any]:
    if outcome.fault is None:
        return {**outcome.value, "grader_fault": 0.0}
    logger.warning("grading an answer of %s failed (%s: %s); it scores 0", data_source or "a batch", outcome.fault, outcome.detail)
    return {"score": 0.0, "acc": 0.0, "pred": "", "formatted": 0.0, "gold_ok": 1.0, "grader_fault": 1.0}
