"""A miniature world of pages: the small corpus of VRAG, a model that has room for episodes, and how a run is asked for. For the
end-to-end tests of both engines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.tiny_vision import SETTINGS
from unify_posttrain.config import compose_config

from .conftest import World

SIZES = {"max_turns": 2, "crop_tag": "bbox", "crop_pad_px": 0, "min_crop_px": 28, "min_pixels": 12544, "max_pixels": 25088}
PAGES = 12


def add_pages(world: World, **shape: Any) -> Path:
    """Write the corpus with its questions, and a model that knows nothing; returns the folder of the corpus.

    Args:
        shape: further keys of `prepare.model`.
    """
    from unify_posttrain.tasks.tiny_model import build_base_model
    from unify_posttrain.tasks.vrag.rows import write_splits

    model = copy.deepcopy(SETTINGS) | {"max_position_embeddings": 2048, **shape}
    kept = ("steps", "batch_size", "lr", "betas", "weight_decay", "warmup_ratio", "grad_clip")
    model["pretraining"] = {
        "task": "vrag",
        "seeds": [1],
        "zoom": 0.5,
        **SIZES,
        **{key: SETTINGS["pretraining"][key] for key in kept},
    }
    build_base_model(world.home / "models" / "tiny_qwen2_5_vl_pages", model)
    config = compose_config(["task=vrag_small"])
    folder = world.home / "data" / "vrag_small"
    write_splits(folder, {**OmegaConf.to_container(config.prepare.task, resolve=True), "folder": str(folder)})
    return folder / "corpus"


def run_of(corpus: Path, url: str) -> tuple[str, ...]:
    """Overrides of a run through a retrieval server: two rollouts of each of 8 prompts, 2 steps, validated at the end."""
    return (
        "task=vrag_small", "model=tiny_qwen2_5_vl_pages", "data.max_prompt_length=768", "data.max_response_length=1024",
        f"environment.retriever.corpus={corpus}", "environment.retriever.kind=http", f"environment.retriever.url={url}",
        "actor_rollout_ref.rollout.n=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "trainer.total_training_steps=2", "trainer.test_freq=2",
    )  # fmt: skip


# UFT's hints search, so that rollouts of a model that knows nothing show pages, too; HPT then finds nothing solved.
PHASES = ("algorithm=sft_then_rl", "fusion.phases=[{algorithm:uft,steps:1},{algorithm:hpt}]")


def is_shown(metrics: dict[int, dict[str, float]]) -> None:
    """The metrics of a run with PHASES: rollouts with pages, then worked answers with pages."""
    assert metrics[1]["environment/n_search"] > 0 and metrics[1]["environment/n_images"] > 0
    assert metrics[1]["environment/search_errors"] == 0 and metrics[1]["actor/grad_norm"] > 0
    assert metrics[1]["training/rollout_probs_diff_max"] < 1e-3, "the actor sees the pages that the engine saw"
    assert metrics[2]["fusion/rows_demo"] == 8 and metrics[2]["actor/grad_norm"] > 0
    assert "val-core/vrag/acc/mean@1" in metrics[2]
