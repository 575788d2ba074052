"""Single calls of a reward function, made into batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from unify_posttrain.rewards.contract import Scored
from unify_posttrain.rewards.pool import portion

Call = Mapping[str, Any]  # the arguments of one call by name


class Sender(Protocol):
    """Sends many calls of the function at once."""

    workers: int

    def send(self, calls: Sequence[Mapping[str, Any]]) -> list[Scored]:
        """One result per call, in their order."""

    def close(self) -> None:
        """End what was started."""


class Gatherer:
    """Makes batches of single calls without making any of them wait: those that come while all workers are busy travel together.

    Args:
        caller: sends the batches.
        awaited: calls the function at once instead, where nothing is gained by sending; None: calls are gathered.
    """

    def __init__(self, caller: Sender, awaited: Callable[[Call], Awaitable[Scored]] | None = None) -> None:
        self.caller, self._awaited = caller, awaited
        self._waiting: list[tuple[Call, asyncio.Future[Scored]]] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(caller.workers, thread_name_prefix="reward-batches")

    def close(self) -> None:
        """End what was started."""
        self._threads.shutdown(wait=False)
        self.caller.close()

    async def score(self, call: Call) -> Scored:
        """One call of the function."""
        if self._awaited is not None:
            return await self._awaited(call)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Scored] = loop.create_future()
        self._waiting.append((call, result))
        if len(self._waiting) == 1:
            loop.call_soon(self._send)  # after all that is ready to call now has called
        return await result

    def _send(self) -> None:
        while self._waiting and len(self._under_way) < self.caller.workers:
            size = portion(len(self._waiting), self.caller.workers)
            batch, self._waiting = self._waiting[:size], self._waiting[size:]
            task = asyncio.get_running_loop().create_task(self._serve(batch))
            self._under_way.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._send()

    async def _serve(self, batch: Sequence[tuple[Call, asyncio.Future[Scored]]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._threads, self.caller.send, [call for call, _ in batch])
        except Exception as error:  # every waiting caller must hear of it, whatever it is
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), scored in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(scored)
