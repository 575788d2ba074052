"""Weights from one process to another, as verl sends them to the engine: by CUDA's shared memory on one GPU, or the machine's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

from tests.benchmarks.objective import verl_file
from unify_posttrain.rollout.late_reply import replying_late

from .kit import sizes

PACKAGES = ("verl", "zmq")
LIMIT = 240  # seconds for an answer


@dataclass(frozen=True)
class Weights:
    """Names and shapes of what is sent, in `bucket` MiB at a time; None: what is configured for Qwen2.5-7B."""

    device: str
    shapes: tuple[tuple[int, ...], ...]
    bucket: int | None
    buckets: int

    def tensors(self) -> dict[str, Tensor]:
        """The same in both processes; every other one of 16 bits."""
        generator = torch.Generator(self.device).manual_seed(0)
        made = {}
        for number, shape in enumerate(self.shapes):
            dtype = torch.bfloat16 if number % 2 else torch.float32
            made[f"layer.{number}"] = torch.randn(shape, generator=generator, device=self.device, dtype=dtype)
        return made


def transfer() -> ModuleType:
    """verl's module for both ends; by its file, since its package wants vllm."""
    from unify_posttrain import cpu_compat

    cpu_compat.install()
    return verl_file("workers/rollout/vllm_rollout/bucketed_weight_transfer.py", None)


def _receive(_rank: int, size: Weights, handle: str, report: str) -> None:
    """The other process: what arrives is what it would have made itself."""
    expected, buckets = size.tensors(), []

    def compare(weights: list[tuple[str, Tensor]]) -> None:
        for name, found in weights:
            assert found.device.type == size.device
            torch.testing.assert_close(found, expected[name], rtol=0, atol=0)
        buckets.append([name for name, _ in weights])

    device = torch.device(size.device, 0) if size.device == "cuda" else torch.device("cpu")
    receiver = transfer().BucketedWeightReceiver
    if size.device == "cpu":  # as our engine on CPU does; verl's own fails here, on weights that the next bucket has overwritten
        receiver = replying_late(receiver)
    receiver(handle, device, use_shm=size.device == "cpu").receive_weights(compare)
    assert sorted(name for names in buckets for name in names) == sorted(expected)
    Path(report).write_text(str(len(buckets)), encoding="utf-8")


SEVERAL = Weights("cpu", ((300, 300), (7,), (500, 400), (64, 64, 4), (512, 512)), bucket=1, buckets=3)
# Embedding and head of Qwen2.5-7B in float32, 2079 MiB each, and a matrix of a layer.
LARGE = Weights("cuda", ((152_064, 3584), (3584,), (152_064, 3584), (18_944, 3584)), bucket=None, buckets=3)


@pytest.mark.needs(*PACKAGES)
@sizes(SEVERAL, LARGE, gib=16, on_cpu="vllm")
def test_weights_arrive_in_another_process(size: Weights, tmp_path: Path, measured: Callable[[str], None]) -> None:
    import zmq

    zmq.Context.instance().setsockopt(zmq.RCVTIMEO, LIMIT * 1000)  # of sockets made from now on: the other process may have failed
    bucket = size.bucket or configured_bucket()
    handle, report = f"ipc://{tmp_path}/channel", tmp_path / "buckets"
    context = mp.spawn(_receive, args=(size, handle, str(report)), nprocs=1, join=False)
    sender = transfer().BucketedWeightSender(handle, bucket, use_shm=size.device == "cpu")
    tensors = size.tensors()
    try:
        asyncio.run(sender.async_send_weights(iter(tensors.items())))
    finally:
        zmq.Context.instance().setsockopt(zmq.RCVTIMEO, -1)
        while not context.join():  # raises what failed in the other process
            pass
    sent = sum(each.nbytes for each in tensors.values())
    measured(f"{sent / 1e9:.3g} GB of weights in {report.read_text()} buckets of {bucket} MiB")
    assert int(report.read_text()) == size.buckets


@pytest.mark.vllm
@pytest.mark.needs(*PACKAGES)
def test_a_tensor_that_no_bucket_holds_is_refused_by_verl(tmp_path: Path) -> None:
    """What the start-up checks say before: with verl's own default every model of 7B ended here."""
    config = composed()
    largest = config.shape.vocabulary * config.shape.hidden * 4 / 2**20
    assert 2048 < largest <= configured_bucket()
    sender = transfer().BucketedWeightSender(f"ipc://{tmp_path}/channel", 1, use_shm=True)
    nobody = SimpleNamespace(send_pyobj=lambda _: None, recv=lambda: b"", close=lambda: None)
    sender._init_socket = lambda: setattr(sender, "socket", nobody)
    sender._init_buffer = lambda: setattr(sender, "buffer", torch.empty(0))
    with pytest.raises(AssertionError, match="too large to fit in the bucket"):
        asyncio.run(sender.async_send_weights(iter([("embedding", torch.empty(1024, 257))])))


def composed():
    from unify_posttrain.config import compose_config

    return compose_config(["algorithm=hpt", "model=qwen2_5_7b", "task=openr1_math", "hardware=node_8gpu"])


def configured_bucket() -> int:
    return composed().actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
