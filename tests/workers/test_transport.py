"""What travels between driver and workers arrives equal, and smaller."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto
from verl.utils.model import compute_position_id_with_mask

from unify_posttrain.experience.ragged import IDS, MASK, parts_of
from unify_posttrain.workers.transport import Travelling, pack, reply, travelling, unpack

DTYPES = (torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.float16, torch.float64)


def same(mine: Tensor, other: Tensor) -> bool:
    """Bits, so that NaN equals NaN and 0 differs from -0."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (mine, other)]
    return mine.dtype == other.dtype and mine.shape == other.shape and torch.equal(*flat)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1, 2**20, 2**31, 2**40]),
)
def test_tensors_arrive_to_the_last_bit(dtype: torch.dtype, shape: list[int], seed: int, scale: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)
    arrived = unpack(pack(tensor))
    assert same(arrived, tensor)
    arrived.add_(1) if dtype != torch.bool else arrived.logical_not_()  # memory of its own, which may be written


@pytest.mark.parametrize("value", [2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**63 - 1])
def test_whole_numbers_beyond_32_bits_stay_what_they_are(value: int) -> None:
    tensor = torch.tensor([[0, value]])
    packed = pack(tensor)
    assert same(unpack(packed), tensor)
    assert (packed.sent == torch.int32) == (-(2**31) <= value < 2**31)


def test_numbers_that_are_none_and_strides() -> None:
    special = torch.tensor([float("nan"), float("inf"), -0.0, 0.0, 1e-45])
    assert same(unpack(pack(special)), special)
    transposed = torch.arange(12).reshape(3, 4).T
    assert same(unpack(pack(transposed)), transposed.contiguous())


def batch(rows: int = 6, width: int = 40) -> DataProto:
    lengths = torch.arange(1, rows + 1)
    mask = (torch.arange(width) < lengths.unsqueeze(-1)).long()
    tensors = {
        "input_ids": torch.randint(0, 151936, (rows, width)) * mask,
        "attention_mask": mask,
        "position_ids": mask.cumsum(-1).unsqueeze(1).expand(-1, 4, -1),  # four rows, as a model that sees has them
        "old_log_probs": torch.randn(rows, width) * mask,
        "prefix_mask": mask.bool(),
    }
    columns = {"uid": np.array([f"{row}" for row in range(rows)], dtype=object)}
    return DataProto.from_dict(tensors=tensors, non_tensors=columns, meta_info={"temperature": 0.7, "global_steps": 3})


def test_a_batch_and_every_ranks_share_arrive() -> None:
    sent = batch()
    arrived = pickle.loads(pickle.dumps(travelling(sent)))
    assert type(arrived) is DataProto and arrived.meta_info == sent.meta_info and len(arrived) == 6
    assert list(arrived.non_tensor_batch["uid"]) == list(sent.non_tensor_batch["uid"])
    shares = travelling(sent).chunk(3)
    assert all(isinstance(share, Travelling) for share in shares), "verl makes the shares of the class of the batch"
    for together in (arrived, DataProto.concat([pickle.loads(pickle.dumps(share)) for share in shares])):
        assert sorted(together.batch.keys()) == sorted(sent.batch.keys())
        assert all(same(together.batch[name], sent.batch[name].contiguous()) for name in sorted(sent.batch.keys()))


def test_the_driver_keeps_its_own_tensors() -> None:
    sent = batch()
    assert travelling(sent).batch is sent.batch and travelling(sent).meta_info is sent.meta_info


def test_metrics_without_tensors_travel_too() -> None:
    arrived = pickle.loads(pickle.dumps(travelling(DataProto(meta_info={"metrics": {"loss": 1.0}}))))
    assert arrived.batch is None and arrived.meta_info == {"metrics": {"loss": 1.0}}


def test_nested_tensors_are_refused_by_name() -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match="nested tensors have no shape to arrive in"):
        pack(nested)


def driver_batch() -> DataProto:
    """As the driver holds it: narrow, prompts and responses in the memory of the ids, padded with token 9, without positions."""
    width, prompt = 12, 4
    lengths, prompts = torch.tensor([5, 8, 0, 3, 1, 8]), torch.tensor([1, 4, 2, 3, 4, 4])
    place = torch.arange(width)
    mask = ((place >= prompt - prompts.unsqueeze(-1)) & (place < prompt + lengths.unsqueeze(-1))).to(MASK)
    input_ids = torch.where(mask.bool(), torch.randint(10, 151936, mask.shape), 9).to(IDS)
    trained = mask[:, prompt:].clone()
    trained[1, 3] = 0
    tensors = {
        "input_ids": input_ids, **parts_of(input_ids, width - prompt), "attention_mask": mask, "response_mask": trained,
        "prefix_mask": trained.bool(), "uniforms": torch.rand(trained.shape),
        "old_log_probs": torch.where(trained.bool(), torch.randn(trained.shape), 0.0),
        "rm_scores": torch.zeros(trained.shape).index_put((torch.arange(6), lengths - 1), torch.arange(1.0, 7.0)),
        "rl_weight": torch.arange(6.0),
    }  # fmt: skip
    columns = {"uid": np.array([f"{row}" for row in range(6)], dtype=object)}
    return DataProto.from_dict(tensors=tensors, non_tensors=columns, meta_info={"temperature": 0.7})


