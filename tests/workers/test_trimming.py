"""Micro-batches without columns of padding: the same log-probs, entropies and gradients, for fewer columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from verl import DataProto

from unify_posttrain.workers.trimming import kept_columns, narrow_cuts, on_trimmed

from .actor_kit import PROMPT, RESPONSE, gradient_distance, make_actor, make_batch, make_model

OFF, ON = "fusion.trim_padding=false", "fusion.trim_padding=true"


def short(prompt: int, response: int) -> DataProto:
    """Rows of which none is longer than so many tokens."""
    batch = make_batch(rows=10, demonstrations=4, hints=3, padding=1)
    attention = batch.batch["attention_mask"]
    attention[:, : PROMPT - prompt] = 0
    attention[:, PROMPT + response :] = 0
    batch.batch["input_ids"] *= attention
    batch.batch["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
    for name in ("response_mask", "prefix_mask", "responses"):
        batch.batch[name][:, response:] = 0
    batch.meta_info["mini_batches"] = 2
    return batch


class Watched(torch.nn.Module):
    """Remembers how wide its batches were."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.widths = make_model(), []

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self.widths.append(input_ids.shape[1])
        return self.model(input_ids=input_ids, **options)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.get_output_embeddings()


@pytest.mark.parametrize("chunk", ["null", "4"])
@pytest.mark.parametrize("name", ["hpt", "uft", "srft", "grpo"])
def test_gradients_and_metrics_stay(name: str, chunk: str) -> None:
    found = {}
    for flag in (OFF, ON):
        module = Watched()
        actor = make_actor(f"algorithm={name}", f"fusion.logits_chunk={chunk}", flag, module=module)
        found[flag] = actor.gradients, actor.update_policy(short(4, 7)), module.widths
    (whole, metrics, wide), (trimmed, others, narrow) = found[OFF], found[ON]
    assert wide == [PROMPT + RESPONSE] * 2 and narrow == [4 + 7] * 2
    for one, other in zip(whole, trimmed, strict=True):
        assert gradient_distance(one, other) < 1e-6 and sum(each.abs().sum() for each in one.values()) > 0
    assert others == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_log_probs_and_entropies_stay() -> None:
    batch = short(4, 7)
    batch.meta_info = {"micro_batch_size": 3, "use_dynamic_bsz": False, "temperature": 0.7}
    attended = batch.batch["attention_mask"][:, PROMPT:].bool()
    whole, trimmed = (
        make_actor("algorithm=hpt", flag, module=Watched()).compute_log_prob(batch, calculate_entropy=True) for flag in (OFF, ON)
    )
    for name in ("log_probs", "entropys"):
        assert trimmed[name].shape == (10, RESPONSE) and bool((trimmed[name][:, 7:] == 0).all())
        torch.testing.assert_close(trimmed[name][attended], whole[name][attended], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("share", ["true", "false"])
def test_rows_of_a_length_come_into_one_micro_batch(share: str) -> None:
    """So that few of them are filled up to the length of others; prompts stay together where they are shared."""
    batch = make_batch(rows=10, demonstrations=0)
    batch.meta_info["mini_batches"] = 1
    batch.batch["old_log_probs"][:] = -3.0
    lengths = [2, 9, 2, 9, 2, 9, 2, 9, 2, 9]
    attention, masks = batch.batch["attention_mask"], batch.batch["response_mask"]
    for row, length in enumerate(lengths):
        attention[row, PROMPT:] = masks[row] = (torch.arange(RESPONSE) < length).long()
    for name in ("input_ids", "attention_mask"):  # rows 0, 4, 8 and 1, 5, 9 share a prompt
        batch.batch[name][:, :PROMPT] = batch.batch[name][[0, 1, 2, 3, 0, 1, 2, 3, 0, 1], :PROMPT]
    batch.batch["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
    settings = {"ppo_micro_batch_size_per_gpu": 5}
    flags = "algorithm=grpo", "actor_rollout_ref.actor.ppo_epochs=1", f"fusion.share_prompts={share}"
    whole, sorted_ = (make_actor(*flags, flag, module=make_model(), settings=settings) for flag in (OFF, ON))
    widths: list[int] = []
    forward = sorted_._forward_columns

    def watched(columns: Any, *rest: Any) -> Any:
        widths.append(columns["responses"].shape[-1])
        return forward(columns, *rest)

    sorted_._forward_columns = watched
    expected, found = whole.update_policy(batch), sorted_.update_policy(batch)
    assert widths == [2, 9]
    assert gradient_distance(whole.gradients[0], sorted_.gradients[0]) < 1e-6
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_packed_rows_are_left_alone() -> None:
    packed = make_actor("algorithm=hpt", ON, settings={"use_remove_padding": True})
    assert not packed.trim_padding and make_actor("algorithm=hpt", ON).trim_padding


def test_switched_off_everything_is_verls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unify_posttrain.workers.forward.on_trimmed", None)
    make_actor("algorithm=hpt", OFF).update_policy(short(4, 7))


@pytest.mark.parametrize(
    ("attended", "kept"),
    [
        ([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0]], (1, 2)),
        ([[1, 1, 1, 1, 1, 1]], (0, 3)),
        ([[0, 0, 1, 0, 0, 0]], (2, 1)),  # no response: a column is kept, so that tensors have one
        ([[0, 0, 0, 1, 0, 0]], (2, 1)),  # no prompt: the column before the response predicts its first token
        ([[0, 0, 0, 0, 0, 0]], (2, 1)),
        ([[0, 0, 1, 1, 0, 1]], (2, 3)),  # a gap is no padding
    ],
)
def test_kept_columns(attended: list[list[int]], kept: tuple[int, int]) -> None:
    """Prompts and responses of three columns."""
    assert kept_columns(torch.tensor(attended), 3) == kept


def test_positions_of_several_kinds_are_cut_in_their_last_dimension() -> None:
    """Those of image models are (B, 4, L)."""
    seen = {}

    def forward(columns: Any) -> dict[str, torch.Tensor]:
        seen.update(columns)
        return {"log_probs": columns["responses"].float()}

    mask = torch.tensor([[0, 1, 1, 0]])
    micro_batch = {
        "input_ids": torch.arange(4).unsqueeze(0),
        "attention_mask": mask,
        "position_ids": torch.arange(16).view(1, 4, 4),
        "responses": torch.tensor([[7, 8]]),
        "pad_token_id": 0,
    }
    assert on_trimmed(forward, micro_batch)["log_probs"].tolist() == [[7.0, 0.0]]
    assert seen["position_ids"].shape == (1, 4, 2) and seen["input_ids"].tolist() == [[1, 2]] and seen["pad_token_id"] == 0


def columns_of(lengths: Sequence[int], ends: Sequence[int]) -> int:
    """Columns that are computed, rows cut at `ends`."""
    return sum((end - start) * max(lengths[start:end]) for start, end in itertools.pairwise([0, *ends]))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=11).map(sorted), st.integers(1, 5))
