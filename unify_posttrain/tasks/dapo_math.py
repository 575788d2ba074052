"""DAPO-Math-17k: competition problems with integer answers, without demonstrations (arXiv 2503.14476).

Source: `BytedTsinghua-SIA/DAPO-Math-17k` (hub, split train) in verl's columns; data_source "math_dapo", extra_info.index a uuid.
Every problem is there about a hundred times, so rows are de-duplicated on the prompt's text (`prepare.task.deduplicate`): about
17 thousand of 1.8 million remain. The prompts already ask for a last line `Answer: …`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.preparation.options import read_options
from unify_posttrain.preparation.pipeline import Recipe, prepare
from unify_posttrain.preparation.rows import Reader
from unify_posttrain.preparation.verl_rows import COLUMNS, read_verl_row

READERS = (Reader(COLUMNS, read_verl_row),)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write `train.parquet`, `validation.parquet` if rows are held out, and `manifest.json`; see :func:`pipeline.prepare`."""
    options, _ = read_options(settings)
    return prepare(Path(folder), options, Recipe(READERS))
