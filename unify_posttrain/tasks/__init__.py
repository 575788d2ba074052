"""Tasks: data, verifiers and small models that a run can be prepared from without any download."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.tasks import arithmetic, countdown

# prepare.task.name -> writer of the task's data files.
PREPARERS: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Path]]] = {
    "arithmetic": arithmetic.write_splits,
    "countdown": countdown.write_splits,
}

__all__ = ["PREPARERS"]
