"""As much of `ray` as waiting for a cluster takes: the nodes are the files in up/, with their GPUs.

Time is what is slept, once the head is up: however slow the machine is, a limit means as many looks at the cluster.
"""

import os
import time
from pathlib import Path

_UP = Path(os.environ["STAND_IN_FOLDER"]) / "up"
_real_sleep = time.sleep
_now = 0.0


def _sleep(seconds: float) -> None:
    global _now
    _now += seconds if (_UP / "node-a").exists() else 0.0
    _real_sleep(0.05)


time.sleep, time.monotonic = _sleep, lambda: _now


def is_initialized() -> bool:
    return False


def init(**_: object) -> None:
    if not (_UP / "node-a").exists():
        raise ConnectionError(f"no head at {os.environ['RAY_ADDRESS']}")


def nodes() -> list:
    return [
        {"NodeManagerHostname": path.name, "Alive": True, "Resources": {"CPU": 64.0, "GPU": float(path.read_text() or 0)}}
        for path in _UP.iterdir()
    ]
