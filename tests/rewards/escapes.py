"""What a grader must not be able to do, one attempt each, for the tests of confinement: returns what it got, or raises."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def attempt(item: list[Any]) -> Any:
    """`item` is [what, argument]."""
    return globals()[f"_{item[0]}"](item[1])


def _add(numbers: list[int]) -> int:
    return sum(numbers)


def _environment(name: str) -> str:
    return os.environ[name]


def _environment_of_c(name: str) -> str:
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    return libc.getenv(name.encode()).decode()


def _environment_of_supervisor(name: str) -> str:
    return next(each for each in Path(f"/proc/{os.getppid()}/environ").read_text().split("\0") if each.startswith(name))


def _environment_of_caller(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def _read(path: str) -> str:
    return Path(path).read_text()


def _write(path: str) -> int:
    return Path(path).write_text("x")


def _append(path: str) -> int:
    with open(path, "a") as file:
        return file.write("x")


def _temporary(_: Any) -> str:
    return tempfile.mkstemp()[1]


def _tcp(_: Any) -> str:
    return str(socket.socket(socket.AF_INET, socket.SOCK_STREAM))


def _unix(_: Any) -> str:
    return str(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))


def _pipe(_: Any) -> Any:
    return os.pipe()


def _program(_: Any) -> str:
    return subprocess.run(["/bin/echo", "out"], capture_output=True, text=True, check=True).stdout


def _raise_limits(path: str) -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    return _read(path)


def _anonymous(_: Any) -> int:
    return len(mmap.mmap(-1, 1000))  # memory alone: nothing is wrong with it


def _make_folder(path: str) -> None:
    os.mkdir(path)


def _remove(path: str) -> None:
    os.unlink(path)


def _end_caller(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def _late(name: str) -> bool:
    return importlib.import_module(name).__name__ in sys.modules


def _guarded_late(name: str) -> str:
    """As libraries do: whatever happens, they go on without."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return type(error).__name__
    return "there"
