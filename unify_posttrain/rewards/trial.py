"""Load a reward function and call it on a few rows before anything costly starts; every mistake is one clear error.

The function is loaded and called in a process of its own: nothing of a user's file stays in the caller, and a file that hangs,
exits or crashes is an error like any other. Functions of this package are called here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from unify_posttrain.rewards.calling import Call, InProcessCaller, ProcessCaller
from unify_posttrain.rewards.contract import Contract, Scored
from unify_posttrain.rewards.loading import load_function
from unify_posttrain.rewards.pool import WorkerStartError
from unify_posttrain.rewards.protection import Protection, function_name, is_own, tally

logger = logging.getLogger(__name__)


def try_reward(
    node: Mapping[str, Any], protection: Protection, calls: Sequence[Call], taken: Iterable[str] = (), remedy: str = ""
) -> None:
    """Load the function of a node and call it on some rows.

    Args:
        node: {path, name, reward_kwargs}.
        protection: limits, and which share of the calls may fail.
        calls: arguments of verl's reward managers; none: the function is only loaded.
        taken: names of columns of the data, which no field may have.
        remedy: added to an error.

    Raises:
        ValueError: it cannot be loaded, does not take its arguments, returns what cannot be read, or fails on too many of the rows;
            names key, value and remedy.
    """
    where = function_name(node)
    try:
        results = _results(node, protection, calls, taken)
    except WorkerStartError as error:
        raise ValueError(_loading(node, error.reason)) from error
    refused = next((scored for scored in results if scored.refused), None)
    if refused is not None:
        raise ValueError(refused.detail)
    counted = tally(results)
    excess = counted.excess(protection, f"{where}, tried on {counted.calls} rows of the data")
    if excess is not None:
        raise ValueError(f"{excess}{remedy}")
    if counted.failed:
        logger.warning(
            "%s: %d of %d calls failed on rows of the data; the last: %s", where, counted.failed, counted.calls, counted.last
        )


def _results(node: Mapping[str, Any], protection: Protection, calls: Sequence[Call], taken: Iterable[str]) -> list[Scored]:
    if is_own(node):
        contract = Contract(function_name(node), protection.field_characters, frozenset(taken))
        return InProcessCaller(load_function(node), contract, 1, protection.timeout_seconds)(calls)
    caller = ProcessCaller(node, replace(protection, workers=1), sorted(taken))
    try:
        caller.load()
        return caller(calls)
    finally:
        caller.close()


def _loading(node: Mapping[str, Any], reason: str) -> str:
    key = "reward.custom_reward_function"
    return reason if reason.startswith(key) else f"{key}.path={node.get('path')} cannot be loaded: {reason}"


def rows_to_try(sources: Sequence[str], count: int) -> Iterator[int]:
    """The first `count` rows, and the first of every data source: a function may do something else for each."""
    seen: set[str] = set()
    for row, source in enumerate(sources):
        if row < count or source not in seen:
            yield row
        seen.add(source)
