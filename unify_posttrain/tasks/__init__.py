"""Tasks: data, verifiers and small models. Generated tasks need no download; the others read public data sets or your own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.tasks import arithmetic, benchmarks, convert, countdown, dapo_math, matrix_rows, openr1_math, tldr
from unify_posttrain.tasks.general_points import image_rows as point_image_rows
from unify_posttrain.tasks.general_points import rows as point_rows
from unify_posttrain.tasks.navigation import rows as navigation_rows
from unify_posttrain.tasks.shapes import rows as shape_rows
from unify_posttrain.tasks.vrag import rows as vrag_rows

GENERATED = ("arithmetic", "countdown", "shapes")  # tasks that a tiny base model exists for

# prepare.task.name -> writer of the task's data files.
PREPARERS: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Path]]] = {
    "arithmetic": arithmetic.write_splits,
    "benchmarks": benchmarks.write_splits,
    "convert": convert.write_splits,
    "countdown": countdown.write_splits,
    "dapo_math": dapo_math.write_splits,
    "general_points": point_rows.write_splits,
    "general_points_images": point_image_rows.write_splits,
    "matrices": matrix_rows.write_splits,
    "navigation": navigation_rows.write_splits,
    "openr1_math": openr1_math.write_splits,
    "shapes": shape_rows.write_splits,
    "tldr": tldr.write_splits,
    "vrag": vrag_rows.write_splits,
}

__all__ = ["GENERATED", "PREPARERS"]
