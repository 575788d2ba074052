"""Benchmarks: parquet files in the package's schema (data_source, prompt, reward_model.ground_truth, extra_info)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.tasks.columns import REQUIRED_COLUMNS, check_columns, check_row
from unify_posttrain.untrusted.picture_paths import placed_picture

OPTIONAL_COLUMNS = ("extra_info",)
TARGET = "target"  # the worked answer; read only where its loss is asked for
IMAGES, VIDEOS = "images", "videos"  # verl's names


@dataclass(frozen=True)
class Problem:
    """One row of a benchmark.

    Attributes:
        row: position in the benchmark's files, one after the other; the `row_id` that training gives the same row.
        source: `data_source`, a row of the results' table.
        messages: of the prompt, [{role, content}, …].
        ground_truth: as the reward function takes it.
        extra_info: likewise.
        target: messages of the worked answer; None: the row has none, or nobody asked.
        pictures: that the prompt shows, in the order of its marks: {image: path or data URI, …}.
    """

    row: int
    source: str
    messages: list[dict[str, Any]]
    ground_truth: Any
    extra_info: dict[str, Any]
    target: list[dict[str, Any]] | None = None
    pictures: tuple[dict[str, Any], ...] = ()


def read_problems(
    files: Sequence[Path],
    max_samples: int | None = None,
    sample_seed: int | None = None,
    sources: Sequence[str] | None = None,
    with_targets: bool = False,
) -> list[Problem]:
    """The problems of a benchmark, in the order of its files.

    Args:
        files: parquet files.
        max_samples: that many problems at most, chosen as training's `data.val_max_samples` chooses them; None or -1: all.
        sample_seed: of the choice; None takes the first ones.
        sources: `data_source`s to keep; None: all. Rows keep their position in the files.
        with_targets: read the worked answers, too.

    Raises:
        ValueError: a file that is missing, unreadable or empty, a missing column, a malformed row, a picture that is not beside the
            file, or a source without rows.
    """
    rows: list[tuple[Path, int, Mapping[str, Any]]] = []
    for file in files:
        rows += [(file, number, row) for number, row in enumerate(_read(file, with_targets))]
    problems = [_problem(position, *row) for position, row in enumerate(rows)]
    if sources is not None:
        problems = _of_sources(problems, sources, files)
    if max_samples is None or not 0 < max_samples < len(problems):
        return problems
    picked: Sequence[int] = range(max_samples)
    if sample_seed is not None:
        picked = np.random.default_rng(sample_seed).choice(len(problems), size=max_samples, replace=False).tolist()
    return [problems[position] for position in picked]


def _of_sources(problems: Sequence[Problem], sources: Sequence[str], files: Sequence[Path]) -> list[Problem]:
    there = list(dict.fromkeys(problem.source for problem in problems))
    absent = [source for source in sources if source not in there]
    if absent:
        raise ValueError(
            f"benchmark file {', '.join(map(str, files))} has no rows of data_source={absent[0]} (it has {', '.join(there)}); "
            f"prepare it with some, e.g. prepare.task.rows.{absent[0]}, or leave the benchmark out"
        )
    return [problem for problem in problems if problem.source in sources]


def files_digest(files: Sequence[Path]) -> str:
    """sha256 over the contents of the files, in order."""
    digest = hashlib.sha256()
    for file in files:
        with open(_existing(file), "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise ValueError(
            f"benchmark file {file} does not exist; write it with: python -m unify_posttrain.prepare (task=benchmarks, or the "
            "task that it belongs to), or check the path"
        )
    return file


def _read(file: Path, with_targets: bool = False) -> list[dict[str, Any]]:
    try:
        schema = pq.read_schema(_existing(file))
        check_columns(f"benchmark file {file}", schema.names)
        _refuse_videos(file, schema.names)
        optional = (*OPTIONAL_COLUMNS, IMAGES, TARGET) if with_targets else (*OPTIONAL_COLUMNS, IMAGES)
        wanted = [column for column in (*REQUIRED_COLUMNS, *optional) if column in schema.names]
        rows = pq.read_table(file, columns=wanted).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"benchmark file {file} cannot be read as parquet: {error}") from error
    if not rows:
        raise ValueError(f"benchmark file {file} holds no rows; prepare it again")
    return rows


def _refuse_videos(file: Path, names: Sequence[str]) -> None:
    """Models are asked by text and pictures, so a question about a video would be asked without it."""
    if VIDEOS not in names:
        return
    values = pq.read_table(file, columns=[VIDEOS]).column(VIDEOS)
    counts = [None if value is None else len(value) if hasattr(value, "__len__") else 1 for value in values.to_pylist()]
    found = [row for row, count in enumerate(counts) if count]
    if found:
        raise ValueError(
            f"benchmark file {file}, row {found[0]} (and {len(found) - 1} more): column {VIDEOS!r} is not empty, and the "
            "evaluation shows no videos; leave such rows out"
        )


def _pictures(file: Path, where: str, shown: Any) -> tuple[dict[str, Any], ...]:
    """The pictures of a row, where they lie: beside the file or in it."""
    if shown is None:
        return ()
    if not isinstance(shown, list):
        raise ValueError(f"{where}: column {IMAGES!r} must be a list of pictures, not {type(shown).__name__}")
    placed = [placed_picture(picture, file.parent, where, "move it there") for picture in shown]
    return tuple(_inline(each, where) for each in placed)


def _inline(picture: Any, where: str) -> dict[str, Any]:
    """A picture that is in the file as a data URI, which every reader of pictures takes."""
    if not isinstance(picture, Mapping):
        raise ValueError(f"{where}: a picture must be {{image: path}} or {{bytes: …}}")
    if "bytes" not in picture:
        return dict(picture)
    rest = {name: value for name, value in picture.items() if name != "bytes"}
    return {**rest, "image": "data:image/png;base64," + base64.b64encode(picture["bytes"]).decode("ascii")}


def _problem(position: int, file: Path, number: int, row: Mapping[str, Any]) -> Problem:
    check_row(f"benchmark file {file}, row {number}", row)
    extra = dict(row.get("extra_info") or {})
    target = row.get(TARGET)
    messages = [{"role": "assistant", "content": target}] if isinstance(target, str) else target
    pictures = _pictures(file, f"benchmark file {file}, row {number}", row.get(IMAGES))
    truth = row["reward_model"]["ground_truth"]
    return Problem(position, row["data_source"], row["prompt"], truth, extra, messages or None, pictures)
