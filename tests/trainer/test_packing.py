"""Demonstrations and replayed prompts of a model that sees: the rows that workers get."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.utils import hf_processor

from tests.tiny_vision import picture, prompt
from unify_posttrain.experience.demonstrations import DemonstrationReader
from unify_posttrain.experience.mixer import mix
from unify_posttrain.experience.plan import BatchPlan, GroupPlan
from unify_posttrain.experience.replay import ReplayBuffer
from unify_posttrain.experience.rows import Rows, object_column
from unify_posttrain.experience.rules import Group, RolloutsOnly
from unify_posttrain.rollout.pictures import PictureReader
from unify_posttrain.trainer.demonstrator import Demonstrator
from unify_posttrain.trainer.packing import INPUTS_COLUMN
from unify_posttrain.trainer.replayer import Replayer

PROMPT, RESPONSE = 40, 8


@pytest.fixture(scope="module")
def processor(seeing_folder):
    return hf_processor(str(seeing_folder), use_fast=True)


def score_rows(data: DataProto) -> DataProto:
    scores = torch.zeros(data.batch["responses"].shape)
    scores[:, 0] = 1.0
    columns = {"acc": np.ones(len(data))}
    return DataProto.from_dict(tensors={"rm_scores": scores}, non_tensors=columns, meta_info={"reward_extra_keys": ["acc"]})


@pytest.fixture
def demonstrator(processor) -> Demonstrator:
    reader, tokenizer = PictureReader(processor, keep=4), processor.tokenizer

    def render(messages):
        seen = reader.read(messages)
        return seen.text, list(seen.ids)

    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    read = DemonstrationReader(encode, render, tokenizer.eos_token_id, RESPONSE)
    return Demonstrator(read, score_rows, 1, PROMPT, RESPONSE, tokenizer.pad_token_id, pictures=reader)


def batch(tmp_path) -> DataProto:
    """Two prompts with pictures in files, one of text."""
    paths = []
    for number, size in enumerate([(56, 56), (84, 56)]):
        picture(*size, seed=number).save(tmp_path / f"{number}.png")
        paths.append(str(tmp_path / f"{number}.png"))
    prompts = [prompt("A?", paths[0]), prompt("B?"), prompt("C?", paths[1])]
    columns = {
        "uid": object_column(["u0", "u1", "u2"]),
        "row_id": np.arange(3),
        "raw_prompt": object_column(prompts),
        "target": object_column(["x 1", "y 22", "z 3"]),
        "data_source": object_column(["shapes"] * 3),
        "reward_model": object_column([{"ground_truth": "1"}] * 3),
    }
    return DataProto.from_dict(non_tensors=columns)


def check(processor, rows: Rows, pictures: list[int]) -> None:
    """Pads equal features in every row, and positions have four rows."""
    assert rows.tensors["position_ids"].shape == (len(pictures), 4, PROMPT + RESPONSE)
    for ids, inputs, number in zip(rows.tensors["input_ids"], rows.columns[INPUTS_COLUMN], pictures, strict=True):
        assert len(inputs.get("image_grid_thw", ())) == number
        features = int(inputs["image_grid_thw"].prod(-1).sum()) // 4 if number else 0
        assert int((ids == processor.image_token_id).sum()) == features
        assert (len(inputs["pixel_values"]) == 4 * features) if number else inputs == {}


def test_demonstrations_have_their_prompts_pictures(processor, demonstrator, composed, tmp_path, algorithm) -> None:
    given = batch(tmp_path)
    found, metrics = demonstrator.read(algorithm("algorithm=hpt").fusion, given, step=1)
    assert set(found) == {"u0", "u1", "u2"} and metrics["fusion/demo_missing"] == 0
    rows = demonstrator.rows(given, list(found.items()), log_probs=True)
    check(processor, rows, [1, 0, 1])
    assert rows.tensors["response_mask"].sum(dim=-1).tolist() == [4, 5, 4]  # bytes and the end token
    filler = demonstrator.filler(given, log_probs=False)
    check(processor, filler, [1])


def test_padding_rows_of_a_mixed_batch_keep_pads_and_features_together(processor, demonstrator, tmp_path, algorithm) -> None:
    given = batch(tmp_path)
    found, _ = demonstrator.read(algorithm("algorithm=hpt").fusion, given, step=1)
    rows = demonstrator.rows(given, [(uid, found[uid]) for uid in ("u0", "u2")], log_probs=False)
    plan = BatchPlan(tuple(GroupPlan(uid, 0, 0, 0, 1, {"sft": 1.0}) for uid in ("u0", "u2")))
    mixed = mix(plan, None, rows, ranks=3, mini_batches=1)  # one row is padding
    assert mixed.padding == 1
    check(processor, mixed.rows, [1, 1, 1])


def test_the_replay_buffer_holds_paths_and_makes_the_same_rows_after_a_resume(processor, demonstrator, tmp_path, algorithm) -> None:
    given = batch(tmp_path)
    found, _ = demonstrator.read(algorithm("algorithm=hpt").fusion, given, step=1)
    pad = processor.tokenizer.pad_token_id

    def replayer() -> Replayer:
        reader = PictureReader(processor)
        return Replayer(ReplayBuffer(3, "oldest", True, None, seed=0), None, PROMPT, RESPONSE, pad, 1.0, reader)

    first = replayer()
    plan = RolloutsOnly(4, needs_target=True).plan([Group(uid, 0, 4, True) for uid in found])
    first.collect(plan, found, step=1)
    state = json.loads(json.dumps(first.state))
    held = [entry.get("pictures") for entry in state["entries"]]
    assert held == [[{"image": str(tmp_path / "0.png")}], None, [{"image": str(tmp_path / "1.png")}]]
    again = replayer()
    again.state = state
    taken = [each.take(2, ranks=1) for each in (first, again)]
    for rows in taken:
        uids = list(rows.non_tensor_batch["uid"])
        pictures = [0 if uid.endswith("row-1") else 1 for uid in uids]
        check(processor, Rows(dict(rows.batch.items()), dict(rows.non_tensor_batch)), pictures)
        assert rows.meta_info["images_seqlens"] and sum(rows.meta_info["images_seqlens"]) == 4 * (4 + 6)
    assert torch.equal(taken[0].batch["input_ids"], taken[1].batch["input_ids"])
