"""Prompts that rows share are computed once: the same log-probs, entropies and gradients, for fewer tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from verl import DataProto

from tests.workers.picture_kit import make_seeing_actor, rows, verls_forward
from unify_posttrain.workers import shared_prompts
from unify_posttrain.workers.shared_prompts import can_share

from .actor_kit import PROMPT, RESPONSE, gradient_distance, make_actor, make_batch, make_model

OFF, ON = "fusion.share_prompts=false", "fusion.share_prompts=true"
FAR = torch.tensor([0, 3, 6, 9, 1, 4, 7, 2, 5, 8])  # rows of a group lie apart


def grouped(prompts: tuple[int, ...] = (0, 0, 0, 0, 4, 4, 4, 4, 8, 9)) -> DataProto:
    """Ten rows of every kind; row i has the prompt of row prompts[i]."""
    batch = make_batch(rows=10, demonstrations=4, hints=3, padding=1)
    for name in ("input_ids", "attention_mask"):
        batch.batch[name][:, :PROMPT] = batch.batch[name][list(prompts), :PROMPT]
    batch.batch["position_ids"] = (batch.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    batch.meta_info["mini_batches"] = 2
    return batch.select_idxs(FAR)


class Counted:
    """Counts the tokens that a model is called with."""

    def __init__(self) -> None:
        self.model, self.tokens = make_model(), 0
        self.model.model.embed_tokens.register_forward_hook(self._count)

    def _count(self, _module: Any, args: tuple[torch.Tensor], _output: Any) -> None:
        self.tokens += args[0].numel()


def updated(*flags: str, batch: DataProto, sharded: bool = False, **settings: Any) -> tuple[list, dict[str, float], int]:
    counted = Counted()
    module = counted.model
    if sharded:
        for part in (
            *module.model.layers,
            module,
        ):  # as verl does it: the root gives its weights back, too
            fully_shard(part, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=True)
    actor = make_actor(*flags, module=module, settings=settings)
    metrics = actor.update_policy(batch)
    return actor.gradients, metrics, counted.tokens


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("name", ["hpt", "uft", "srft", "grpo"])
def test_gradients_and_metrics_stay(name: str, trim: bool) -> None:
    flags = f"algorithm={name}", f"fusion.trim_padding={str(trim).lower()}"
    whole, metrics, many = updated(*flags, OFF, batch=grouped())
    shared, others, few = updated(*flags, ON, batch=grouped(), sharded=True)
    assert few < many
    for one, other in zip(whole, shared, strict=True):
        assert gradient_distance(one, other) < 1e-6 and sum(each.abs().sum() for each in one.values()) > 0
    assert others == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_rows_of_a_prompt_come_into_one_micro_batch() -> None:
    """Each prompt is computed once per mini-batch, however its rows lie and the mini-batch is cut."""
    whole, _, many = updated("algorithm=grpo", "fusion.trim_padding=false", OFF, batch=grouped((0,) * 5 + (5,) * 5))
    flags = "algorithm=grpo", "fusion.trim_padding=false", ON
    shared, _, few = updated(*flags, batch=grouped((0,) * 5 + (5,) * 5), ppo_micro_batch_size_per_gpu=5)
    assert (many, few) == (10 * (PROMPT + RESPONSE), 10 * RESPONSE + 4 * PROMPT), "both prompts have rows in both mini-batches"
    assert all(gradient_distance(*pair) < 1e-6 for pair in zip(whole, shared, strict=True))


def test_log_probs_and_entropies_stay() -> None:
    found = []
    for flag in (OFF, ON):
        batch = grouped()
        batch.meta_info = {"micro_batch_size": 10, "use_dynamic_bsz": False, "temperature": 0.7}
        found.append(make_actor("algorithm=hpt", flag).compute_log_prob(batch, calculate_entropy=True))
    attended = batch.batch["attention_mask"][:, PROMPT:].bool()
    for name in ("log_probs", "entropys"):
        torch.testing.assert_close(found[0][name][attended], found[1][name][attended], rtol=1e-5, atol=1e-6)


def test_prompts_that_nobody_shares_take_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prompts.SharedPrompts, "on", None)
    updated("algorithm=grpo", ON, batch=grouped(tuple(range(10))))
    updated("algorithm=grpo", OFF, batch=grouped())
    updated("algorithm=grpo", ON, "fusion.logits_chunk=4", batch=grouped())


def test_a_model_that_keeps_nothing_is_given_whole_rows() -> None:
    """Its signature does not say so."""

    class Forgetful(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()
            self.config = self.model.config

        def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False, **given: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False, **given)

    whole, shared = (make_actor("algorithm=grpo", flag, module=Forgetful()) for flag in (OFF, ON))
    assert shared.shares
    for actor in (whole, shared):
        actor.update_policy(grouped())
    assert all(gradient_distance(*pair) < 1e-6 for pair in zip(whole.gradients, shared.gradients, strict=True))


@pytest.mark.parametrize("shown", [{"pixel_values_videos": torch.zeros(1)}, {"pixel_values": torch.zeros(1)}])
def test_what_is_no_picture_as_it_is_known_here_is_left_alone(shown: dict[str, torch.Tensor]) -> None:
    batch = grouped((0,) * 10)
    column = np.empty(10, dtype=object)
    column[:] = [shown] * 10
    batch.non_tensor_batch[shared_prompts.PICTURES] = column
    assert shared_prompts.SharedPrompts.of({**batch.batch, shared_prompts.PICTURES: column}, image_token=7) is None
    assert shared_prompts.together(batch) is batch


def test_models_that_cannot() -> None:
    assert can_share(make_model())
    dropping, drawing, saving, sliding = (make_model() for _ in range(4))
    dropping.config.attention_dropout = 0.1
    drawing.model.drop = torch.nn.Dropout(0.1)
    saving.gradient_checkpointing_enable()
    sliding.config.layer_types, sliding.config.sliding_window = ["sliding_attention"] * 2, 4
    assert not any(can_share(model) for model in (dropping, drawing, saving, sliding, torch.nn.Linear(2, 2)))


class TestPictures:
    """Of a model that sees."""

    @pytest.fixture(autouse=True)
    def forward_of_verl(self) -> Iterator[None]:
        with verls_forward():
            yield

    @staticmethod
    def both_ways(folder: Path, batch: DataProto) -> tuple[float, list[int]]:
        """(distance of gradients, rows that the vision tower was given in each way)."""
        found, seen = [], []
        for share in (False, True):
            actor = make_seeing_actor(folder, **{"fusion.share_prompts": share})
            patches: list[int] = []
            actor.actor_module.model.visual.register_forward_pre_hook(lambda _module, args, kept=patches: kept.append(len(args[0])))
            actor.update_policy(batch)
            found.append(actor.gradients[0])
            seen.append(sum(patches))
        assert any("visual" in name and value.abs().max() > 0 for name, value in found[0].items())
        return gradient_distance(*found), seen

    @staticmethod
    def copies(folder: Path, number: int, **told: Any) -> DataProto:
        """A text and two prompts with pictures, `number` times each, with other responses."""
        batch = rows(folder, [0, 1, 2], **told)
        every = batch.select_idxs(torch.arange(3).repeat(number))
        ids, width = every.batch["input_ids"], every.batch["responses"].shape[1]
        turned = (torch.arange(len(every)) // 3).unsqueeze(-1) * every.batch["response_mask"]
        ids[:, -width:] += turned
        every.batch["responses"] = ids[:, -width:].clone()
        return every

    def test_are_looked_at_once(self, seeing_folder: Path) -> None:
        distance, (many, few) = self.both_ways(seeing_folder, self.copies(seeing_folder, 3))
        assert distance < 1e-5 and few < many / 2

    def test_prompts_that_differ_in_their_pictures_alone_are_two(self, seeing_folder: Path) -> None:
        batch = self.copies(seeing_folder, 2)
        column = batch.non_tensor_batch[shared_prompts.PICTURES]
        column[4] = {**column[4], "pixel_values": column[4]["pixel_values"].flip(0)}
        distance, (many, few) = self.both_ways(seeing_folder, batch)
        assert distance < 1e-5 and few < many

    def test_in_responses_are_left_where_they_are(self, seeing_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shared_prompts.SharedPrompts, "on", None)
        batch = rows(seeing_folder, [1, 1], told=[1, 1])
        self.both_ways(seeing_folder, batch.select_idxs(torch.tensor([0, 0, 1, 1])))
