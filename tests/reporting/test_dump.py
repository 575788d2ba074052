"""What the trainer's dump says of tokens: kinds, advantages, demonstrations; and that the page reads the trainer's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from verl import DataProto

from tests.tiny_vision import prompt
from unify_posttrain.experience import gate
from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, ROLLOUT
from unify_posttrain.experience.rows import object_column
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.samples import rollout_steps
from unify_posttrain.reporting.settings import load_settings
from unify_posttrain.trainer.dump import RolloutDump, dropped_rows, row_fields
from unify_posttrain.trainer.fusion_trainer import FusionTrainer
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN
from unify_posttrain.trainer.prompts import Prompts
from unify_posttrain.trainer.step import Step

PAD = 0


class ByteTokenizer:
    """A token is a byte, so that é is two of them; 1 is the end of a response, 0 padding."""

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        kept = [int(i) for i in ids if int(i) > 1 or not skip_special_tokens]
        return bytes(kept).decode("utf-8", errors="replace").replace("\x01", "<end>")

    def batch_decode(self, rows: Any, skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(ids, skip_special_tokens) for ids in rows]


def batch(
    texts: list[str], mask: list[list[int]], advantages: list[list[float]], uids: list[str], prefix: list[list[int]] | None = None,
    kinds: list[int] | None = None,
) -> DataProto:  # fmt: skip
    """Responses as bytes; (B, T) lists may be shorter than T and are filled with 0."""
    ids = [list(text.encode()) for text in texts]
    width = max(map(len, ids))

    def filled(rows: list[list[Any]]) -> torch.Tensor:
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])

    prompts = torch.tensor([[PAD, 49]] * len(ids))
    present = filled([[1] * len(row) for row in ids])
    tensors = {
        "prompts": prompts,
        "responses": filled(ids),
        "attention_mask": torch.cat([(prompts != PAD).long(), present], dim=-1),
        "response_mask": filled(mask),
        "advantages": filled(advantages).float(),
        "token_level_scores": present.float() / present.sum(-1, keepdim=True),
    }
    columns = {"uid": object_column(uids)}
    columns["reward_model"] = object_column([{"ground_truth": "4"}] * len(ids))
    if prefix is not None:
        tensors["prefix_mask"] = filled(prefix).bool()
    if kinds is not None:
        columns[KIND_COLUMN] = np.array(kinds, dtype=np.int8)
        tensors["rl_weight"] = torch.tensor([float(kind == ROLLOUT) for kind in kinds])
        tensors["sft_weight"] = torch.tensor([float(kind == DEMONSTRATION) for kind in kinds])
    return DataProto.from_dict(tensors=tensors, non_tensors=columns)


def mixed() -> DataProto:
    """A rollout that began with two trained tokens, a demonstration, a rollout after an untrained hint, and padding."""
    return batch(
        ["abcd\x01", "gold\x01", "hint!", "ab"],
        mask=[[1] * 5, [1] * 5, [0, 0, 0, 0, 1], [0, 0]],
        prefix=[[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 1, 0], [0, 0]],
        advantages=[[0.5] * 5, [0.0] * 5, [0, 0, 0, 0, -0.25], [0, 0]],
        uids=["a", "b", "c", "padding-0"],
        kinds=[ROLLOUT, DEMONSTRATION, ROLLOUT, PADDING],
    )


def test_kinds_and_advantages_of_a_mixed_batch() -> None:
    known = {uid: Demonstration(7, 0, (49,), tuple(b"worked\x01")) for uid in ("a", "b")}
    fields = row_fields(mixed(), ByteTokenizer(), known)
    assert fields["segments"] == [
        [["demo", "ab"], ["on", "cd<end>"]],
        [["demo", "gold<end>"]],
        [["hint", "hint"], ["on", "!"]],
        [],
    ]
    assert fields["advantage"] == [0.5, 0.0, -0.25, None]
    assert fields["row_kind"] == ["rollout", "demonstration", "rollout", "padding"]
    assert fields["uid"] == ["a", "b", "c", "padding-0"]
    assert (fields["rl_weight"], fields["sft_weight"]) == ([1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0])
    # b's is the row itself, c has none
    assert fields["demonstration"] == ["worked<end>", None, None, None]


def test_a_plain_batch_of_a_critic() -> None:
    """Advantages differ by token; é's two bytes have one each, and the character is shown with its last."""
    fields = row_fields(batch(["aéb"], [[1] * 4], [[0.1, 0.2, 0.3, 0.3]], ["a"]), ByteTokenizer(), {})
    assert fields["segments"] == [[["on", "a"], ["on", "éb"]]]
    assert fields["advantage"][0] == pytest.approx([0.1, 0.3])
    assert "row_kind" not in fields and "rl_weight" not in fields and fields["demonstration"] == [None]


