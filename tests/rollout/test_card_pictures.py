"""Hands that are shown as pictures, from the data file to the row that is trained: features for every pad of every row, the picture
in every turn, and demonstrations of the same words with the same ids, mask, pixels and positions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from verl.utils import hf_processor

from tests.rollout.test_environment_loop import Engine
from tests.rollout.test_shown_images import fusion, loop_of, said, target_of, verls_inputs
from tests.tasks.environments import task_settings
from unify_posttrain.config import compose_config
from unify_posttrain.rollout.pictures import GRIDS, PIXELS, PictureReader
from unify_posttrain.startup.data_checks import check_data
from unify_posttrain.startup.dataset import FusionDataset
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.tasks.episodes import episode_node
from unify_posttrain.tasks.general_points.image_rows import write_splits
from unify_posttrain.trainer.packing import Packing

ROWS = {"train": 12, "gp_id": 4, "gp_id_seen": 0, "gp_ood": 4, "gp_ood_target": 0, "gp_ood_visual": 4}
UNSEEN, BLIND = "{c:A A A;n:1 1 1;f:1+1+1=24}", "Let me see."


@pytest.fixture(scope="module")
def processor(seeing_folder: Path) -> Any:
    return hf_processor(str(seeing_folder), use_fast=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, seeing_folder: Path) -> Any:
    folder = tmp_path_factory.mktemp("cards")
    write_splits(folder, {**task_settings("general_points_images_small"), "rows": ROWS})
    return compose_config(
        [
            "task=general_points_images_small", "model=tiny_qwen2_5_vl", "hardware=cpu", "algorithm=hpt",
            f"actor_rollout_ref.model.path={seeing_folder}", f"data.train_files={folder}/train.parquet",
            f"data.val_files={folder}/test.parquet", "data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
            "data.filter_overlong_prompts_workers=1", "trainer.total_training_steps=2",
        ]
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(config: Any, processor: Any, tmp_path_factory: pytest.TempPathFactory) -> FusionDataset:
    return FusionDataset(config.data.train_files, processor.tokenizer, config.data, processor)


def play(config: Any, processor: Any, engine: Engine, row: dict[str, Any], messages: list[dict[str, Any]]) -> Any:
    async def run() -> Any:
        columns = {key: row[key] for key in ("data_source", "reward_model", "extra_info")}
        return await loop_of(config, processor, engine).run({"temperature": 1.0, "logprobs": True}, **columns, raw_prompt=messages)

    return asyncio.run(run())


def test_every_row_has_a_feature_for_each_pad(data: FusionDataset, processor: Any, config: Any) -> None:
    """And the most that a prompt has is what the dry run plans for: 5 x 5 tokens of a picture."""
    reader = PictureReader(processor)
    for row in data.dataframe:
        seen = reader.read(data.messages(row))
        [grid] = seen.inputs[GRIDS]
        assert seen.ids.count(processor.image_token_id) == int(grid.prod()) // 4 == 25
        assert seen.inputs[PIXELS].shape[0] == int(grid.prod())
    report = check_data(config)
    assert (report.train_rows, report.train_dropped, report.pictures, report.picture_tokens) == (12, 0, 1, 25)
    told = describe_run(config, report)
    assert "pictures     at most 1 per prompt and 25 tokens of them" in told and "an episode   at most 3 turns of 44 tokens" in told


def test_the_picture_is_seen_in_every_turn_and_the_row_is_replayed(config: Any, processor: Any, data: FusionDataset) -> None:
    row = data.dataframe[0]
    messages, right = data.messages(row), row["target"][-1]["content"]
    output = play(config, processor, engine := Engine(UNSEEN, BLIND, right, tokenizer=processor.tokenizer), row, messages)
    fields = said(output)
    assert fields["stop"] == "solved" and fields["acc"] == 1 and fields["turns"] == 3
    assert fields["outcome_incorrect_vision"] == 2, "other cards, and none"
    shown = [asked["shown"]["image_data"] for asked in engine.asked]
    assert len(shown) == 3 and all(len(each) == 1 and each[0] is shown[0][0] for each in shown)
    pad, (inputs, positions) = processor.image_token_id, verls_inputs(processor, output)
    assert all(asked["prompt_ids"].count(pad) == 25 for asked in engine.asked) and pad not in output.response_ids
    target, _ = target_of(processor, output)
    pictures = PictureReader(processor)
    reader = make_reader(processor.tokenizer, fusion(config), {}, pictures, episode_node(config))
    reading = reader.read(0, messages, {"target": target}, step=1).demonstration
    assert reading is not None and list(reading.prompt_ids) == output.prompt_ids
    assert list(reading.response_ids) == output.response_ids and list(reading.mask) == output.response_mask
    sizes = config.data.max_prompt_length, config.data.max_response_length
    tensors, columns = Packing(*sizes, processor.tokenizer.pad_token_id, pictures).rows([reading])
    assert set(columns[0]) == set(inputs) and all(torch.equal(columns[0][name], inputs[name]) for name in inputs)
    attended = tensors["attention_mask"].bool()
    assert torch.equal(tensors["position_ids"][0][:, attended[0]], positions[0])
