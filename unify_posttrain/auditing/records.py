"""Responses and ground truths of a file: JSON lines, a JSON array, parquet; columns by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.rewards.grading import VERSIONS
from unify_posttrain.untrusted.documents import STRICT, DocumentError, parse

# The first names are the defaults; the second ones are verl's, in the samples of a validation and in dumps of rollouts.
RESPONSE, GROUND_TRUTH = ("response", "output"), ("ground_truth", "gts")
EXPECTED, FAMILY, VERSION = "expected", "family", "version"


@dataclass(frozen=True)
class Record:
    """A response to be graded.

    Attributes:
        place: line of the file, or row, from 1.
        response, ground_truth: as they stand in the file.
        version: that its row names; None: none.
        expected: the verdict that is held to be right; None: not known.
        family: of the rows that belong together; "" if the file has none.
    """

    place: int
    response: str
    ground_truth: Any
    version: int | None = None
    expected: bool | None = None
    family: str = ""


def read_records(path: Path, response: str | None = None, ground_truth: str | None = None) -> list[Record]:
    """The records of a file.

    Args:
        path: .parquet, .json (an array of objects, or lines), anything else: JSON lines.
        response, ground_truth: names of the columns; None: the first of RESPONSE and GROUND_TRUTH that the file has.

    Raises:
        ValueError: no file, no rows, a line that is no JSON object, a column that is missing or holds something else; names the
            file, the line or row, and the columns that there are.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file; give a file of responses: JSON lines, a JSON array, or parquet")
    rows = list(_rows(path))
    if not rows:
        raise ValueError(f"{path} holds no rows")
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    text = _column(path, columns, "response", response, RESPONSE)
    gold = _column(path, columns, "ground-truth", ground_truth, GROUND_TRUTH)
    return [_record(path, place, row, text, gold) for place, row in rows]


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        try:
            yield from enumerate(pq.read_table(path).to_pylist(), start=1)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise ValueError(f"{path} is no complete parquet file ({' '.join(str(error).split())[:200]})") from error
        return
    content = path.read_bytes()
    if path.suffix == ".json" and content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        yield from enumerate((_object(path, "row", place, row) for place, row in enumerate(_parsed(path, "", content), 1)), start=1)
        return
    for place, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield place, _object(path, "line", place, _parsed(path, f", line {place}", line))


def _parsed(path: Path, where: str, content: bytes) -> Any:
    try:
        return parse(content, STRICT)
    except DocumentError as error:
        raise ValueError(f"{path}{where}: {error}") from error


def _object(path: Path, kind: str, place: int, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path}, {kind} {place}: holds {type(value).__name__} and no JSON object")
    return value


def _column(path: Path, columns: Sequence[str], option: str, given: str | None, defaults: Sequence[str]) -> str:
    wanted = defaults if given is None else (given,)
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise ValueError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(columns)}: choose one with --{option}")
    return found


def _record(path: Path, place: int, row: Mapping[str, Any], text: str, gold: str) -> Record:
    where = f"{path}, row {place}"
    if not isinstance(row.get(text), str):
        raise ValueError(f"{where}: {text}={row.get(text)!r:.60} must be a text")
    expected, version = row.get(EXPECTED), row.get(VERSION)
    if expected is not None and expected not in (0, 1):
        raise ValueError(f"{where}: {EXPECTED}={expected!r:.60} must be 0 or 1")
    if version is not None and (isinstance(version, bool) or version not in VERSIONS):
        raise ValueError(f"{where}: {VERSION}={version!r:.60} is unknown; choose one of {', '.join(map(str, VERSIONS))}")
    return Record(
        place,
        row[text],
        row.get(gold),
        None if version is None else int(version),
        None if expected is None else bool(expected),
        str(row.get(FAMILY) or ""),
    )
