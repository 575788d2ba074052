"""Facts about this machine. Whatever may hang is a process with a time limit; nothing is changed, and no secret is read."""

from __future__ import annotations

import os
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, requires
from importlib.util import find_spec
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # of /proc/net/tcp
LOOPBACK = ("127.", "::1", "0:0:0:0:0:0:0:1")
RAY_PROCESSES = ("raylet", "gcs_server")


@dataclass(frozen=True)
class Ended:
    """A process that was run: its exit code, None if it did not end in time, and what it wrote."""

    code: int | None
    out: str = ""
    errors: str = ""


def run(command: Sequence[str], seconds: float) -> Ended | None:
    """Run a program in the C locale; None: there is no such program."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        return Ended(None)
    except OSError:
        return None
    return Ended(done.returncode, done.stdout, done.stderr)


# --- packages -----------------------------------------------------------------------------------------------------------------


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_packages() -> dict[str, str]:
    """Version by normalised name. The first on the path counts, as for an import."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(normalised(name), distribution.version)
    return found


def requirements_of(name: str) -> list[str] | None:
    """What an installed package asks for; None if it is not installed."""
    try:
        return list(requires(name) or ())
    except PackageNotFoundError:
        return None


def torch_cuda() -> str | None:
    """The CUDA version that torch was built with, '' for a build without, None if there is no torch. Read from its version.py."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]", text, flags=re.MULTILINE)
    return found[1] if found else ""


# --- network and processes ----------------------------------------------------------------------------------------------------


def listeners(tables: Sequence[Path] = (PROC / "net" / "tcp", PROC / "net" / "tcp6")) -> dict[int, set[str]]:
    """Addresses by TCP port that something listens at."""
    found: dict[int, set[str]] = {}
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == LISTENING:
                address, _, port = fields[1].partition(":")
                found.setdefault(int(port, 16), set()).add(_address(address))
    return found


def _address(words: str) -> str:
    """Of the kernel's hexadecimal words, each in the byte order of the machine (little-endian where CUDA runs)."""
    raw = b"".join(bytes.fromhex(words[start : start + 8])[::-1] for start in range(0, len(words), 8))
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def is_loopback(address: str) -> bool:
    return address.startswith(LOOPBACK) or address.startswith("::ffff:127.")


def connects(host: str, port: int, seconds: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class RayProcess:
    """A process of a Ray cluster on this machine."""

    name: str
    number: int
    user: str


def ray_processes(proc: Path = PROC) -> list[RayProcess]:
    return list(_ray_processes(proc))


def _ray_processes(proc: Path) -> Iterator[RayProcess]:
    for folder in proc.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, owner = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip(), folder.stat().st_uid
            state = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:1]
        except OSError:  # it ended meanwhile
            continue
        if name in RAY_PROCESSES and state != ["Z"]:
            yield RayProcess(name, int(folder.name), user_name(owner))


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # users of containers often have no name
        return f"user {number}"


# --- files --------------------------------------------------------------------------------------------------------------------


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = Path(os.path.abspath(path.expanduser()))
    while not path.is_dir():
        path = path.parent
    return path


@dataclass(frozen=True)
class Space:
    """Of a file system, in bytes; files: how many more it takes, None if it does not count them."""

    total: int
    free: int
    files: int | None = None


def space(path: Path) -> Space:
    numbers = os.statvfs(path)
    files = numbers.f_favail if numbers.f_files else None
    return Space(numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize, files)
