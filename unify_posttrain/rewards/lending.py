"""A few things that are costly to make and have to be closed, shared by whoever asks with the same key: pools of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be lent."""

    def close(self) -> None:
        """End what was started."""


K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Closable)


@dataclass
class _Entry(Generic[T]):
    """`users` hold it now; a `forgotten` one is closed when none is left."""

    thing: T | None = None
    users: int = 0
    forgotten: bool = False
    making: threading.Lock = field(default_factory=threading.Lock)


class Lending(Generic[K, T]):
    """Makes a thing when it is first asked for and keeps it. When there are more than `most`, the one asked for longest ago is
    closed, as soon as nobody uses it. Its methods may be called from several threads at once.

    Args:
        make: key -> thing; whatever it raises reaches the caller, and the next one tries again.
        most: things that are kept.
    """

    def __init__(self, make: Callable[[K], T], most: int) -> None:
        self._make, self._most = make, most
        self._entries: dict[K, _Entry[T]] = {}  # in the order in which they were asked for
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, key: K) -> Iterator[T]:
        """The thing of a key; it stays open inside of the context."""
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
            entry.users += 1
            unused = [self._forget(next(iter(self._entries))) for _ in range(len(self._entries) - self._most)]
        _close(unused)
        try:
            with entry.making:  # others who ask for this one wait, those who ask for another one do not
                if entry.thing is None:
                    entry.thing = self._make(key)
            yield entry.thing
        finally:
            with self._lock:
                entry.users -= 1
                last = [entry] if entry.forgotten and not entry.users else []
            _close(last)

    def close(self) -> None:
        """Forget all; each is closed as soon as nobody uses it."""
        with self._lock:
            unused = [self._forget(key) for key in list(self._entries)]
        _close(unused)

    def _forget(self, key: K) -> _Entry[T] | None:
        """The entry, if it can be closed at once."""
        entry = self._entries.pop(key)
        entry.forgotten = True
        return None if entry.users else entry


def _close(entries: list[Any]) -> None:
    """Outside of the lock: closing waits for processes."""
    for entry in entries:
        if entry is not None and entry.thing is not None:
            entry.thing.close()
