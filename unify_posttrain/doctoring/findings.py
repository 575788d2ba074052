"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Status(str, Enum):
    """green: as it should be; yellow: a run starts, and this may hurt it; red: a run fails."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor.

    Attributes:
        name: of the check.
        status: how it stands.
        found: the fact, without secrets.
        remedy: what to do, empty if nothing is to be done.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def green(name: str, found: str) -> Finding:
    return Finding(name, Status.GREEN, found)


def yellow(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, Status.YELLOW, found, remedy)


def red(name: str, found: str, remedy: str) -> Finding:
    return Finding(name, Status.RED, found, remedy)


def worst(findings: Iterable[Finding]) -> Status:
    order = list(Status)
    return max((finding.status for finding in findings), key=order.index, default=Status.GREEN)


def some(items: Iterable[str], shown: int = 4) -> str:
    """The first of many, and how many more there are."""
    listed = list(items)
    more = len(listed) - shown
    return ", ".join(listed[:shown]) + (f" and {more} more" if more > 0 else "")
