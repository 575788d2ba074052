"""The ranks' meeting point is bound to loopback: real process groups of one and two ranks, looked at from outside."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from tests.ranks import context
from unify_posttrain import cpu_compat
from unify_posttrain.workers import loopback

SECONDS = 300


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rank(number: int, size: int, port: int, address: str, answers: Any) -> None:
    """What a worker of verl does when it starts, and a collective operation."""
    os.environ.update(RANK=str(number), WORLD_SIZE=str(size), MASTER_ADDR=address, MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    loopback.keep_on_loopback()
    cpu_compat.join_process_group()
    value = torch.tensor([number + 1.0])
    dist.all_reduce(value)
    listening = {each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN}
    dist.barrier()
    answers.put((value.item(), os.environ.get(loopback.INIT_METHOD), sorted(listening)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_ranks_meet_at_loopback(size: int) -> None:
    processes_of = context()
    answers: Any = processes_of.Queue()
    port = free_port()
    processes = [processes_of.Process(target=rank, args=(number, size, port, "127.0.0.1", answers)) for number in range(size)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=SECONDS) for _ in processes]
    for process in processes:
        process.join(SECONDS)
    assert {total for total, *_ in found} == {sum(range(1, size + 1))}
    assert {method for _, method, _ in found} == {"loopback://"}
    listening = {address.removeprefix("::ffff:") for *_, addresses in found for address in addresses}
    assert listening == {"127.0.0.1"}, "rank 0's store is there, and nothing else is anywhere else"


@pytest.mark.parametrize(("address", "method"), [("127.0.0.1", "loopback://"), ("10.0.0.7", None), (None, None)])
def test_only_ranks_of_one_node_meet_there(address: str | None, method: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(loopback.INIT_METHOD, "x")
    monkeypatch.delenv(loopback.INIT_METHOD)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    if address is not None:
        monkeypatch.setenv("MASTER_ADDR", address)
    loopback.keep_on_loopback()
    assert os.environ.get(loopback.INIT_METHOD) == method


def test_the_users_way_to_meet_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv(loopback.INIT_METHOD, "file:///somewhere")
    loopback.keep_on_loopback()
    assert os.environ[loopback.INIT_METHOD] == "file:///somewhere"
