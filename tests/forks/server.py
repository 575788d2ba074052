"""The fork server: imports, then a child for every request. A program: python -m tests.forks.server FILE-NUMBER-OF-ITS-SOCKET"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.forks import workers
from tests.forks.workers import FIRST_JOB, JOB_ID, RAYLET_PID

LARGEST = 1 << 17
PACKAGE = Path(__file__).resolve().parents[2] / "unify_posttrain"
LIBRARIES = ("torch", "verl", "ray", "transformers", "hydra", "omegaconf", "tensordict", "datasets", "safetensors", "tokenizers")
DAEMONS = ("ray.dashboard.agent", "ray._private.log_monitor", "ray._private.process_watcher")
MODELS = ("transformers.models.qwen2.modeling_qwen2", "transformers.models.auto.modeling_auto")


@contextmanager
def drawing_no_identifiers() -> Iterator[None]:
    """Keep Ray's generator of random identifiers unseeded: its C++ code never seeds again, so all forks would draw the same.

    Two workers then send an actor tasks of one identifier, which ends it ("Check failed: erased == 1"). Of what is imported, only
    `ray.remote` above a class draws.
    """
    import ray.actor

    with mock.patch.object(ray.actor, "ActorClassID", wraps=ray.actor.ActorClassID) as identifiers:
        identifiers.from_random = lambda: ray.ActorClassID(os.urandom(ray.ActorClassID.size()))
        yield


def imported_by_the_package() -> set[str]:
    """Modules of libraries that the package names anywhere, without what needs vLLM."""
    import ast

    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module))
    return {name for name in found if name.partition(".")[0] in LIBRARIES and "vllm" not in name}


def preload() -> None:
    with drawing_no_identifiers():
        for name in (*sorted(imported_by_the_package()), *MODELS, *DAEMONS):
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # another version's, or its own dependency is not installed
    for name in [name for name in sys.modules if name.partition(".")[0] == "unify_posttrain"]:
        raise RuntimeError(f"{name} is imported: commands would not run it from its first line")


def fork_orphan() -> int:
    """Fork a process whose parent has ended: its identifier, or 0 in it."""
    reading, writing = os.pipe()
    between = os.fork()
    if between:
        os.close(writing)
        identifier = int(os.read(reading, 32))
        os.close(reading)
        os.waitpid(between, 0)
        return identifier
    child = os.fork()
    if child:
        os.write(writing, str(child).encode())
        os._exit(0)
    os.close(reading)
    os.close(writing)
    return 0


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Fork until the caller has gone. Returns in every child with its request, in the server with None."""
    connection.send(b"ready")
    while True:
        message, files, _, _ = socket.recv_fds(connection, LARGEST, 3)
        if not message:
            return None
        child = fork_orphan()
        if child == 0:
            connection.close()
            return json.loads(message), files
        for file in files:
            os.close(file)
        connection.send(str(child).encode())


def take_place(environment: dict[str, str], folder: str, files: list[int]) -> None:
    """Environment, working directory and standard streams of a new process."""
    os.chdir(folder)
    for standard, file in enumerate(files):
        os.dup2(file, standard)
    for file in files:
        if file > 2:
            os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as `random` does by itself after a fork


def search_path(first: str, environment: dict[str, str], own: list[str]) -> list[str]:
    """`sys.path` of a process that begins with this environment."""
    return [first, *(each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each), *own]


def main() -> tuple[str, list[str]] | None:
    """Serve; in a child, make it what was asked for and return its module and arguments."""
    os.environ |= {JOB_ID: FIRST_JOB, RAYLET_PID: str(os.getpid())}
    own = sys.path[1:]  # the first is the folder of this repository, and there is no PYTHONPATH
    connection = socket.socket(fileno=int(sys.argv[1]))
    preload()
    gc.collect()
    gc.freeze()
    try:
        asked = serve(connection)
    except KeyboardInterrupt:
        return None
    if asked is None:
        return None
    request, files = asked
    gc.unfreeze()
    if request["session"]:
        os.setsid()
    take_place(request["environment"], request["folder"], files)
    if request["module"] == "unify_posttrain.train":
        workers.prepare(own)
    sys.path[:] = search_path(os.getcwd(), request["environment"], own)
    sys.argv[1:] = request["arguments"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    return request["module"], request["arguments"]


if __name__ == "__main__":
    asked_for = main()
    if asked_for:
        runpy.run_module(asked_for[0], run_name="__main__", alter_sys=True)