def test_no_cut_computes_fewer_columns(lengths: list[int], most: int) -> None:
    rows, parts = len(lengths), -(-len(lengths) // most)
    ends = narrow_cuts(lengths, most)
    assert len(ends) == parts and ends[-1] == rows
    assert all(0 < end - start <= most for start, end in itertools.pairwise([0, *ends]))
    others = ([*cuts, rows] for cuts in itertools.combinations(range(1, rows), parts - 1))
    allowed = [each for each in others if all(end - start <= most for start, end in itertools.pairwise([0, *each]))]
    assert columns_of(lengths, ends) == min(columns_of(lengths, each) for each in allowed)


@pytest.mark.parametrize(
    ("lengths", "ends"),
    [
        ([7] * 137, [64, 128, 137]),  # nothing to save: as verl cuts
        ([7] * 128, [64, 128]),
        ([39] * 120 + [59] * 17, [64, 120, 137]),  # demonstrations by themselves
        ([5], [1]),
        ([], []),
    ],
)
def test_where_rows_are_cut(lengths: list[int], ends: list[int]) -> None:
    assert narrow_cuts(lengths, 64) == ends


def test_long_rows_take_a_micro_batch_for_themselves() -> None:
    """Eleven short rows and two long ones, whatever their order: of three micro-batches one is wide. Gradients stay."""
    found = []
    for flag in (OFF, ON):
        batch = make_batch(rows=13, demonstrations=0, hints=0, padding=0)
        long = torch.zeros(13, dtype=torch.bool)
        long[[2, 9]] = True
        ends = torch.where(long, RESPONSE, 3).unsqueeze(-1)
        batch.batch["response_mask"] = (torch.arange(RESPONSE) < ends).long()
        batch.batch["attention_mask"] = torch.cat([torch.ones(13, PROMPT, dtype=torch.long), batch.batch["response_mask"]], dim=1)
        batch.batch["position_ids"] = (batch.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        batch.meta_info["mini_batches"] = 1
        module = Watched()
        actor = make_actor(
            "algorithm=grpo", flag, "fusion.share_prompts=false", module=module, settings={"ppo_micro_batch_size_per_gpu": 6}
        )
        actor.update_policy(batch)
        found.append((actor.gradients[0], module.widths))
    (whole, wide), (trimmed, narrow) = found
    assert len(wide) == len(narrow) == 3 and sorted(narrow) == [PROMPT + 3, PROMPT + 3, PROMPT + RESPONSE]
    assert gradient_distance(whole, trimmed) < 1e-6
