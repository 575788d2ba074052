"""One run at a time in a folder: a lock that the process holds for the life of a run, and the kernel releases when it dies.

It is a POSIX record lock (`fcntl.lockf`) on a file that names the holder. Such a lock belongs to the process and not to what it
forks, so no left-over child keeps it; and it works over NFS, as far as the server has a lock manager. Where it has none, the run
goes on without a lock and says so. A local lock of one host is not seen by another host that mounts the same disk otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path

from omegaconf import DictConfig

logger = logging.getLogger(__name__)

LOCK_FILE = "unify_run.lock"
BUSY = (errno.EACCES, errno.EAGAIN)


class FolderInUseError(ValueError):
    """Another process trains in the folder."""


@contextmanager
def folders_locked(config: DictConfig) -> Iterator[None]:
    """Hold the run folder, and the folder of checkpoints if that lies elsewhere.

    Raises:
        FolderInUseError: another process holds one of them; names host and process.
    """
    run_dir, checkpoints = (Path(config.trainer[key]).resolve() for key in ("run_dir", "default_local_dir"))
    places = {"trainer.run_dir": run_dir}
    if not checkpoints.is_relative_to(run_dir):
        places["trainer.default_local_dir"] = checkpoints
    with ExitStack() as held:
        for key, folder in places.items():
            held.enter_context(_locked(folder, key))
        yield


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    # Opened for appending, so that the holder's name is still there to be read if the lock is not to be had.
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                file.seek(0)
                raise FolderInUseError(
                    f"{key}={folder} is in use: {_holder(file.read())} trains there. Wait for it, end it, or give this run its own "
                    "trainer.experiment_name"
                ) from None
            logger.warning("%s cannot be locked (%s): take care that no second run is started in this folder", folder, error)
            yield
            return
        file.truncate(0)
        holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        file.write(json.dumps(holder) + "\n")
        file.flush()
        yield
        file.truncate(0)  # the file stays: a lock on a file that another start may remove would hold nobody off


def _holder(text: str) -> str:
    """Who holds the lock, as its file says."""
    try:
        holder = json.loads(text)
        return f"process {holder['pid']} on host {holder['host']} (since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
