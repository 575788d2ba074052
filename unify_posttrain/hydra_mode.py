"""One composition of a command's configuration instead of two.

Hydra's command line composes everything once to look up `hydra.mode`, which decides between a run and a sweep, and then again for
the run: half a second of each command. Nothing in conf/ sets the mode, so unless somebody names something of Hydra's on the command
line it is what -m says, as it is for Hydra where a composed mode is null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra._internal.hydra import Hydra

OF_HYDRA = ("hydra", "+hydra", "++hydra", "~hydra", "--config", "-cd", "-cn", "-cp", "--experimental-rerun")


@contextmanager
def composed_once(arguments: Sequence[str]) -> Iterator[None]:
    """Around a `hydra.main`.

    Args:
        arguments: of the command line. With one that Hydra itself reads, its mode is looked up as ever.
    """
    if any(each.startswith(OF_HYDRA) for each in arguments):
        yield
        return
    composing, Hydra.get_mode = Hydra.get_mode, _unknown
    try:
        yield
    finally:
        Hydra.get_mode = composing


def _unknown(_hydra: Hydra, **_asked: object) -> None:
    """In place of Hydra's method, which answers so where a composed mode is null."""
