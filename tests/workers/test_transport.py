"""What travels between driver and workers arrives equal, and smaller."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto

from unify_posttrain.workers.transport import Travelling, pack, travelling, unpack

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


def test_padding_and_wide_integers_cost_next_to_nothing() -> None:
    """256 rows of 4096, of which 256 are tokens: 18 bits each in 32, the rest is padding."""
    rows, width, length = 256, 4096, 256
    mask = (torch.arange(width) < length).long().expand(rows, -1)
    ids = torch.randint(0, 151936, (rows, width)) * mask
    whole = DataProto(batch=TensorDict({"input_ids": ids, "attention_mask": mask.contiguous()}, batch_size=[rows]))
    plain, packed = (len(pickle.dumps(data)) for data in (whole, travelling(whole)))
    assert plain > 2 * rows * width * 8
    assert packed < 1.1 * rows * length * 4 + 200_000
