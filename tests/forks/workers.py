"""Ray's workers and daemons from a fork: what is started in their place hands its arguments, environment and files to a process
that has imported already.

Every command that may start Ray has such a process, forked before it does anything else: its workers are then below it in the tree
of processes, and share its imports. Raylet runs `worker.py`, which asks that process and ends. In the fork Ray's own
`setup_worker.py` decides what a worker becomes.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
LARGEST = 1 << 17
ADDRESS = "UNIFY_TEST_FORKS"  # of the socket, for worker.py
PROGRAM = Path(__file__).with_name("worker.py")
DAEMON = Path(__file__).with_name("daemon.py")
DAEMONS = ("dashboard/agent.py", "_private/runtime_env/agent/main.py", "_private/log_monitor.py")  # below Ray's folder
# Ray reads these two once, while it is loaded. The server gives the one the name of the first job of every cluster, and the other a
# process that lives as long as itself.
JOB_ID, RAYLET_PID = "RAY_JOB_ID", "RAY_RAYLET_PID"
FIRST_JOB = "01000000"
TICK = 0.5  # seconds


class BecomeAnother(Exception):
    """What a process was about to execute."""


def prepare(own_path: list[str]) -> None:
    """Fork the process that forks workers, and let Ray start workers through it."""
    from ray._private import ray_constants, services

    folder = tempfile.mkdtemp(prefix="forks")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(os.path.join(folder, "socket"))
    listener.listen(64)
    parent = os.getpid()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        _serve(listener, folder, own_path)
    listener.close()
    os.environ[ADDRESS] = os.path.join(folder, "socket")
    ray_constants.SETUP_WORKER_FILENAME = str(PROGRAM)  # joined to Ray's folder, which an absolute path replaces
    start = services.start_ray_process

    def start_forking(command: list[str], *arguments: Any, **more: Any) -> Any:
        for daemon in DAEMONS:  # one is a command, the others are in raylet's arguments
            path = os.path.join(services.RAY_PATH, daemon)
            command = [f"{DAEMON} {path}".join(each.split(path)) if each != path else each for each in command]
            place = command.index(path) if path in command else None
            command = command if place is None else [*command[:place], str(DAEMON), *command[place:]]
        return start(command, *arguments, **more)

    services.start_ray_process = start_forking


def _serve(listener: socket.socket, folder: str, own_path: list[str]) -> None:
    """Fork workers until the command ends, and end each with its raylet, which a worker would look for by itself, or with the
    process that was started in its place."""
    os.setsid()  # a signal to the group of the command is not for workers (trainer/sessions.py)
    raylets: dict[int, int] = {}  # of the workers

    def end(*_: Any) -> None:
        for worker in raylets:
            os.kill(worker, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)  # the command's own pipes would not close with it
    listener.settimeout(TICK)
    while True:
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            message, files, _, _ = socket.recv_fds(connection, LARGEST, 3)
            request = json.loads(message) if message else None
            worker = os.fork() if request else None
            if worker == 0:
                listener.close()
                _become(request, files, connection, own_path)
            if worker:
                raylets[worker] = int(request.get("daemon_of") or request["environment"][RAYLET_PID])
            for file in files:
                os.close(file)
            connection.close()
        for worker, raylet in list(raylets.items()):
            if os.waitpid(worker, os.WNOHANG)[0]:
                del raylets[worker]
            elif not Path(f"/proc/{raylet}").exists():
                os.kill(worker, signal.SIGKILL)


def _become(request: dict[str, Any], files: list[int], connection: socket.socket, own_path: list[str]) -> None:
    """Be the worker, to its end."""
    from tests.forks.server import search_path, take_place

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)
    take_place(request["environment"], request["folder"], files)
    os.nice(request["nice"] - os.nice(0))
    connection.send(str(os.getpid()).encode())
    if "daemon_of" in request:
        os.environ[RAYLET_PID] = str(os.getppid())  # an agent ends when it has another parent
        program, *arguments = request["arguments"]
    else:
        connection.close()
        program, *arguments = _decided(request["arguments"])
    sys.path[:] = search_path(os.path.dirname(program), os.environ, own_path)
    sys.argv[:] = [program, *arguments]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    _read_environment_again()
    code = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.exit(code)


def _read_environment_again() -> None:
    """What libraries have read of the server's environment when they were imported."""
    import importlib

    import torch
    from ray._private import ray_constants
    from ray._raylet import Config

    Config.initialize("")
    importlib.reload(ray_constants)
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def _decided(arguments: list[str]) -> list[str]:
    """Program and arguments of the worker, from Ray's own reading of its runtime environment, which it puts into this process."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.workers import setup_worker
    from ray.core.generated.common_pb2 import Language

    def instead(program: str, args: list[str]) -> None:
        raise BecomeAnother(args[-1])

    given, rest = setup_worker.parser.parse_known_args(arguments)
    context = RuntimeEnvContext.deserialize(given.serialized_runtime_env_context or "{}")
    execute, os.execvp = os.execvp, instead
    try:
        context.exec_worker(rest, Language.Value(given.language))
    except BecomeAnother as wanted:
        _, interpreter, *decided = shlex.split(wanted.args[0])
        same = interpreter == sys.executable and not context.command_prefix and "OMP_NUM_THREADS" in os.environ
        same &= os.environ.get(JOB_ID) == FIRST_JOB
        if same:
            return decided
        execute("bash", ["bash", "-c", wanted.args[0]])
    finally:
        os.execvp = execute
    raise AssertionError("Ray has not executed a worker")
