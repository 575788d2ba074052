"""The `fusion` node of the configuration as strict dataclasses, and the few numbers of verl's actor node that terms read.

No defaults here: every number stands in `conf/`. A key that is unknown or absent is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class AggregationSettings:
    """`fusion.agg`: aggregation mode per kind of term."""

    rl: str
    sft: str
    kl: str
    entropy: str


@dataclass(frozen=True)
class DemoSettings:
    """`fusion.demo`: what is done with targets (see `experience.demonstrations`)."""

    missing: str
    overlong: str
    select: str
    require_verified: bool
    max_length: int


@dataclass(frozen=True)
class ShapingSettings:
    """`fusion.shaping`: likelihood shape of off-policy terms (see `objective.references.Shaped`)."""

    name: str
    gamma: float
    weight: float
    exponent: float
    maximum: float | None
    minimum: float | None


@dataclass(frozen=True)
class HPTSettings:
    """`fusion.hpt`: the gate (see `experience.gate`)."""

    strategy: str
    switch_gate: int
    switch_gate_off: int | None
    gate_rate: float | None
    soft_type: int
    soft_table: Any
    term_scale: str
    off_advantage: str


@dataclass(frozen=True)
class FusionConfig:
    """The whole `fusion` node. Sub-nodes may be given as mappings.

    Raises:
        ValueError: an unknown or absent key; the message names it and the nearest known one.
    """

    algorithm: str
    seed: int
    group_size: int
    horizon: int
    success_threshold: float
    success_key: str | None
    clip: str
    baseline: str
    entropy_on: str
    sft_loss_coef: float
    sum_norm_divisor: float
    max_grad_norm: float | None
    allow_tempered_nll: bool
    agg: AggregationSettings
    demo: DemoSettings
    shaping: ShapingSettings
    hpt: HPTSettings

    def __post_init__(self) -> None:
        parts = {"agg": AggregationSettings, "demo": DemoSettings, "shaping": ShapingSettings, "hpt": HPTSettings}
        for name, cls in parts.items():
            value = getattr(self, name)
            if not isinstance(value, cls):
                object.__setattr__(self, name, strict(cls, value, f"fusion.{name}"))

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> FusionConfig:
        """From the plain `fusion` mapping of a composed configuration."""
        return strict(cls, {key: value for key, value in node.items() if key != "_target_"}, "fusion")


def strict(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Build a dataclass from a mapping with exactly its fields."""
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {path}.{near[0]}?" if near else f"; known keys: {', '.join(known)}"
            raise ValueError(f"{path}.{key} is unknown{hint}")
    absent = [key for key in known if key not in values]
    if absent:
        raise ValueError(f"{path}.{absent[0]} is not set; conf/train.yaml declares it")
    return cls(**values)


@dataclass(frozen=True)
class Settings:
    """What an algorithm is built from: the `fusion` node and the numbers of verl's actor node that its terms use."""

    fusion: FusionConfig
    clip_ratio_low: float
    clip_ratio_high: float
    clip_ratio_c: float
    entropy_coeff: float
    use_kl_loss: bool
    kl_loss_coef: float
    kl_loss_type: str

    @classmethod
    def from_actor(cls, actor: Any) -> Settings:
        """From `actor_rollout_ref.actor`, as a mapping of a composed configuration or as verl's dataclass of it."""

        def get(key: str) -> Any:
            return actor[key] if isinstance(actor, Mapping) else getattr(actor, key)

        fusion = get("fusion")
        if not isinstance(fusion, FusionConfig):
            fusion = FusionConfig.from_node(fusion)
        return cls(fusion, **{field.name: get(field.name) for field in fields(cls) if field.name != "fusion"})
