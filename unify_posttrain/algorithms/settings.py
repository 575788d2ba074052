"""The `fusion` node of the configuration as strict dataclasses, and the few numbers of verl's actor node that terms read.

No defaults here: every number stands in `conf/`. A key that is unknown or absent is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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
class PrefixSettings:
    """`fusion.prefix`: which rows carry how much of a demonstration (see `experience.prefixes`), and weights of their Â."""

    n_prefix: int
    strategy: str
    min_ratio: float
    max_ratio: float
    steps: int
    linear_max_ratio: float
    share: bool
    prefix_adv_weight: float
    on_adv_weight: float
    entropy_top: float | None


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
class ReLIFTSettings:
    """`fusion.relift`: the buffer (see `experience.replay`) and its fine-tuning step."""

    sft_data_size: int
    order: str
    dedup: bool
    max_buffer: int | None
    optimizer: str
    lr: float
    grad_clip: float
    entropy_coeff: float
    sft_epochs: int
    sft_mini_batch_size: int | None


@dataclass(frozen=True)
class SRFTSettings:
    """`fusion.srft`: entropy-aware weights (see `algorithms.srft`)."""

    entropy_scope: str
    counts: str
    on_form: str
    demo_weight: float
    on_weight: float
    neg_coef: float
    weight_cap: float | None
    neg_prob_floor: float | None


@dataclass(frozen=True)
class UFTSettings:
    """`fusion.uft`: hints (see `experience.hints`) and their likelihood term."""

    hint_mode: str
    buckets: int
    T_hint: int
    p_low: float
    p_high: float
    hint_coef: float
    max_new_tokens: int
    joiner: str


@dataclass(frozen=True)
class OnlineSFTSettings:
    """`fusion.online_sft` (see `algorithms.online_sft`)."""

    form: str
    beta: float
    baseline: str
    length_norm: str
    legacy: bool
    clip_weight_value: float | None
    clip_logprob_min: float | None
    task: str
    correct_reward: float
    incorrect_reward: float
    episodes: int | None


@dataclass(frozen=True)
class CHORDSettings:
    """`fusion.chord`: schedule of μ in training steps, and where demonstrations come from."""

    warm: int
    decay: int
    peak: float
    valley: float
    expert_share: float | None


@dataclass(frozen=True)
class LRSchedule:
    """`fusion.lr_schedule`: `start` × lr up to lr over `warmup_ratio` of the steps, then a cosine down to `min_lr`."""

    start: float
    warmup_ratio: float
    min_lr: float


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
    sft_form: str
    sft_loss_coef: float
    sum_norm_divisor: float
    max_grad_norm: float | None
    logits_chunk: int | None
    allow_tempered_nll: bool
    lr_schedule: LRSchedule | None
    phases: tuple[Any, ...]
    agg: AggregationSettings
    demo: DemoSettings
    shaping: ShapingSettings
    prefix: PrefixSettings
    hpt: HPTSettings
    relift: ReLIFTSettings
    srft: SRFTSettings
    uft: UFTSettings
    online_sft: OnlineSFTSettings
    chord: CHORDSettings

    def __post_init__(self) -> None:
        for name, cls in PARTS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, cls):
                object.__setattr__(self, name, strict(cls, value, f"fusion.{name}"))
        object.__setattr__(self, "phases", tuple(self.phases or ()))

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> FusionConfig:
        """From the plain `fusion` mapping of a composed configuration."""
        return strict(cls, {key: value for key, value in node.items() if key != "_target_"}, "fusion")

    def changed(self, overrides: Mapping[str, Any], path: str = "fusion") -> FusionConfig:
        """A copy with some keys replaced; sub-nodes are merged.

        Raises:
            ValueError: an unknown key.
        """
        known = [field.name for field in fields(self)]
        values = {}
        for key, value in overrides.items():
            if key not in known:
                raise ValueError(f"{path}.{key} is unknown{_nearest(str(key), known, path)}")
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
    "prefix": PrefixSettings,
    "hpt": HPTSettings,
    "relift": ReLIFTSettings,
    "srft": SRFTSettings,
    "uft": UFTSettings,
    "online_sft": OnlineSFTSettings,
    "chord": CHORDSettings,
}


def strict(cls: type[T], values: Mapping[str, Any], path: str) -> T:
    """Build a dataclass from a mapping with exactly its fields."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}={values!r} must be a node with the keys of conf/train.yaml")
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ValueError(f"{path}.{key} is unknown{_nearest(str(key), known, path)}")
    absent = [key for key in known if key not in values]
    if absent:
        raise ValueError(f"{path}.{absent[0]} is not set; conf/train.yaml declares it")
    return cls(**values)


def _nearest(key: str, known: list[str], path: str) -> str:
    near = get_close_matches(key, known, n=1)
    return f"; did you mean {path}.{near[0]}?" if near else f"; known keys: {', '.join(known)}"


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

    def changed(self, fusion: Mapping[str, Any], actor: Mapping[str, Any], path: str) -> Settings:
        """A copy with some keys of the fusion node and some numbers of the actor replaced.

        Raises:
            ValueError: an unknown key.
        """
        known = [field.name for field in fields(self) if field.name != "fusion"]
        for key in actor:
            if key not in known:
                raise ValueError(f"{path}.actor.{key} is unknown{_nearest(str(key), known, f'{path}.actor')}")
        return replace(self, fusion=self.fusion.changed(fusion, f"{path}.fusion"), **actor)
