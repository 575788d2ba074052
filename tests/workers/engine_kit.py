"""The actor, the reference and the critic on verl's engine: the models of the other kits, read from a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from verl.workers.config import HFModelConfig

from unify_posttrain.workers import engine as engines
from unify_posttrain.workers.engine_actor import EngineActor, EngineCritic, EnginePolicy

from .actor_kit import RecordingSteps, built, composed_actor, make_model, start_group
from .critic_kit import composed_critic, critic_config, make_value_model, recording
from .legacy_outcomes import settled


class RecordingEngineActor(RecordingSteps, EngineActor):
    """Keeps the gradient of every optimizer step instead of taking it."""


@cache
def folder_of(kind: str) -> str:
    """A folder with a model of the kits: `policy`, `settled` or `value`."""
    folder = tempfile.mkdtemp()
    models = {"policy": make_model, "settled": lambda: settled(make_model()), "value": make_value_model}
    models[kind]().save_pretrained(folder)
    return folder


def model_config(folder: str, packed: bool) -> HFModelConfig:
    return HFModelConfig(
        path=folder,
        load_tokenizer=False,
        override_config={"attn_implementation": "sdpa"},
        use_remove_padding=packed,
        enable_gradient_checkpointing=False,
    )


def build(engine_class: type, folder: str, engine_config: Any, optim: Any, checkpoint: Any, packed: bool) -> Any:
    engine_config.use_remove_padding = packed
    engine = engine_class(model_config(folder, packed), engine_config, optim, checkpoint)
    engine.initialize()
    return engine


def make_engine_actor(
    *overrides: str, settings: Mapping[str, Any] | None = None, record: bool = True, model: str = "policy"
) -> EngineActor:
    """As `make_actor`; `settings` has `use_remove_padding`, too; `model` as of `folder_of`, or a folder."""
    start_group()
    composed = OmegaConf.create(composed_actor(*overrides))
    settings = dict(settings or {})
    packed = settings.pop("use_remove_padding", False)
    for key, value in settings.items():
        OmegaConf.update(composed, key, value)
    engines.settle(composed, "fsdp2")
    config = built(OmegaConf.to_container(composed))
    folder = model if Path(model).is_dir() else folder_of(model)
    engine = build(engines.PolicyEngine, folder, config.engine, config.optim, config.checkpoint, packed)
    return (RecordingEngineActor if record else EngineActor)(config, engine)


def make_engine_reference(packed: bool = False, chunk: int | None = None) -> EnginePolicy:
    return EnginePolicy(make_engine_actor(settings={"use_remove_padding": packed}).engine, chunk)


def make_engine_critic(*overrides: str) -> EngineCritic:
    start_group()
    packed = composed_critic(*overrides)["model"]["use_remove_padding"]
    config = critic_config(*overrides)
    object.__setattr__(config.model.fsdp_config, "strategy", "fsdp2")  # as `critic_parts` has it
    engine = build(engines.ValueEngine, folder_of("value"), config.model.fsdp_config, config.optim, config.checkpoint, packed)
    return recording(EngineCritic, "engine")(config, engine)