def verls(data: DataProto) -> dict[str, Tensor]:
    """The tensors of a batch as verl's own rollouts would have brought them."""
    wide = {name: value.long() if value.dtype in (IDS, MASK) else value for name, value in data.batch.items()}
    return wide | {"position_ids": compute_position_id_with_mask(wide["attention_mask"])}


def test_workers_get_what_verl_sends() -> None:
    sent = driver_batch()
    for arrived in (
        pickle.loads(pickle.dumps(travelling(sent))),
        DataProto.concat([pickle.loads(pickle.dumps(share)) for share in travelling(sent).chunk(3)]),
    ):
        assert type(arrived) is DataProto and arrived.meta_info == sent.meta_info
        assert set(arrived.batch.keys()) == set(verls(sent))
        for name, value in verls(sent).items():
            assert same(arrived.batch[name], value), name
        assert all(value.is_contiguous() for value in arrived.batch.values())
        arrived.batch["responses"][:] = 0
        assert int(arrived.batch["input_ids"][0, 4]) > 9, "memory of its own"


def test_rows_without_padding_and_rows_of_padding_alone() -> None:
    full = driver_batch().select_idxs(torch.tensor([1, 5]))
    assert same(pickle.loads(pickle.dumps(travelling(full))).batch["input_ids"], full.batch["input_ids"].long())
    nothing = driver_batch()
    for name in ("attention_mask", "response_mask", "prefix_mask", "old_log_probs"):
        nothing.batch[name].zero_()
    arrived = pickle.loads(pickle.dumps(travelling(nothing)))
    assert all(same(arrived.batch[name], value) for name, value in verls(nothing).items())


@pytest.mark.parametrize("picked", [np.array([4, 0, 0, 5]), torch.tensor([2, 3]), [1], torch.arange(6) % 2 == 0])
def test_selected_rows_are_those_of_verl(picked: Any) -> None:
    mine, theirs = travelling(driver_batch_of(3)).select_idxs(picked), driver_batch_of(3).select_idxs(picked)
    assert isinstance(mine, Travelling) and len(mine) == len(theirs)
    assert mine.non_tensor_batch["uid"].tolist() == theirs.non_tensor_batch["uid"].tolist()
    assert all(same(mine.batch[name], value) for name, value in theirs.batch.items())
    assert pickle.loads(pickle.dumps(mine)).batch["responses"].dtype == torch.int64


def driver_batch_of(seed: int) -> DataProto:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return driver_batch()


def test_reordered_and_joined_rows_are_those_of_verl() -> None:
    mine, theirs = travelling(driver_batch_of(1)), driver_batch_of(1)
    for each in (mine, theirs):
        each.reorder(torch.tensor([5, 3, 1, 0, 2, 4]))
    joined, expected = Travelling.concat([mine, travelling(driver_batch_of(2))]), DataProto.concat([theirs, driver_batch_of(2)])
    assert isinstance(joined, Travelling) and joined.meta_info == expected.meta_info
    assert joined.non_tensor_batch["uid"].tolist() == expected.non_tensor_batch["uid"].tolist()
    assert all(same(joined.batch[name], value) for name, value in expected.batch.items())


def test_replies_arrive_without_what_stands_in_padding() -> None:
    asked = driver_batch()
    responses = asked.batch["attention_mask"][:, 4:].bool()
    responses[2] = True  # an empty one is sent as a whole: there its score would stand
    replies, expected = [], torch.randn(responses.shape)
    for share, values in zip(travelling(asked).chunk(2), expected.chunk(2), strict=True):
        tensors = {"old_log_probs": values, "entropys": values.bfloat16()}
        made = DataProto.from_dict(tensors=tensors, meta_info={"temperature": 0.7})
        replies.append(pickle.loads(pickle.dumps(reply(made, pickle.loads(pickle.dumps(share))))))
    joined = type(replies[0]).concat(replies)
    assert same(joined.batch["old_log_probs"], torch.where(responses, expected, 0.0))
    assert same(joined.batch["entropys"], torch.where(responses, expected.bfloat16(), 0.0))
    assert joined.meta_info == {"temperature": 0.7}
    asked.batch.pop("old_log_probs")
    whole = asked.union(joined)
    assert pickle.loads(pickle.dumps(travelling(whole))).batch["old_log_probs"].dtype == torch.float32


def test_padding_and_wide_integers_cost_next_to_nothing() -> None:
    """256 rows of 4096, of which 256 are tokens: 18 bits each in 32, the rest is padding."""
    rows, width, length = 256, 4096, 256
    mask = (torch.arange(width) < length).long().expand(rows, -1)
    ids = torch.randint(0, 151936, (rows, width)) * mask
    whole = DataProto(batch=TensorDict({"input_ids": ids, "attention_mask": mask.contiguous()}, batch_size=[rows]))
    plain, packed = (len(pickle.dumps(data)) for data in (whole, travelling(whole)))
    assert plain > 2 * rows * width * 8
    assert packed < 1.1 * rows * length * 4 + 200_000
