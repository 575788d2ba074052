"""The caller's side: `subprocess.Popen` whose child is made by the fork server."""

from __future__ import annotations

import atexit
import ctypes
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.devices import NO_GPU

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "unify_posttrain."
LARGEST = 1 << 17  # bytes of a request: arguments and environment
PR_SET_CHILD_SUBREAPER = 36
# Read when they are needed, not while libraries are imported: a command may have other values than the server.
READ_LATE = {"UNIFY_HOME", "HYDRA_FULL_ERROR", "PYTHONPATH", "PYTEST_CURRENT_TEST", "UNIFY_TEST_NAN", "EVIL"}
VERL = "0.7.1"  # with another one, or beside vLLM, commands are not forked
# What a run with hardware=cpu sets before it imports torch, whose OpenMP reads them once (conf/hardware/cpu.yaml).
OPENMP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
COMMANDS = {"RAY_DEDUP_LOGS": "0", "CUDA_VISIBLE_DEVICES": NO_GPU}
_LIBC = ctypes.CDLL(None, use_errno=True)


def heed_ctrl_c() -> None:
    """As in a terminal: what a script starts in its background has SIGINT ignored, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@cache
def known_libraries() -> bool:
    return version("verl") == VERL and find_spec("vllm") is None


class Server:
    """A fork server, started when first needed; it ends with this process."""

    def __init__(self) -> None:
        self.environment = {**os.environ, **COMMANDS}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks.server", str(theirs.fileno())],
                cwd=ROOT,
                env={name: value for name, value in {**self.environment, **OPENMP}.items() if name != "PYTHONPATH"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        assert self._socket.recv(LARGEST) == b"ready", "the fork server has ended"
        atexit.register(self.close)

    def suits(self, environment: Mapping[str, str]) -> bool:
        """Whether what the server has imported is what a command with this environment would have imported."""
        return not self.others(environment)

    def others(self, environment: Mapping[str, str]) -> set[str]:
        """Variables whose value is another one, of those that may be read while something is imported."""
        return {name for name, _ in environment.items() ^ self.environment.items()} - READ_LATE

    def fork(self, request: Mapping[str, Any], files: Sequence[int]) -> int:
        """Identifier of the new process, which is a child of this one."""
        message = json.dumps(request).encode()
        assert len(message) <= LARGEST
        with _adopting():
            socket.send_fds(self._socket, [message], files)
            answer = self._socket.recv(LARGEST)
        assert answer, "the fork server has ended"
        return int(answer)

    def close(self) -> None:
        self._socket.close()
        self._process.kill()  # what it has forked lives on
        self._process.wait(timeout=60)


@contextmanager
def _adopting() -> Iterator[None]:
    """Processes below this one whose parent ends become children of this one meanwhile, instead of init's."""
    _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


_servers: dict[int, Server] = {}


def server() -> Server:
    if os.getpid() not in _servers:
        _servers[os.getpid()] = Server()
    return _servers[os.getpid()]


class Popen(subprocess.Popen):
    """As `subprocess.Popen`; a command of this package comes from the fork server if that makes no difference.

    Attributes:
        forked: whether it does.
    """

    forked = False

    def _execute_child(self, *arguments: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*arguments).arguments
        command, environment = [str(each) for each in given["args"]], given["env"]
        usual = not any(given[name] for name in ("executable", "shell", "pass_fds")) and given["preexec_fn"] in (None, heed_ctrl_c)
        ours = command[:2] == [sys.executable, "-m"] and command[2].startswith(PREFIX) and known_libraries()
        if not (usual and ours and server().suits(os.environ if environment is None else environment)):
            super()._execute_child(*arguments)  # type: ignore[misc]
            return
        self.forked = True
        request = {
            "module": command[2],
            "arguments": command[3:],
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(given["cwd"] or os.getcwd()),
            "session": bool(given["start_new_session"]),
            "parent": os.getpid(),
        }
        ends = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        files = [standard if end == -1 else end for standard, end in enumerate(ends)]
        self.pid = server().fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))


def run(command: Sequence[str], *, capture_output: bool = False, timeout: float | None = None, check: bool = False, **more: Any):
    """As `subprocess.run`, of which it has these options."""
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **more) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done
