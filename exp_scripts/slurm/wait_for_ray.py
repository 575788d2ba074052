"""Wait until the Ray cluster at $RAY_ADDRESS has every node that a job was given, each with its GPUs; say which ones it lacks.

    RAY_ADDRESS=10.0.0.1:20000 python exp_scripts/slurm/wait_for_ray.py --gpus 8 --timeout 600 node-1 node-2

Ends with 0 when all are there, with 1 and one line when the time is over.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray

PAUSE = 2.0  # seconds between two looks


def ready_nodes(nodes: Sequence[Mapping[str, Any]], gpus: int) -> list[str]:
    """Host names, without domain, of the living nodes that have at least so many GPUs.

    Args:
        nodes: what `ray.nodes()` returns.
    """
    return [
        node["NodeManagerHostname"].partition(".")[0]
        for node in nodes
        if node["Alive"] and node.get("Resources", {}).get("GPU", 0) >= gpus
    ]


def wait(expected: Sequence[str], gpus: int, timeout: float) -> str | None:
    """Connect and look until as many nodes are ready as are expected. Returns None, or what is missing when the time is over.

    They are counted, since Slurm may have other names for them than they have themselves; the names are for the message.
    """
    deadline, ready, reason = time.monotonic() + timeout, [], ""
    while True:
        try:
            if not ray.is_initialized():
                ray.init(logging_level=logging.ERROR, log_to_driver=False)
            ready, reason = ready_nodes(ray.nodes(), gpus), ""
        except Exception as error:  # Ray raises its own, ConnectionError or RuntimeError, while the head is not up
            reason = f" ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        if len(ready) >= len(expected):
            return None
        if time.monotonic() >= deadline:
            absent = sorted({name.partition(".")[0] for name in expected} - set(ready))
            return (
                f"{len(ready)} of {len(expected)} node(s) with {gpus} GPUs after {timeout:g} s; not up: {', '.join(absent)}{reason}"
                "; look at the messages of Ray above and at the network between the nodes, or raise UNIFY_RAY_TIMEOUT"
            )
        time.sleep(PAUSE)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Wait until the Ray cluster at $RAY_ADDRESS is complete.")
    parser.add_argument("nodes", nargs="+", help="host names")
    parser.add_argument("--gpus", type=int, required=True, help="of every node")
    parser.add_argument("--timeout", type=float, required=True, help="seconds")
    given = parser.parse_args(arguments)
    missing = wait(given.nodes, given.gpus, given.timeout)
    if missing is not None:
        sys.exit(f"unify: error: the Ray cluster is incomplete: {missing}")


if __name__ == "__main__":
    main()
