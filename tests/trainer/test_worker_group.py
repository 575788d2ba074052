"""Where ranks meet: found in this process if the cluster is this machine, by a process of the right machine otherwise."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
from verl.single_controller.ray import RayWorkerGroup

from unify_posttrain.trainer import worker_group
from unify_posttrain.trainer.worker_group import FusionWorkerGroup


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> FusionWorkerGroup:
    monkeypatch.setattr(worker_group, "here", lambda: "me")
    monkeypatch.setattr(worker_group.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    made = object.__new__(FusionWorkerGroup)
    made._master_addr = made._master_port = None
    return made


def test_on_one_machine_no_process_is_started(group: FusionWorkerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"NodeID": "gone", "Alive": False}
    monkeypatch.setattr(worker_group.ray, "nodes", lambda: [dead, {"NodeID": "me", "Alive": True}])
    group._get_master_addr_port(None, bundle_index=0, master_port_range=None)
    assert group._master_addr == "127.0.0.1"
    with socket.socket() as free:
        free.bind(("", int(group._master_port)))
    before = group._master_port
    group._get_master_addr_port(None)
    assert group._master_port == before, "the ranks of all machines meet at one place"


def test_a_range_of_ports_is_kept_to(group: FusionWorkerGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group.ray, "nodes", lambda: [{"NodeID": "me", "Alive": True}])
    with socket.socket() as taken:
        taken.bind(("", 0))
        first = taken.getsockname()[1]
        group._get_master_addr_port(None, master_port_range=[first, first + 50])
    assert first < int(group._master_port) < first + 50


@pytest.mark.parametrize("nodes", [["me", "other"], ["other"]])
def test_elsewhere_verl_looks(group: FusionWorkerGroup, nodes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def options(**given: Any) -> SimpleNamespace:
        asked.append(given["scheduling_strategy"].placement_group)
        return SimpleNamespace(remote=lambda **_: ("10.0.0.7", "4242"))

    from verl.single_controller.ray import base

    monkeypatch.setattr(worker_group.ray, "nodes", lambda: [{"NodeID": name, "Alive": True} for name in nodes])
    monkeypatch.setattr(base, "get_master_addr_port", SimpleNamespace(options=options))
    monkeypatch.setattr(base.ray, "get", lambda found: found)
    group._get_master_addr_port("their group", bundle_index=0)
    assert (group._master_addr, group._master_port) == ("10.0.0.7", "4242") and asked == ["their group"]
    assert issubclass(FusionWorkerGroup, RayWorkerGroup)
