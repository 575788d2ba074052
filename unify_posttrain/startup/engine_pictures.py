"""vLLM makes pixels of pictures by itself, from the processor in the model's folder: they must be those that are trained on."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

CHANGES = "actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs"


def check_engine(config: DictConfig, processor: Any, folder: str) -> None:
    """Refuse what would let the engine fail at its start, or see other pictures than the actor.

    Args:
        config: the whole configuration.
        processor: of the model.
        folder: where it was loaded from.

    Raises:
        ValueError: naming key or file, and the remedy.
    """
    if config.actor_rollout_ref.rollout.name != "vllm":
        return
    changes = OmegaConf.select(config, CHANGES)
    if changes:
        raise ValueError(
            f"{CHANGES}={OmegaConf.to_container(changes, resolve=True)} would change pictures for the engine alone, and the actor "
            f"would train on others; set it to null, and write what it says into {folder}/preprocessor_config.json"
        )
    maker = processor.image_processor
    if None in (getattr(maker, name, 0) for name in ("min_pixels", "max_pixels")):
        least, most = maker.size["shortest_edge"], maker.size["longest_edge"]
        raise ValueError(
            f"actor_rollout_ref.model.path={folder}: preprocessor_config.json bounds pictures by `size` alone, and vLLM reads "
            f'other names; add "min_pixels": {least} and "max_pixels": {most} to it, which say the same'
        )
