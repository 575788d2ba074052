"""Where a run on one node listens, seen from outside: the sockets of all its processes while it trains."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import pytest
from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

from tests.e2e.conftest import World

pytestmark = pytest.mark.e2e

STEPS = (
    "trainer.total_training_steps=500",
    "trainer.n_gpus_per_node=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
)


def listening(process: psutil.Process) -> dict[str, set[tuple[str, int]]]:
    """Addresses and ports by the name of the process that listens there; the whole tree of a run."""
    found: dict[str, set[tuple[str, int]]] = {}
    for each in [process, *process.children(recursive=True)]:
        try:
            name, connections = each.name(), each.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                found.setdefault(name, set()).add(tuple(connection.laddr))
    return found


def is_loopback(address: str) -> bool:
    return address.removeprefix("::ffff:").startswith("127.") or address == "::1"


def test_one_node_listens_at_loopback_alone(world: World) -> None:
    """Ray's daemons, its workers, the ranks' store and gloo, the engine: two ranks, so that all of them have something to say."""
    secret = "not-to-be-found-4711"
    process: Any = world.start(
        "listeners", *STEPS, "trainer.save_freq=-1", f"+ray_kwargs.ray_init.runtime_env.env_vars.MY_PASSWORD={secret}", alone=True
    )
    try:
        world.wait_for_step(process, "listeners", 1)
        found = listening(psutil.Process(process.pid))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=300)
    assert {"gcs_server", "raylet"} <= set(found), "the processes that listen are there to be seen"
    assert any(name.startswith("ray::") for name in found)
    beyond = {name: out for name, addresses in found.items() if (out := {each for each, _ in addresses if not is_loopback(each)})}
    assert beyond == {}
    taken = {port for addresses in found.values() for _, port in addresses}
    assert DEFAULT_DASHBOARD_AGENT_LISTEN_PORT not in taken, "a port for one run on a machine: a second one waits for it"
    written = [path for path in (world.home / "runs" / "listeners").rglob("*") if path.is_file()]
    assert {"config.yaml", "overrides.yaml", "hydra.yaml", "metrics.jsonl"} <= {path.name for path in written}
    assert [path for path in [*written, world.log("listeners")] if secret.encode() in path.read_bytes()] == []
