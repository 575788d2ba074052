"""The plan of a batch: of every prompt, which rows are trained and with which coefficient in which term.

Every experience rule decides in this form; `experience.mixer` carries it out, `gate.jsonl` records it. It is small, explicit and
serialisable, so that it can be logged, tested, and shown in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

ZONES = ("rl", "sft", "off", "skipped")


def weight_stream(term: str) -> str:
    """Name of the (B,) stream that holds the plan's coefficients of a term.

    >>> weight_stream("sft")
    'sft_weight'
    """
    return f"{term}_weight"


@dataclass(frozen=True)
class GroupPlan:
    """What is trained of one prompt.

    Attributes:
        uid: the group.
        successes: solved rollouts among `rollouts`.
        rollouts: on-policy rows that were generated.
        kept: on-policy rows that are trained (all or none).
        demonstrations: demonstration rows added.
        weights: coefficient of the group's rows per term name; a term that is not named trains none of them (0).
        graded: False if the ground truth cannot be graded against: the group contributes nothing and counts in no rate of success.
    """

    uid: str
    successes: int
    rollouts: int
    kept: int
    demonstrations: int
    weights: Mapping[str, float] = field(default_factory=dict)
    graded: bool = True

    def weight(self, term: str) -> float:
        """Coefficient of the group's rows in a term."""
        return float(self.weights.get(term, 0.0))

    @property
    def zone(self) -> str:
        """Where the prompt went, by the terms that all methods name alike: "rl" if rollouts are trained with weight, else
        "sft" if demonstrations are by likelihood, "off" if only by the off-policy term, "skipped" if it contributes no row."""
        if self.kept and self.weight("rl"):
            return "rl"
        if self.demonstrations and self.weight("sft"):
            return "sft"
        if self.demonstrations and self.weight("off"):
            return "off"
        return "skipped"

    def without_rows(self, **changes: Any) -> GroupPlan:
        """The same prompt with nothing trained of it."""
        return replace(self, kept=0, demonstrations=0, weights={}, **changes)

    def with_fewer(self, missing: int) -> GroupPlan:
        """The same prompt with fewer rollouts, all of the others trained if they were to be."""
        kept = self.kept - missing if self.kept else 0
        return replace(self, rollouts=self.rollouts - missing, kept=kept) if missing else self


@dataclass(frozen=True)
class BatchPlan:
    """One `GroupPlan` per prompt of a training batch, in the order of the prompts."""

    groups: tuple[GroupPlan, ...]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[GroupPlan]:
        return iter(self.groups)

    @property
    def changes_rows(self) -> bool:
        """False if exactly the generated rows are trained: nothing is dropped and nothing added."""
        return any(group.kept != group.rollouts or group.demonstrations for group in self.groups)

    def zones(self) -> dict[str, int]:
        """Prompts per zone; the values sum to the number of prompts."""
        counted = Counter(group.zone for group in self.groups)
        return {zone: counted[zone] for zone in ZONES}

    def shares(self, terms: Iterable[str]) -> dict[str, float]:
        """Share of prompts with a non-zero coefficient, per term (HPT's c_k under `term_scale=share`)."""
        n = max(1, len(self.groups))
        return {term: sum(bool(group.weight(term)) for group in self.groups) / n for term in terms}

    def mean_weight(self, term: str) -> float:
        """Mean coefficient of a term over the prompts."""
        return sum(group.weight(term) for group in self.groups) / max(1, len(self.groups))

    def masked(self, uids: Container[str]) -> BatchPlan:
        """The plan in which these groups contribute nothing, because their ground truth cannot be graded against."""
        return BatchPlan(tuple(group.without_rows(graded=False) if group.uid in uids else group for group in self.groups))

    def without_rollouts(self, missing: Mapping[str, int]) -> BatchPlan:
        """The plan in which groups have fewer rollouts: `missing` by uid were given no score, and are not trained."""
        return BatchPlan(tuple(group.with_fewer(missing.get(group.uid, 0)) for group in self.groups))

    def only(self, uids: Container[str]) -> BatchPlan:
        """The plan in which only these groups contribute rows."""
        return BatchPlan(tuple(group if group.uid in uids else group.without_rows() for group in self.groups))

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable form."""
        return {"groups": [{**asdict(group), "zone": group.zone} for group in self.groups]}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> BatchPlan:
        """Inverse of `to_dict`."""
        return cls(tuple(GroupPlan(**{k: v for k, v in group.items() if k != "zone"}) for group in state["groups"]))


GatePlan = BatchPlan  # the name under which `experience.gate` has always returned it
