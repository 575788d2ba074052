"""Calls to servers that may be slow, dead or hostile: one pool of connections, a deadline for each attempt from its begin to the
last byte, finite attempts, and answers of bounded size. Callers may be in any event loop."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unify_posttrain.tasks.waiting import in_background
from unify_posttrain.untrusted.documents import DocumentError, parse

if TYPE_CHECKING:
    import aiohttp

BUSY = 429  # asked to come back later, as all of 5xx may be


class CallError(RuntimeError):
    """A call that brought no answer; says why."""


class _PassingError(CallError):
    """One that may go better the next time."""


class Calls:
    """Calls to one server.

    Args:
        url: of the server; redirections are not followed.
        timeout_s: of one attempt, from its begin to the last byte of the answer.
        retries: attempts after the first.
        pause_s: before the first retry; doubled before each further one.
        connections: that are open at most; calls beyond wait for one.
        largest_bytes: of an answer.
    """

    def __init__(self, url: str, timeout_s: float, retries: int, pause_s: float, connections: int, largest_bytes: int) -> None:
        self.url, self.timeout_s, self.retries, self.pause_s = url.rstrip("/"), timeout_s, retries, pause_s
        self.connections, self.largest_bytes = connections, largest_bytes
        self._pools: dict[int, tuple[aiohttp.ClientSession, asyncio.Semaphore]] = {}

    async def ask(self, method: str, path: str, **content: Any) -> Any:
        """The JSON that the server answers.

        Args:
            method, path: of the request.
            content: `json`, `params` or `headers`, as aiohttp takes them.

        Raises:
            CallError: no answer after all attempts, or one that is none.
        """
        return await in_background(self._ask(method, path, content))

    async def _ask(self, method: str, path: str, content: Mapping[str, Any]) -> Any:
        session, places = self._pool()
        async with places:  # before the clock runs: waiting for a place is no fault of the server
            for attempt in range(self.retries + 1):
                try:
                    return await self._attempt(session, method, path, content)
                except _PassingError as error:
                    if attempt == self.retries:
                        raise CallError(f"{self.url}{path}, {attempt + 1} attempts: {error}") from error
                    await asyncio.sleep(self.pause_s * 2**attempt)
                except CallError as error:
                    raise CallError(f"{self.url}{path}: {error}") from error
        raise CallError(f"{self.url}{path} was not asked")

    async def _attempt(self, session: aiohttp.ClientSession, method: str, path: str, content: Mapping[str, Any]) -> Any:
        import aiohttp

        body = bytearray()
        try:
            async with session.request(method, f"{self.url}{path}", allow_redirects=False, **content) as response:
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > self.largest_bytes:
                        raise CallError(f"an answer of more than {self.largest_bytes} bytes")
                status = response.status
        except (asyncio.TimeoutError, TimeoutError) as error:
            raise _PassingError(f"no complete answer within {self.timeout_s:g} s") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise CallError(f"{type(error).__name__}: {error}") from error
        if status == BUSY or status >= 500:
            raise _PassingError(f"status {status}")
        if status != 200:
            raise CallError(f"status {status}: {bytes(body[:200]).decode('utf-8', 'replace')}")
        try:
            return parse(bytes(body))
        except DocumentError as error:
            raise CallError(f"an answer that is no JSON: {error}") from error

    def _pool(self) -> tuple[aiohttp.ClientSession, asyncio.Semaphore]:
        """Connections of this process; made in its background loop, to which they belong."""
        import aiohttp

        loop = asyncio.get_running_loop()
        if id(loop) not in self._pools:
            session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                connector=aiohttp.TCPConnector(limit=self.connections),
                # Proxies of the environment are for servers elsewhere: one that is asked for 127.0.0.1 would ask itself.
                trust_env=not _is_loopback(self.url),
            )
            self._pools[id(loop)] = session, asyncio.Semaphore(self.connections)
            weakref.finalize(self, _close, session, loop)
        return self._pools[id(loop)]


def _close(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop) -> None:
    """Without waiting: this may be called in the loop itself."""
    loop.call_soon_threadsafe(lambda: loop.create_task(session.close()))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def sendable(text: str) -> str:
    """Text that UTF-8 holds: halves of a UTF-16 pair, which models can produce, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
