"""What a worker's process group is made of: real gloo groups of one and two ranks."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from tests.ranks import run_ranks
from unify_posttrain.runs.listeners import GLOO_INTERFACE
from unify_posttrain.workers import process_group

ROUNDS, AT_ONCE = 100, 16


def join(rank: int, port: int, ranks: int) -> None:
    """As a worker of verl does when it starts."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    process_group.join()


def gloo(group: dist.ProcessGroup) -> dist.ProcessGroupGloo:
    found = group._get_backend(torch.device("cpu"))
    assert isinstance(found, dist.ProcessGroupGloo)
    return found


def many_at_once(rank: int, port: int, ranks: int) -> None:
    """Operations whose names lie in the heap, many of them under way."""
    join(rank, port, ranks)
    group = dist.group.WORLD
    values = [torch.full((8,), float(rank * AT_ONCE + number)) for number in range(AT_ONCE)]
    gathered = [torch.empty(8 * ranks) for _ in values]
    for _ in range(ROUNDS):
        works = [group.allgather_into_tensor_coalesced([out], [value]) for out, value in zip(gathered, values, strict=True)]
        for work in works:
            work.wait()
    for number, out in enumerate(gathered):
        assert out[::8].tolist() == [each * AT_ONCE + number for each in range(ranks)]


def groups(rank: int, port: int, ranks: int) -> None:
    """Every group has one thread, also those that others make, and keeps what else it was given."""
    os.environ[GLOO_INTERFACE] = "lo"
    join(rank, port, ranks)
    mine = gloo(dist.group.WORLD)
    other = gloo(dist.new_group(timeout=timedelta(seconds=77)))
    assert (mine.options._threads, other.options._threads) == (1, 1)
    assert (mine.options._timeout, other.options._timeout) == (dist.default_pg_timeout, timedelta(seconds=77))
    assert len(other.options._devices) == 1
    options = dist.ProcessGroupGloo._Options()
    options._devices, options._threads = [dist.ProcessGroupGloo.create_default_device()], 2
    given = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, options)
    assert given.options._threads == 1


@pytest.fixture
def port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_operations_that_end_together_leave_the_heap_whole(port: int) -> None:
    run_ranks(many_at_once, port, 2, ranks=2)


def test_every_group_has_one_thread(port: int) -> None:
    run_ranks(groups, port, 1, ranks=1)
