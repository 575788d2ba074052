"""A process that only computes: it opens no file and no socket, knows no variable of the environment, and cannot get out of it.

For graders whose input is text of a model. They need nothing but their modules, and those are imported by the supervisor that
forks them (`unify_posttrain.rewards.worker`). The means are the kernel's: limits of the process (no further file descriptor, no
byte of a file, no further process unless it runs as root), no capabilities and no new privileges; where the kernel has Landlock,
no change of any folder, no signal to and no look into other processes either.

Libraries import some modules when they first need them, which takes a file. The child ends then and names the module; the
supervisor imports it, if it belongs to a library that is there already or to Python's own, and the item is sent once more.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import resource
import struct
import sys
from collections.abc import Mapping
from typing import Any

LATE = 77  # exit code of a child that waits for a module
MOST_LATE = 256  # modules that are imported late; a library needs a few dozen at most
KEPT = ("PATH", "HOME", "LANG", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")  # what starting Python may need
KEPT_BEGINNINGS = ("PYTHON", "LC_")

PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
CAPABILITY_VERSION = 0x20080522  # linux/capability.h
LANDLOCK_CREATE, LANDLOCK_RESTRICT = 444, 446  # numbers of the system calls, the same on all architectures
LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # kinds of access to files that each version knows; 16 from the fifth on
_LENGTH = struct.Struct("H")


def sparse_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a confined worker is started with: none that could hold a secret."""
    return {name: value for name, value in environment.items() if name in KEPT or name.startswith(KEPT_BEGINNINGS)}


def confine() -> None:
    """Confine this process, for good; what is open stays open."""
    os.environ.clear()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _landlock(libc)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))
    # Last: a process of root could raise its limits again with what it is allowed beyond others.
    libc.capset(struct.pack("II", CAPABILITY_VERSION, 0), bytes(24))


def landlock_version() -> int:
    """Of this kernel; 0 if it has none, or does not use it."""
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def _landlock(libc: ctypes.CDLL) -> None:
    """Take all rights to files, TCP ports, and processes outside, as far as this kernel knows them."""
    version = landlock_version()
    if version < 1:
        return
    ports, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    rights = struct.pack("QQQ", (1 << LANDLOCK_RIGHTS.get(version, 16)) - 1, ports, scopes)
    rules = libc.syscall(LANDLOCK_CREATE, rights, ctypes.c_size_t(len(rights)), 0)
    if rules >= 0:
        libc.syscall(LANDLOCK_RESTRICT, rules, 0)
        os.close(rules)


class LateImports:
    """A finder of modules for confined children, and what their supervisor has to know of it: shared memory for one name."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._absent: set[str] = set()
        self._asked = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """In the child: end, so that the supervisor imports the module. ModuleNotFoundError if it has tried to, or may not."""
        top, said = name.partition(".")[0], name.encode("utf-8", "replace")
        known = top in sys.modules or top in sys.stdlib_module_names
        if name in self._absent or not known or self._asked >= MOST_LATE or len(said) > mmap.PAGESIZE - _LENGTH.size:
            raise ModuleNotFoundError(f"{name} is not loaded, and a confined process opens no file", name=name)
        self._memory[: _LENGTH.size + len(said)] = _LENGTH.pack(len(said)) + said
        os._exit(LATE)

    def install(self) -> None:
        """In the child, before `confine`."""
        sys.meta_path.insert(0, self)  # type: ignore[arg-type]

    def serve(self) -> str:
        """In the supervisor, after a child has ended with LATE: import what it asked for; its name, "" if none was asked for."""
        (length,) = _LENGTH.unpack_from(self._memory)
        name = self._memory[_LENGTH.size : _LENGTH.size + length].decode("utf-8", "replace")
        self._memory[: _LENGTH.size] = _LENGTH.pack(0)
        if not name:
            return ""
        self._asked += 1
        try:
            importlib.import_module(name)
        except BaseException:  # a module may do anything when it is imported, SystemExit included
            self._absent.add(name)
        return name
