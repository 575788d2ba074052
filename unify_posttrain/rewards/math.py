"""Reward functions for answers to mathematical questions, in verl's signature; every grading runs in a process that can be killed.

    reward:
      custom_reward_function:
        path: pkg://unify_posttrain.rewards.math
        name: compute_score                 # or compute_dapo_score
        reward_kwargs: {version: 6, workers: 4, timeout_seconds: 5.0, memory_mb: 1024}

One and the same function scores rollouts, demonstrations, validation and evaluation. It may be called from many threads. The
processes are confined: they can compute, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any

import numpy as np

from unify_posttrain.rewards.contract import shown
from unify_posttrain.rewards.lending import Lending
from unify_posttrain.rewards.pool import KillablePool, Outcome

logger = logging.getLogger(__name__)

GRADE = "unify_posttrain.rewards.grading:grade_item"
GRADE_DAPO = "unify_posttrain.rewards.dapo:grade_item"
VERSIONS = range(8)

MOST_POOLS = 4  # of a process: settings that differ are those of training, validation and both kinds of answers

pools: Lending[tuple[str, int, float, int], KillablePool] = Lending(lambda key: KillablePool(*key, confined=True), MOST_POOLS)


class _Verdicts:
    """Which ground truths can be graded against, each asked once: one that cannot be computed costs one timeout, not one for every
    answer. Others who ask for the same one meanwhile wait."""

    def __init__(self, most: int = 1 << 16) -> None:
        self.most = most
        self._known: dict[bytes, Future[bool]] = {}
        self._lock = threading.Lock()

    def usable(self, graders: KillablePool, golds: Sequence[Any], version: int | None = None) -> list[bool]:
        """Whether answers can be compared with each of `golds`, by the graders of a version; all unknown ones are asked side by
        side."""
        keys = [self._key(graders, gold, version) for gold in golds]
        mine: dict[bytes, tuple[Any, Future[bool]]] = {}
        with self._lock:
            for key, gold in zip(keys, golds, strict=True):
                if key not in self._known:
                    mine[key] = gold, Future()
                    self._known[key] = mine[key][1]
            futures = [self._known[key] for key in keys]
            while len(self._known) > max(self.most, len(mine)):
                del self._known[next(iter(self._known))]
        try:
            # Mine first, then others': two callers who wait for each other's would wait for ever.
            verdicts = self._ask(graders, [gold for gold, _ in mine.values()], version)
            for (_, future), verdict in zip(mine.values(), verdicts, strict=True):
                future.set_result(verdict)
        except BaseException as error:  # the graders cannot start: all who wait hear of it, and the next one asks again
            with self._lock:
                for key in mine:
                    self._known.pop(key, None)
            for _, future in mine.values():
                if not future.done():
                    future.set_exception(error)
            raise
        return [future.result() for future in futures]

    @staticmethod
    def _key(graders: KillablePool, gold: Any, version: int | None) -> bytes:
        return hashlib.blake2b(repr((graders.target, version, gold)).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    @staticmethod
    def _ask(graders: KillablePool, golds: Sequence[Any], version: int | None) -> list[bool]:
        outcomes = graders.map({"gold": gold} if version is None else {"gold": gold, "version": version} for gold in golds)
        for gold, outcome in zip(golds, outcomes, strict=True):
            if outcome.fault is not None:
                logger.warning(
                    "the ground truth %s cannot be computed (%s: %s); its prompt is masked",
                    shown(gold, 60),
                    outcome.fault,
                    outcome.detail,
                )
        return [outcome.fault is None and bool(outcome.value["gold_ok"]) for outcome in outcomes]


_verdicts = _Verdicts()


def pool(target: str, workers: int, timeout_seconds: float, memory_mb: int) -> AbstractContextManager[KillablePool]:
    """The pool of this process with these settings, for a `with`: shared, kept afterwards, closed when others take its
    place."""
    return pools.lend((target, workers, timeout_seconds, memory_mb))


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
    gold = plain_ground_truth(ground_truth)
    with pool(GRADE, workers, timeout_seconds, memory_mb) as graders:
        if not _verdicts.usable(graders, [gold], int(version))[0]:
            return _nothing(gold_ok=0.0)
        return _result(graders.run({"text": solution_str, "gold": gold, "version": int(version)}), data_source)


def compute_dapo_score(
    data_source: str,
    solution_str: str,
    ground_truth: str | Sequence[str],
    extra_info: Mapping[str, Any] | None = None,
    *,
    workers: int,
    timeout_seconds: float,
    memory_mb: int,
    bold_answer_line: bool = False,
    **_: Any,
) -> dict[str, Any]:
    """Score a response by its last `Answer:` line (DAPO, arXiv 2503.14476): 1 if it equals the ground truth, else 0.

    Arguments and result are those of :func:`compute_score`, beside `bold_answer_line`: whether the line may be in bold
    (`**Answer:** 13`), which verl's own reward does not read. Online SFT's +1 and -1 are made of it by `fusion.online_sft`, DAPO's
    length penalty by `reward.reward_manager.name=dapo`.
    """
    gold = plain_ground_truth(ground_truth)
    with pool(GRADE_DAPO, workers, timeout_seconds, memory_mb) as graders:
        if not _verdicts.usable(graders, [gold])[0]:
            return _nothing(gold_ok=0.0)
        return _result(graders.run({"text": solution_str, "gold": gold, "bold": bool(bold_answer_line)}), data_source)


def compute_scores(
    responses: Iterable[str], ground_truths: Iterable[Any], *, version: int, workers: int, timeout_seconds: float, memory_mb: int
) -> list[dict[str, Any]]:
    """:func:`compute_score` of many responses, side by side, in their order."""
    items = [
        {"text": text, "gold": plain_ground_truth(gold), "version": int(version)}
        for text, gold in zip(responses, ground_truths, strict=True)
    ]
    with pool(GRADE, workers, timeout_seconds, memory_mb) as graders:
        usable = _verdicts.usable(graders, [item["gold"] for item in items], int(version))
        outcomes = iter(graders.map(item for item, fine in zip(items, usable, strict=True) if fine))
    return [_result(next(outcomes), "") if fine else _nothing(gold_ok=0.0) for fine in usable]


def gradable(ground_truths: Sequence[Any], version: int, *, workers: int, timeout_seconds: float, memory_mb: int) -> list[bool]:
    """Whether responses can be graded against each ground truth; one that hangs or kills the grader cannot be."""
    with pool(GRADE, workers, timeout_seconds, memory_mb) as graders:
        return _verdicts.usable(graders, [plain_ground_truth(each) for each in ground_truths], int(version))


def plain_ground_truth(ground_truth: Any) -> Any:
    """What JSON can say of a ground truth: a text, a number, or a list of these; anything else cannot be graded against."""
    if isinstance(ground_truth, np.ndarray | np.generic):
        ground_truth = ground_truth.tolist()
    if isinstance(ground_truth, list | tuple):
        return [gold for gold in ground_truth if _is_answer(gold)]
    return ground_truth if _is_answer(ground_truth) else []


def _is_answer(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def _result(outcome: Outcome, data_source: str) -> dict[str, Any]:
    if outcome.fault is None:
        return {**outcome.value, "grader_fault": 0.0}
    logger.warning("grading an answer of %s failed (%s: %s); it scores 0", data_source or "a batch", outcome.fault, outcome.detail)
    return _nothing(grader_fault=1.0)


def _nothing(gold_ok: float = 1.0, grader_fault: float = 0.0) -> dict[str, Any]:
    """The result of an answer that was not graded."""
    return {"score": 0.0, "acc": 0.0, "pred": "", "formatted": 0.0, "gold_ok": gold_ok, "grader_fault": grader_fault}
