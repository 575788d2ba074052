"""What every method shares of the `fusion` node, as strict dataclasses, and the few numbers of verl's actor node that terms read.

What one method reads stands in its own module and in its own conf file. No defaults here: every number stands in `conf/`. A key
that is unknown or absent is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class AggregationSettings:
    """`fusion.agg`: aggregation mode per kind of term."""

    rl: str
    sft: str
    hint: str
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
    """`fusion.shaping`: likelihood shape of off-policy terms and, `on`, ratio shape of on-policy ones (`objective.references`)."""

    name: str
    gamma: float
    weight: float
    exponent: float
    maximum: float | None
    minimum: float | None
    all_maximum: float | None
    on: str


@dataclass(frozen=True)
class LRSchedule:
    """`fusion.lr_schedule`: `start` × lr up to lr over `warmup_ratio` of the steps, then a cosine down to `min_lr`."""

    start: float
    warmup_ratio: float
    min_lr: float


@dataclass(frozen=True)
class FusionConfig:
    """The `fusion` node. Sub-nodes may be given as mappings.

    Attributes:
        own: the keys that are not shared, by name: the algorithm's own. It checks them when it is built.
        adv_estimator, norm_adv_by_std: verl's `algorithm.adv_estimator` and `algorithm.norm_adv_by_std_in_grpo`.

    Raises:
        ValueError: an absent key.
    """

    algorithm: str
    seed: int
    group_size: int
    horizon: int
    success_threshold: float
    success_key: str | None
    adv_estimator: str
    norm_adv_by_std: bool
    clip: str
    dual_clip: float | None
    entropy_on: str
    sft_form: str
    sum_norm_divisor: float
    max_grad_norm: float | None
    logits_chunk: int | None
    trim_padding: bool
    share_prompts: bool
    first_step_is_current: bool
    engine_log_probs_are_old: bool
    skip_zero_advantage: bool
    allow_tempered_nll: bool
    lr_schedule: LRSchedule | None
    agg: AggregationSettings
    demo: DemoSettings
    shaping: ShapingSettings
    own: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, cls in PARTS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, cls):
                object.__setattr__(self, name, strict(cls, value, f"fusion.{name}"))

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> FusionConfig:
        """From the plain `fusion` mapping of a composed configuration."""
        if not isinstance(node, Mapping):
            raise ValueError(f"fusion={node!r} must be a node with the keys of conf/train.yaml")
        shared = {each.name for each in fields(cls)} - {"own"}
        own = {key: value for key, value in node.items() if key not in shared and key not in ("_target_", "own")}
        return strict(cls, {**{key: node[key] for key in node if key in shared}, "own": {**own, **node.get("own", {})}}, "fusion")

    def changed(self, overrides: Mapping[str, Any], path: str = "fusion") -> FusionConfig:
        """A copy with some keys replaced; sub-nodes are merged.

        Raises:
            ValueError: an unknown key.
        """
        known = [each.name for each in fields(self) if each.name != "own"] + list(self.own)
        values: dict[str, Any] = {"own": dict(self.own)}
        for key, value in overrides.items():
            if key not in known:
                raise ValueError(f"{path}.{key} is unknown{nearest_key(str(key), known, path)}")
            if key in self.own:
                before = self.own[key]
                values["own"][key] = {**before, **value} if isinstance(value, Mapping) and isinstance(before, Mapping) else value
                continue
            part = getattr(self, key)
            if isinstance(value, Mapping) and part is not None and key in PARTS:
                value = strict(PARTS[key], {**vars(part), **value}, f"{path}.{key}")
            values[key] = value
        return replace(self, **values)


PARTS: dict[str, type] = {
    "lr_schedule": LRSchedule,
    "agg": AggregationSettings,
    "demo": DemoSettings,
    "shaping": ShapingSettings,
}


def strict(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Build a dataclass from a mapping with exactly its fields.

    Raises:
        ValueError: an unknown or an absent key; the message names it and the nearest known one.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r} must be a node of keys, as conf/ declares it")
    known = [each.name for each in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}.{key} is unknown{nearest_key(str(key), known, path)}")
    absent = [key for key in known if key not in values]
    if absent:
        raise ValueError(f"{path}.{absent[0]} is not set; conf/train.yaml or the algorithm's file in conf/algorithm declares it")
    return cls(**values)


def own_settings(nodes: Mapping[str, type], own: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    """An algorithm's own keys, read by the types that it declares: a dataclass for a node, anything else for a plain value.

    Raises:
        ValueError: a key that the algorithm does not know, or one that it lacks.
    """
    for key in own:
        if key not in nodes:
            known = [*nodes, *(each.name for each in fields(FusionConfig))]
            raise ValueError(f"fusion.{key} is unknown to algorithm={algorithm}{nearest_key(str(key), known, 'fusion')}")
    for key in nodes:
        if key not in own:
            raise ValueError(f"fusion.{key} is not set; conf/algorithm/{algorithm}.yaml declares it")
    return {key: strict(kind, own[key], f"fusion.{key}") if is_dataclass(kind) else own[key] for key, kind in nodes.items()}


def nearest_key(key: str, known: list[str], path: str) -> str:
    """`; did you mean PATH.KEY?`, or the known keys."""
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {path}.{near[0]}?" if near else f"; known keys: {', '.join(known)}"


@dataclass(frozen=True)
class Settings:
    """What an algorithm is built from: the `fusion` node and the numbers of verl's actor node that its terms use."""

    fusion: FusionConfig
    clip_ratio_low: float
    clip_ratio_high: float
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
        return cls(fusion, **{each.name: get(each.name) for each in fields(cls) if each.name != "fusion"})

    def changed(self, fusion: Mapping[str, Any], actor: Mapping[str, Any], path: str) -> Settings:
        """A copy with some keys of the fusion node and some numbers of the actor replaced.

        Raises:
            ValueError: an unknown key.
        """
        known = [each.name for each in fields(self) if each.name != "fusion"]
        for key in actor:
            if key not in known:
                raise ValueError(f"{path}.actor.{key} is unknown{nearest_key(str(key), known, f'{path}.actor')}")
        return replace(self, fusion=self.fusion.changed(fusion, f"{path}.fusion"), **actor)