def test_observations_of_an_environment_are_untrained() -> None:
    fields = row_fields(batch(["askANSdo"], [[1, 1, 1, 0, 0, 0, 1, 1]], [[1, 1, 1, 0, 0, 0, 1, 1]], ["a"]), ByteTokenizer(), {})
    assert fields["segments"] == [[["on", "ask"], ["untrained", "ANS"], ["on", "do"]]] and fields["advantage"] == [1.0]
    assert "turn_scores" not in fields, "no batch of episodes"


def test_turns_of_episodes_have_their_rewards_and_verdicts() -> None:
    rows = batch(["askANSdo", "x"], [[1, 1, 1, 0, 0, 0, 1, 1], [1]], [[1, 1, 1, 0, 0, 0, 1, 1], [1]], ["a", "b"])
    rows.non_tensor_batch["turn_scores"] = object_column([[-1.0, 5.0], None])  # the second is a demonstration
    rows.non_tensor_batch["turn_outcomes"] = object_column([["wrong", "right"], None])
    fields = row_fields(rows, ByteTokenizer(), {})
    assert fields["turn_scores"] == [[-1.0, 5.0], None] and fields["turn_outcomes"] == [["wrong", "right"], None]
    rows.batch["rm_scores"], rows.meta_info = torch.zeros(rows.batch["responses"].shape), {"reward_extra_keys": []}
    lines = list(dropped_rows(rows, ByteTokenizer()))
    assert [line["turn_outcomes"] for line in lines] == [["wrong", "right"], None] and json.dumps(lines)


@given(st.data())
def test_segments_put_together_are_the_response(data: st.DataObject) -> None:
    text = data.draw(st.text("ab1é≤😀", min_size=1, max_size=12))
    length = len(text.encode())
    of_length = {"min_size": length, "max_size": length}
    mask, prefix = (data.draw(st.lists(st.integers(0, 1), **of_length)) for _ in range(2))
    values = data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5]), **of_length))
    fields = row_fields(batch([text], [mask], [values], ["a"], prefix=[prefix]), ByteTokenizer(), {})
    assert "".join(part for _, part in fields["segments"][0]) == text
    advantage = fields["advantage"][0]
    trained = {value for value, m in zip(values, mask, strict=True) if m}
    assert (len(advantage) == len(fields["segments"][0])) if len(trained) > 1 else advantage == next(iter(trained), None)


def test_images_of_episodes_are_named_and_have_one_pad() -> None:
    """Of a rollout by the column of the agent loop, of a demonstration by itself, whether it is trained or stands beside."""
    page, part = {"page_id": "deck_2", "rect": [0, 0, 8, 6]}, {"page_id": "deck_2", "rect": [0, 0, 4, 3]}
    text = "go<|vision_start|><|image_pad|><|image_pad|><|vision_end|>12"
    mask = [[int(not 2 <= place < len(text) - 2) for place in range(len(text))]] * 2
    rows = batch([text] * 2, mask, mask, ["a", "b"], kinds=[ROLLOUT, DEMONSTRATION], prefix=[[0] * len(text), mask[1]])
    rows.non_tensor_batch["shown_images"] = object_column([[page], None])
    known = {uid: Demonstration(0, 0, (49,), tuple(text.encode()), mask=tuple(mask[0]), origins=(page, part)) for uid in "ab"}
    fields = row_fields(rows, ByteTokenizer(), known)
    assert fields["shown_images"] == [[page], [page, part]]
    given = ["untrained", "<|vision_start|><|image_pad|><|vision_end|>"]
    assert fields["segments"] == [[["on", "go"], given, ["on", "12"]], [["demo", "go"], given, ["demo", "12"]]]
    assert fields["demonstration"] == [f"go{given[1]}12", None] and fields["demonstration_images"] == [[page, part], None]


