"""A model that sees, trained by the real command: demonstrations with pictures beside rollouts, a replay buffer of paths, a frozen
tower, and an exact resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e.conftest import World, resumed
from tests.tiny_vision import SETTINGS

SPLITS = {"hard": {"side": [2], "train": 24, "test": 8}}
FLAGS = (
    "task=shapes",
    "model=tiny_qwen2_5_vl",
    "data.max_prompt_length=40",
    "data.max_response_length=40",
    "trainer.total_training_steps=4",
    "trainer.save_freq=2",
)


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
def test_relift_sees_replays_paths_freezes_the_tower_and_resumes_exactly(seeing: World) -> None:
    """Nothing is solved, so that the buffer fills: it holds paths, and a resume in its middle makes the same rows of them."""
    flags = (
        *FLAGS, "algorithm=relift", "fusion.relift.sft_data_size=12", "actor_rollout_ref.actor.freeze_vision_tower=true",
        "trainer.test_freq=4", "trainer.old_log_prob_freq=1",
        "actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
    )  # fmt: skip
    seeing.train("relift-pictures", *flags)
    metrics = seeing.metrics("relift-pictures")
    assert [metrics[step]["fusion/sft_step"] for step in (1, 2, 3, 4)] == [0, 1, 1, 0]  # 8 more every step, 12 taken
    assert "val-core/shapes_hard/acc/mean@1" in metrics[4]
    assert all(0 < metrics[step]["training/rollout_probs_diff_max"] < 1e-3 for step in (1, 2, 3, 4))
    before, after = resumed(seeing, "relift-pictures", 2, *flags)
    assert before == after
    saved = next((seeing.checkpoints("relift-pictures") / "global_step_4").rglob("huggingface"))
    base, trained = weights(seeing.home / "models" / "tiny_qwen2_5_vl"), weights(saved)
    assert set(trained) - set(base) <= {"lm_head.weight"} and set(base) <= set(trained)  # verl writes the tied head out
    moved = {name for name in base if not torch.equal(base[name], trained[name])}
    assert moved and not [name for name in moved if "visual" in name]
