"""Padded tensors without memory for their padding: the same numbers as everywhere else, in less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unify_posttrain.experience import ragged
from unify_posttrain.experience.ragged import IDS, MASK, Source, Spans, gather, is_part, parts_of, per_row, token_counts, zeros

PROMPT, WIDTH, PAD = 3, 5, 9
LENGTHS = [(1, 2), (3, 5), (2, 0), (3, 1)]  # tokens of prompt and response; the third response is empty


def rows(ids: torch.dtype = IDS, mask: torch.dtype = MASK, shared: bool = True, seed: int = 0) -> dict[str, Tensor]:
    """A batch as the driver holds it; `shared`: prompts and responses in the memory of the ids."""
    generator = torch.Generator().manual_seed(seed)
    attention = torch.zeros(len(LENGTHS), PROMPT + WIDTH, dtype=mask)
    for row, (prompt, response) in enumerate(LENGTHS):
        attention[row, PROMPT - prompt : PROMPT + response] = 1
    tokens = torch.randint(10, 99, attention.shape, generator=generator)
    input_ids = torch.where(attention.bool(), tokens, PAD).to(ids)
    parts = parts_of(input_ids, WIDTH)
    response_mask = attention[:, PROMPT:].clone()
    scores = torch.zeros(response_mask.shape)
    scores[torch.arange(len(LENGTHS)), response_mask.sum(dim=-1) - 1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    return {
        "input_ids": input_ids,
        **(parts if shared else {name: part.clone() for name, part in parts.items()}),
        "attention_mask": attention,
        "response_mask": response_mask,
        "prefix_mask": response_mask.bool() & (torch.arange(WIDTH) < 2),
        "rollout_log_probs": torch.randn(response_mask.shape, generator=generator) * response_mask,
        "old_log_probs": (torch.randn(response_mask.shape, generator=generator) * response_mask).bfloat16(),
        "rm_scores": scores,
        "rl_weight": torch.randn(len(LENGTHS), generator=generator),
        "uniforms": torch.rand(response_mask.shape, generator=generator),  # numbers in the padding, too
    }


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("dtype", [torch.float32, MASK, torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(0, 4), (3, 7), (2, 2**20)])
def test_zeros_are_zeros_that_may_be_written(shape: tuple[int, int], dtype: torch.dtype) -> None:
    made = zeros(shape, dtype)
    assert made.dtype == dtype and torch.equal(made, torch.zeros(shape, dtype=dtype))
    if made.numel():
        made[-1, -1] = 1
        assert int(made.sum()) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted as Linux does")
def test_only_what_is_written_takes_memory() -> None:
    before = resident()
    made = zeros((256, 2**18), torch.float32)  # 268 MB
    made[:, :100] = 1
    assert float(made.sum()) == 25600
    assert resident() - before < 2**25
    plain = torch.ones((256, 2**18))
    assert resident() - before > 2**27, "the measure sees memory"
    del plain


@pytest.mark.parametrize("mask", [MASK, torch.int64])
def test_spans_are_where_tokens_stand(mask: torch.dtype) -> None:
    spans = Spans.of(rows(mask=mask))
    assert spans.first.tolist() == [2, 0, 0, 0] and spans.end.tolist() == [5, 8, 8, 4] and spans.prompt == PROMPT
    assert spans.within("rm_scores") == ([0, 0, 0, 0], [2, 5, 5, 1]), "the score of an empty response stands in its last column"
    assert spans.within("attention_mask") == (spans.first.tolist(), spans.end.tolist())
    assert spans[np.array([3, 1])].end.tolist() == [4, 8]


def test_a_stretch_with_holes_is_one_span() -> None:
    tensors = rows()
    tensors["attention_mask"][1, 4] = 0
    assert Spans.of(tensors).end[1] == 8


def test_what_has_no_tokens_has_no_spans() -> None:
    assert Spans.of({"responses": torch.zeros(2, 3)}) is None and Spans.of({"attention_mask": torch.ones(2, 3)}) is None


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_gathered_rows_are_the_picked_ones_to_the_last_bit(shared: bool, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(ragged, "LARGE", 1)
        monkeypatch.setattr(ragged, "BLOCK", 2)
    tensors, picked = rows(shared=shared), np.array([3, 0, 2, 1, 3])
    made = gather([Source(tensors, picked, np.arange(5), Spans.of(tensors))], 5)
    assert list(made) == list(tensors)
    for name, value in tensors.items():
        assert made[name].dtype == value.dtype and torch.equal(made[name], value[torch.from_numpy(picked)]), name
    assert [is_part(made, name) for name in ("prompts", "responses")] == [shared, shared]


def test_a_tensor_under_two_names_stays_one() -> None:
    tensors = rows()
    tensors["token_level_scores"] = tensors["rm_scores"]
    made = gather([Source(tensors, np.array([2, 0]), np.arange(2), Spans.of(tensors))], 2)
    assert made["token_level_scores"] is made["rm_scores"] and made["response_mask"] is not made["prefix_mask"]


def test_several_sources_and_what_one_of_them_lacks() -> None:
    first, second = rows(seed=1), rows(torch.int64, torch.int64, shared=False, seed=2)
    del second["rollout_log_probs"], second["rl_weight"]
    sources = [
        Source(first, np.array([1, 2]), np.array([3, 0]), Spans.of(first)),
        Source(second, np.array([0, 3]), np.array([1, 2]), Spans.of(second)),
    ]
    made = gather(sources, 4)
    for name, value in first.items():
        other = second[name].to(value.dtype) if name in second else torch.zeros_like(value)
        assert torch.equal(made[name], torch.stack([value[2], other[0], other[3], value[1]])), name
    assert is_part(made, "responses"), "the first source decides"


def test_rows_of_another_width_do_not_join() -> None:
    first, second = rows(), {**rows(), "rm_scores": torch.zeros(4, WIDTH + 1)}
    sources = [Source(each, np.array([0]), np.array([place]), Spans.of(each)) for place, each in enumerate((first, second))]
    with pytest.raises(ValueError, match=r"'rm_scores': rows of \(6,\) cannot join \(5,\)"):
        gather(sources, 2)


@pytest.mark.parametrize("mask", [MASK, torch.int64, torch.float32])
def test_a_number_per_row(mask: torch.dtype) -> None:
    tensors = rows()["response_mask"].to(mask)
    tensors[1, 2] = 0  # a token of an environment within the response
    values = torch.tensor([-1.5, 2.0, 3.0, 1e-30])
    assert torch.equal(per_row(values, tensors), values.unsqueeze(-1) * tensors)


@pytest.mark.parametrize("mask", [MASK, torch.bool, torch.int64, torch.float32])
def test_tokens_are_counted(mask: torch.dtype) -> None:
    tensor = rows()["attention_mask"].to(mask)
    for each in (tensor, tensor[:, PROMPT:]):  # rows of a part are not one behind the other
        assert token_counts(each).tolist() == each.sum(dim=-1).tolist()


def test_masks_count_as_whole_numbers_do() -> None:
    """What verl makes of masks: the complement, differences, sums beyond what the type holds."""
    mask = torch.ones(1, 1000, dtype=MASK)
    assert int(mask.sum()) == 1000 and int(mask.cumsum(dim=-1)[0, -1]) == 1000
    assert int((1 - mask).sum()) == 0 and int((-mask).sum()) == -1000 and int((0 * mask - mask)[0, 0]) == -1
