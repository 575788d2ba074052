"""Episodes with pages, trained by the real command through the real retrieval server."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.e2e.conftest import World
from tests.tasks.vrag.test_http import real_server
from tests.tiny_vision import SETTINGS
from unify_posttrain.config import compose_config

SIZES = {"max_turns": 2, "crop_tag": "bbox", "crop_pad_px": 0, "min_crop_px": 28, "min_pixels": 12544, "max_pixels": 25088}


@pytest.fixture(scope="module")
def corpus(world: World) -> Path:
    """The small corpus and its questions, and a model that knows nothing but has room for episodes."""
    from unify_posttrain.tasks.tiny_model import build_base_model
    from unify_posttrain.tasks.vrag.rows import write_splits

    model = copy.deepcopy(SETTINGS) | {"max_position_embeddings": 2048}
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


@pytest.mark.e2e
def test_rollouts_and_demonstrations_with_pages_are_trained_through_a_server(world: World, corpus: Path) -> None:
    """A step of UFT, whose hints search, so that rollouts of a model that knows nothing show pages, too; and one of HPT, which
    finds nothing solved and trains worked answers with pages."""
    with real_server(corpus, pages=12) as (url, _):
        world.train(
            "pages", "task=vrag_small", "model=tiny_qwen2_5_vl_pages", "algorithm=sft_then_rl",
            "fusion.phases=[{algorithm:uft,steps:1},{algorithm:hpt}]",
            "data.max_prompt_length=768", "data.max_response_length=1024",
            f"environment.retriever.corpus={corpus}", "environment.retriever.kind=http", f"environment.retriever.url={url}",
            "actor_rollout_ref.rollout.n=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
            "trainer.total_training_steps=2", "trainer.test_freq=2",
        )  # fmt: skip
    metrics = world.metrics("pages")
    assert sorted(metrics) == [1, 2] and all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    assert metrics[1]["environment/n_search"] > 0 and metrics[1]["environment/n_images"] > 0
    assert metrics[1]["environment/search_errors"] == 0 and metrics[1]["actor/grad_norm"] > 0
    assert metrics[1]["training/rollout_probs_diff_max"] < 1e-3, "the actor sees the pages that the engine saw"
    assert metrics[2]["fusion/rows_demo"] == 8 and metrics[2]["actor/grad_norm"] > 0
    assert "val-core/vrag/acc/mean@1" in metrics[2]
