"""The one wrapper around every reward function: it calls it where a failure costs one row, and reads what it returns.

A function of a user runs in processes that can be killed (`unify_posttrain.rewards.pool`): neither an exception, SystemExit or
os._exit nor a hang, a crash or an explosion of memory reaches the run. Three kinds run in the calling process instead, where only
exceptions and SystemExit can be caught: ours, which bring their own processes; asynchronous ones, whose clients live in an event
loop; and all, if `reward.protection.process` is false.

`compute_score` and `compute_score_sync` have verl's signature, for its reward managers.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, Protocol

from unify_posttrain.rewards.contract import Contract, ContractError, ReservedFieldError, Scored
from unify_posttrain.rewards.gathering import Call, Gatherer
from unify_posttrain.rewards.lending import Lending
from unify_posttrain.rewards.loading import forbidden_attempt, is_asynchronous, load_function
from unify_posttrain.rewards.pool import KillablePool, Outcome
from unify_posttrain.rewards.protection import Protection, function_name, is_own

OUTCOME = "reward_outcome"  # the one field that verl's managers and collations see: it is there in every row
SERVE = "unify_posttrain.rewards.calling:serve"


class Caller(Protocol):
    """Calls a reward function; `workers` calls run side by side."""

    workers: int

    def __call__(self, calls: Sequence[Call]) -> list[Scored]:
        """One result per call, in their order."""

    def close(self) -> None:
        """End what was started."""


class ProcessCaller:
    """Calls a function in processes that can be killed; this process never imports it."""

    def __init__(
        self, node: Mapping[str, Any], protection: Protection, taken: Sequence[str] = (), workers: int | None = None
    ) -> None:
        argument = {"node": dict(node), "field_characters": protection.field_characters, "taken": list(taken)}
        self.workers = workers or protection.workers
        self.pool = KillablePool(
            SERVE, self.workers, protection.timeout_seconds, protection.memory_mb, argument, protection.load_seconds
        )

    def load(self) -> bool:
        """Load the function in one of the processes; whether it is asynchronous.

        Raises:
            WorkerStartError: it cannot be loaded.
        """
        return bool(self.pool.run(None).value["asynchronous"])

    def __call__(self, calls: Sequence[Call]) -> list[Scored]:
        return _as_scored(self.pool.map(calls))

    def send(self, calls: Sequence[Call]) -> list[Scored]:
        """All calls in one message to one process."""
        return _as_scored(self.pool.send(calls))

    def close(self) -> None:
        self.pool.close()


def _as_scored(outcomes: Sequence[Outcome]) -> list[Scored]:
    return [
        Scored.failed(outcome.fault, outcome.detail) if outcome.fault else Scored.from_dict(outcome.value) for outcome in outcomes
    ]


class InProcessCaller:
    """Calls a function in threads of this process, or in the event loop if it is asynchronous.

    Args:
        function: takes the arguments of a call by name.
        contract: reads its results.
        workers: threads.
        timeout_seconds: of an asynchronous call; no thread can be ended.
    """

    def __init__(
        self, function: Callable[..., Any], contract: Contract, workers: int, timeout_seconds: float | None = None
    ) -> None:
        self.function, self.contract, self.workers, self.timeout_seconds = function, contract, workers, timeout_seconds
        self.asynchronous = is_asynchronous(function)

    def __call__(self, calls: Sequence[Call]) -> list[Scored]:
        with ThreadPoolExecutor(self.workers, thread_name_prefix="reward") as threads:
            return list(threads.map(self._caught, calls))

    def send(self, calls: Sequence[Call]) -> list[Scored]:
        """As a call: there is no message to save."""
        return self(calls)

    async def awaited(self, call: Call) -> Scored:
        """One call; the event loop goes on with others meanwhile."""
        if not self.asynchronous:
            return await asyncio.get_running_loop().run_in_executor(None, self._caught, call)
        try:
            return self._read(await asyncio.wait_for(self._contained(call), self.timeout_seconds))
        except asyncio.TimeoutError:
            return Scored.failed("timeout", f"no result within {self.timeout_seconds} s")
        except Exception as error:
            return _failed(error)

    async def _contained(self, call: Call) -> Any:
        try:
            return await self.function(**call)
        except SystemExit as error:  # a task that raises it would end the event loop
            raise RuntimeError(f"SystemExit: {error}") from error

    def close(self) -> None:
        """Nothing was started."""

    def _caught(self, call: Call) -> Scored:
        try:
            return self._read(_complete(self.function(**call)))
        except (Exception, SystemExit) as error:
            return _failed(error)

    def _read(self, result: Any) -> Scored:
        return read(self.contract, result)


def build_caller(node: Mapping[str, Any], protection: Protection, threads: int | None = None) -> ProcessCaller | InProcessCaller:
    """The caller for a node {path, name, reward_kwargs}; `threads` of this process, if it runs here.

    Raises:
        LoadError, WorkerStartError: the function cannot be loaded.
    """
    if protection.process and not is_own(node):
        caller = ProcessCaller(node, protection)
        if not caller.load():
            return caller
        caller.close()
    contract = Contract(function_name(node), protection.field_characters)
    return InProcessCaller(load_function(node), contract, threads or protection.workers, protection.timeout_seconds)


def serve(argument: Mapping[str, Any]) -> Callable[[Call | None], dict[str, Any]]:
    """In a worker of the pool: load the function of a node, and answer calls; None asks what kind of function it is."""
    function = load_function(argument["node"])
    contract = Contract(function_name(argument["node"]), argument["field_characters"], frozenset(argument["taken"]))
    kind = {"asynchronous": is_asynchronous(function)}

    def answer(call: Call | None) -> dict[str, Any]:
        if call is None:
            return kind
        try:
            result = _complete(function(**call))
        except BaseException:
            refused = forbidden_attempt()
            if refused is None:
                raise  # the worker knows a fault from a lack of memory
            return Scored.failed("error", refused, refused=True).to_dict()
        return read(contract, result).to_dict()

    return answer


def read(contract: Contract, result: Any) -> Scored:
    """What a function returned; a breach of the contract is a fault that says so."""
    refused = forbidden_attempt()
    if refused is not None:
        return Scored.failed("error", refused, refused=True)
    try:
        return contract.read(result)
    except ContractError as error:
        return Scored.failed("error", str(error), refused=isinstance(error, ReservedFieldError))


def _failed(error: BaseException) -> Scored:
    refused = forbidden_attempt()
    return Scored.failed("error", refused or f"{type(error).__name__}: {error}", refused=refused is not None)


def _complete(result: Any) -> Any:
    """A plain function may hand on the coroutine of another."""
    return asyncio.run(_await(result)) if inspect.isawaitable(result) else result


async def _await(result: Awaitable[Any]) -> Any:
    return await result


# For verl's reward managers ------------------------------------------------------------------------------------------


def as_settings(node: Mapping[str, Any], protection: Protection) -> str:
    """What `compute_score` needs to know, as text: verl hands it on with every call."""
    return json.dumps({"node": dict(node), "protection": asdict(protection)}, sort_keys=True)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    settings: str,
    **further: Any,
) -> dict[str, Any]:
    """Score a response by the function of `settings` (see :func:`as_settings`).

    Returns:
        score, and under OUTCOME all that is to be known of the call (`Scored`).
    """
    call = _call(data_source, solution_str, ground_truth, extra_info, further)
    with ExitStack() as stack:
        lent = gatherers.lend(settings)  # made in a thread, since that takes seconds
        gatherer = await asyncio.get_running_loop().run_in_executor(None, stack.enter_context, lent)
        return _result(await gatherer.score(call))


def compute_score_sync(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    settings: str,
    **further: Any,
) -> dict[str, Any]:
    """:func:`compute_score` for managers that cannot await."""
    with gatherers.lend(settings) as gatherer:
        return _result(gatherer.caller([_call(data_source, solution_str, ground_truth, extra_info, further)])[0])


def _call(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any, further: Mapping[str, Any]) -> Call:
    own = {"data_source": data_source, "solution_str": solution_str, "ground_truth": ground_truth, "extra_info": extra_info}
    return {**own, **further}


def _result(scored: Scored) -> dict[str, Any]:
    return {"score": scored.score, OUTCOME: scored.to_dict()}


def _gatherer(settings: str) -> Gatherer:
    plain = json.loads(settings)
    caller = build_caller(plain["node"], Protection.from_node(plain["protection"]))
    return Gatherer(caller, caller.awaited if isinstance(caller, InProcessCaller) else None)


gatherers: Lending[str, Gatherer] = Lending(_gatherer, most=8)