@pytest.mark.parametrize("dumps", [True, False])
def test_the_trainer_writes_what_the_page_reads(tmp_path: Path, dumps: bool) -> None:
    trainer = object.__new__(FusionTrainer)  # the method needs these attributes and no workers
    folder = str(tmp_path / "rollouts") if dumps else None
    trainer.config = OmegaConf.create({"trainer": {"rollout_data_dir": folder}})
    trainer.tokenizer, trainer.timing_raw, trainer.global_steps = ByteTokenizer(), {}, 3
    trainer.dump = RolloutDump(folder, trainer.tokenizer)
    trainer.reward_extra_infos_dict = {"acc": np.array([1, 1, 0, 0], dtype=np.float32)}
    prompts = DataProto.from_dict(
        tensors={"x": torch.zeros(3)},
        non_tensors={
            "uid": object_column(["a", "b", "c"]),
            "row_id": np.array([7, 8, 9]),
            "raw_prompt": object_column([prompt("?"), prompt("?", "/data/b.png"), prompt("?", "/data/c.png", "/data/d.png")]),
        },
    )
    rollouts = batch(["a\x01", "wrong\x01", "bad"], [[1] * 2, [1, 1, 0, 0, 1, 1], [1] * 3], [[0], [0], [0]], ["a", "b", "b"])
    rollouts.batch["rm_scores"] = rollouts.batch["token_level_scores"] * torch.tensor([[1.0], [0.0], [0.25]])
    plan = gate([1, 0], 2, strategy="switch", switch_gate=0, uids=["a", "b"])
    trainer.step = Step(3, None, 1, prompts=Prompts(prompts, {}, []), dropped=trainer.dump.dropped(rollouts, plan))
    trainer._fit_dump_data(mixed())
    if not dumps:
        assert not list(tmp_path.iterdir()) and set(trainer.reward_extra_infos_dict) == {"acc"}
        return
    rows = [json.loads(line) for line in (tmp_path / "rollouts" / "3.jsonl").read_text().splitlines()]
    assert [row["row_kind"] for row in rows] == ["rollout", "demonstration", "rollout", "padding", "dropped", "dropped"]
    assert [row["row_id"] for row in rows] == [7, 8, 9, None, 8, 8]
    b, c = [{"image": "/data/b.png"}], [{"image": "/data/c.png"}, {"image": "/data/d.png"}]
    assert [row.get("pictures") for row in rows] == [None, b, c, None, b, None]
    assert rows[4]["segments"] == [["on", "wr"], ["untrained", "on"], ["on", "g<end>"]], "what it was given, and what it wrote"
    assert rows[4]["output"] == "wrong" and rows[5]["score"] == 0.25
    assert rows[0]["output"] == "abcd" and rows[0]["score"] == pytest.approx(1) and rows[0]["gts"] == "4"
    run = Run(tmp_path, "run", gate={3: [(7, 1, "rl"), (8, 0, "sft"), (9, 0, "rl")]})
    [step] = rollout_steps(run, load_settings().limits)
    by_zone = {(prompt["zone"], prompt["solved"]): prompt for prompt in step["prompts"]}
    assert by_zone["rl", 1]["rollouts"][0]["segments"] == [["demo", "ab", 0, 0.5], ["on", "cd<end>", 0, 0.5]]
    gated = by_zone["sft", 0]
    assert gated["demonstrations"][0]["segments"] == [["demo", "gold<end>", 0, 0.0]]
    assert [(row["kind"], row["score"]) for row in gated["rollouts"]] == [("dropped", 0.25), ("dropped", 0.0)], "best first"
    assert by_zone["rl", 0]["rollouts"][0]["segments"] == [["hint", "hint", 0, None], ["on", "!", 0, -0.25]]
