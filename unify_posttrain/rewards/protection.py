"""What a run is protected by from a reward function that fails: the node `reward.protection`, and when too much has failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from unify_posttrain.rewards.contract import Scored

NODE = "reward.protection"
OWN = "pkg://unify_posttrain."  # these bring their own processes, or need none


@dataclass(frozen=True)
class Protection:
    """The node `reward.protection`; conf/train.yaml has the meanings.

    Raises:
        ValueError: a value out of range, or an unknown or missing key.
    """

    process: bool
    workers: int
    timeout_seconds: float
    memory_mb: int
    load_seconds: float
    max_fault_share: float
    trial_rows: int
    field_characters: int

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key == "process":
                if not isinstance(value, bool):
                    raise ValueError(f"{NODE}.process={value!r} must be true or false")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{NODE}.{key}={value!r} must be a number")
            elif key == "max_fault_share":
                if not 0 <= value <= 1:
                    raise ValueError(f"{NODE}.max_fault_share={value} must lie between 0 and 1")
            elif not value > 0:
                raise ValueError(f"{NODE}.{key}={value} must be above 0")

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Protection:
        """From the configuration."""
        known = [each.name for each in fields(cls)]
        wrong = sorted({*node} ^ {*known})
        if wrong:
            raise ValueError(
                f"{NODE}.{wrong[0]} is {'unknown' if wrong[0] in node else 'not set'}; its keys are {', '.join(known)}"
            )
        return cls(**node)


@dataclass(frozen=True)
class Tally:
    """How a number of calls ended."""

    calls: int
    faults: Mapping[str, int]
    unscored: int
    last: str

    @property
    def failed(self) -> int:
        return sum(self.faults.values()) + self.unscored

    def excess(self, protection: Protection, where: str) -> str | None:
        """Why the run must not go on; None if it may."""
        if not self.calls or self.failed <= protection.max_fault_share * self.calls:
            return None
        kinds = {**self.faults, **({"no score": self.unscored} if self.unscored else {})}
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return (
            f"{where}: {self.failed} of {self.calls} calls failed ({told}), more than {NODE}.max_fault_share="
            f"{protection.max_fault_share:g}; the last: {self.last}. Mend the function, or raise the share"
        )


def tally(results: Iterable[Scored]) -> Tally:
    """Count faults and rows without a score."""
    results = list(results)
    faults: dict[str, int] = {}
    last = ""
    for scored in results:
        if scored.fault is not None:
            faults[scored.fault] = faults.get(scored.fault, 0) + 1
        if scored.fault is not None or scored.unscored:
            last = f"{scored.fault}: {scored.detail}" if scored.fault not in (None, "error") else scored.detail
    return Tally(len(results), faults, sum(scored.unscored for scored in results), last)


def function_name(node: Mapping[str, Any]) -> str:
    """A reward function in words, for messages."""
    return f"reward function {node.get('name')} of {node.get('path')}"


def is_own(node: Mapping[str, Any]) -> bool:
    """Whether the function is one of this package."""
    return str(node.get("path")).startswith(OWN)
