"""A model that sees, trained by the real command: rollouts and demonstrations with pictures in one batch, and a frozen tower where
this verl has the backend that freezes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import World
from tests.tiny_vision import SETTINGS
from unify_posttrain.backend import seams

FREEZES = "legacy" in seams.BACKENDS
SPLITS = {"hard": {"side": [2], "train": 24, "test": 8}}


@pytest.fixture(scope="module")
def seeing(world: World) -> World:
    from unify_posttrain.tasks.shapes.rows import write_splits
    from unify_posttrain.tasks.tiny_model import build_base_model

    build_base_model(world.home / "models" / "tiny_qwen2_5_vl", SETTINGS)
    write_splits(world.home / "data" / "shapes", {"seed": 0, "cell": 28, "hits": 3, "splits": SPLITS})
    return world


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.e2e
def test_a_model_that_sees_trains_rollouts_and_demonstrations_and_its_tower_unless_that_is_frozen(seeing: World) -> None:
    """A step of rollouts with a demonstration in each group, and one of HPT, which finds nothing solved. What is replayed from a
    buffer, and after a resume, is made by the same packing (tests/trainer/test_packing.py)."""
    seeing.train(
        "pictures", "task=shapes", "model=tiny_qwen2_5_vl", "data.max_prompt_length=40", "data.max_response_length=40",
        "algorithm=sft_then_rl", "fusion.phases=[{algorithm:rl_with_sft_loss,steps:1},{algorithm:hpt}]",
        "trainer.total_training_steps=2", "trainer.save_freq=2", "trainer.test_freq=2",
        "actor_rollout_ref.actor.freeze_vision_tower=true" if FREEZES else "backend=engine",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
    )  # fmt: skip
    metrics = seeing.metrics("pictures")
    assert [(metrics[step]["fusion/rows_on"], metrics[step]["fusion/rows_demo"]) for step in (1, 2)] == [(24, 8), (0, 8)]
    assert "val-core/shapes_hard/acc/mean@1" in metrics[2]
    assert 0 < metrics[1]["training/rollout_probs_diff_max"] < 1e-3
    saved = next((seeing.checkpoints("pictures") / "global_step_2").rglob("huggingface"))
    base, trained = weights(seeing.home / "models" / "tiny_qwen2_5_vl"), weights(saved)
    assert set(trained) - set(base) <= {"lm_head.weight"} and set(base) <= set(trained)  # verl writes the tied head out
    moved = {name for name in base if not torch.equal(base[name], trained[name])}
    assert any("visual" not in name for name in moved)
    assert any("visual" in name for name in moved) != FREEZES


@pytest.mark.e2e
def test_episodes_about_a_picture_are_trained_and_shown(seeing: World) -> None:
    """Cards that the model has to see, in every turn: a step of rollouts with demonstrations, one of HPT, and the page of both."""
    from omegaconf import OmegaConf

    from unify_posttrain.config import compose_config
    from unify_posttrain.reporting import build_report
    from unify_posttrain.tasks.general_points.image_rows import write_splits

    folder = seeing.home / "data" / "general_points_images_small"
    task = OmegaConf.to_container(compose_config(["task=general_points_images_small"]).prepare.task, resolve=True)
    rows = {"train": 24, "gp_id": 4, "gp_id_seen": 0, "gp_ood": 0, "gp_ood_target": 0, "gp_ood_visual": 4}
    write_splits(folder, {**task, "rows": rows, "folder": str(folder)})
    seeing.train(
        "cards", "task=general_points_images_small", "model=tiny_qwen2_5_vl", f"backend={seams.BACKENDS[0]}",
        "data.max_prompt_length=48", "data.max_response_length=208",
        "algorithm=sft_then_rl", "fusion.phases=[{algorithm:rl_with_sft_loss,steps:1},{algorithm:hpt}]",
        "trainer.total_training_steps=2", "trainer.test_freq=2", f"trainer.rollout_data_dir={seeing.home}/runs/cards/rollouts",
    )  # fmt: skip
    metrics = seeing.metrics("cards")
    assert metrics[1]["environment/turns"] > 1 and metrics[1]["environment/feedback_tokens"] > 0
    assert metrics[1]["environment/outcome/incorrect_vision"] > 0 and metrics[1]["actor/grad_norm"] > 0
    assert 0 < metrics[1]["training/rollout_probs_diff_max"] < 1e-3, "the actor sees the cards in every turn"
    assert metrics[2]["fusion/rows_demo"] == 8 and metrics[2]["actor/grad_norm"] > 0
    assert {"val-core/gp_id/acc/mean@1", "val-core/gp_ood_visual/acc/mean@1"} <= set(metrics[2])
    page = build_report([seeing.home / "runs" / "cards"], pictures=[folder])
    assert page.count("data:image/webp;base64,") >= 8
