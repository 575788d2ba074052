"""What is called over Ray, called in this process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any


class Called:
    """A method as a Ray handle has it: `handle.method.remote(...)`; arguments and results are pickled on the way."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = pickle.loads(pickle.dumps((args, kwargs)))
        made = self.method(*args, **kwargs)
        return self._streamed(made) if hasattr(made, "__aiter__") else made

    async def _streamed(self, made: Any) -> Any:
        async for each in made:
            reference = asyncio.get_running_loop().create_future()
            reference.set_result(pickle.loads(pickle.dumps(each)))
            yield reference


class Handle:
    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Called:
        return Called(getattr(self.actor, name))


class Balancer:
    async def acquire_server(self, request_id: str) -> str:
        return "only"

    def release_server(self, server_id: str) -> None:
        return None
