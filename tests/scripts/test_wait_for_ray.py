"""exp_scripts/slurm/wait_for_ray.py: a cluster is complete when every node is alive and has its GPUs."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest


def node(name: str, gpus: float, alive: bool = True) -> dict:
    return {"NodeManagerHostname": name, "Alive": alive, "Resources": {"CPU": 8.0, **({"GPU": gpus} if gpus else {})}}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True, init=None, nodes=list))
    monkeypatch.delitem(sys.modules, "exp_scripts.slurm.wait_for_ray", raising=False)
    module = importlib.import_module("exp_scripts.slurm.wait_for_ray")
    monkeypatch.setattr(module, "PAUSE", 0.001)
    yield module
    del sys.modules["exp_scripts.slurm.wait_for_ray"]


def test_who_counts(script: ModuleType) -> None:
    nodes = [node("a.cluster.org", 8), node("b", 4), node("c", 8, alive=False), node("d", 0), node("e", 9)]
    assert script.ready_nodes(nodes, 8) == ["a", "e"]
    assert script.ready_nodes(nodes, 4) == ["a", "b", "e"]


def test_it_looks_until_the_last_one_is_there(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([[], [node("a", 8)], [node("a", 8), node("b", 8)]])
    monkeypatch.setattr(script.ray, "nodes", lambda: next(looks))
    assert script.wait(["a", "b"], gpus=8, timeout=60) is None
    assert next(looks, None) is None


def test_slurm_may_know_the_nodes_by_other_names(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.ray, "nodes", lambda: [node("ip-10-0-0-1", 8), node("ip-10-0-0-2", 8)])
    assert script.wait(["gpu-1", "gpu-2"], gpus=8, timeout=0) is None


def test_the_missing_are_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.ray, "nodes", lambda: [node("a", 8), node("b", 4)])
    found = script.wait(["a.x.org", "b.x.org", "c.x.org"], gpus=8, timeout=0)
    assert found.startswith("1 of 3 node(s) with 8 GPUs after 0 s; not up: b, c; look")


def test_a_head_that_does_not_answer_is_said_with_rays_reason(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("no GCS at 10.0.0.1:20000\nand much more")

    monkeypatch.setattr(script.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(script.ray, "init", refuse)
    with pytest.raises(SystemExit, match=r"not up: a \(ConnectionError: no GCS at 10\.0\.0\.1:20000\); look"):
        script.main(["--gpus", "8", "--timeout", "0.01", "a"])
