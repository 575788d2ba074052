"""Rows of local files, one at a time: a row that cannot be held is a fault of that row, a damaged file is an error.

The files are read here and not through `datasets`, which refuses a whole file for one odd line, takes types of columns from what a
file says of itself (an image column is opened as whatever path or address its rows name), and reads what a README names.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.preparation.rows import MALFORMED, Row, RowFault
from unify_posttrain.untrusted.documents import STRICT, BrokenDocumentError, DocumentError, parse, reason

Line = Row | RowFault

WHOLE_ROW = "the row"
SOURCE = "prepare.task.source"
ARCHIVES = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TAR = (257, b"ustar")  # where a tar archive says that it is one

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)  # a string, in which brackets mean nothing, or a bracket
_SPACE = re.compile(r"[ \t\r\n]*")


class FileFault(Exception):
    """What makes a file unreadable, as the end of a sentence that begins with its name."""


def check_archive(path: Path) -> None:
    """ValueError if a file is an archive, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(_TAR[0] + len(_TAR[1]))
    kind = next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)
    kind = "tar" if head[_TAR[0] :] == _TAR[1] else kind
    if kind is not None:
        raise ValueError(f"{SOURCE}: {path} is an archive ({kind}); unpack it first")


def rows_of(files: Sequence[Path], chunk_rows: int, key: str = SOURCE) -> Iterator[tuple[Path, int, Line]]:
    """Every row of the files, in order: (file, position in it, row). All have all columns, in the order in which they first
    appear; what a row lacks is None.

    Args:
        files: parquet, or JSON: an array of objects, or one object per line.
        chunk_rows: rows of a parquet file in memory at once.
        key: of the configuration, that the files were given by.

    Raises:
        ValueError: a damaged file; names it, and the line.
    """
    columns = dict.fromkeys(column for file in files for column in _columns(file, chunk_rows, key))
    for file in files:
        for number, row in enumerate(_guarded(file, chunk_rows, key)):
            yield file, number, row if isinstance(row, RowFault) else {**dict.fromkeys(columns), **row}


def _columns(file: Path, chunk_rows: int, key: str) -> list[str]:
    if file.suffix == ".parquet":
        with _naming(file, key):
            return list(pq.read_schema(file).names)
    found: dict[str, None] = {}
    for row in _guarded(file, chunk_rows, key):
        if not isinstance(row, RowFault):
            found |= dict.fromkeys(row)
    return list(found)


def _guarded(file: Path, chunk_rows: int, key: str) -> Iterator[Line]:
    with _naming(file, key):
        yield from _parquet(file, chunk_rows) if file.suffix == ".parquet" else _json(file)


class _naming:
    """Turns what readers raise into one error that names the file."""

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.key = file, key

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, pa.ArrowException | OSError):
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            error = FileFault(f" is no complete parquet file ({said})" if self.file.suffix == ".parquet" else f": {said}")
        if isinstance(error, FileFault):
            raise ValueError(f"{self.key}: {self.file}{error}; write the file again") from error


def _parquet(file: Path, chunk_rows: int) -> Iterator[Line]:
    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(batch_size=chunk_rows):
            try:
                yield from batch.to_pylist()
            except (ValueError, OverflowError):  # other bytes in a column of text, a date beyond Python's: find the rows
                yield from (_one(batch.slice(number, 1)) for number in range(batch.num_rows))


def _one(batch: pa.RecordBatch) -> Line:
    try:
        return batch.to_pylist()[0]  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        return RowFault(MALFORMED, WHOLE_ROW, f"holds bytes that are no UTF-8 text (byte {error.start} of a text)")
    except (ValueError, OverflowError) as error:
        return RowFault(MALFORMED, WHOLE_ROW, f"holds a value that cannot be read ({' '.join(str(error).split())[:120]})")


def _json(file: Path) -> Iterator[Line]:
    with file.open("rb") as opened:
        first = opened.read(len(codecs.BOM_UTF8))
        opened.seek(len(first) if first == codecs.BOM_UTF8 else 0)
        start = opened.tell()
        if file.suffix == ".json" and _begins_array(opened):
            opened.seek(start)
            yield from _array(opened.read())
            return
        opened.seek(start)
        for number, line in enumerate(opened, start=1):
            if line.strip():
                yield _object(line, f", line {number}")


def _begins_array(opened: Any) -> bool:
    return next((line.lstrip()[:1] == b"[" for line in opened if line.strip()), False)


def _object(line: bytes, where: str) -> Line:
    try:
        value = parse(line, STRICT)
    except BrokenDocumentError as error:
        raise FileFault(f"{where}: {error}") from error
    except DocumentError as error:
        return RowFault(MALFORMED, WHOLE_ROW, str(error))
    if not isinstance(value, Mapping):
        raise FileFault(f"{where}: must be a JSON object")
    return value


def _array(content: bytes) -> Iterator[Line]:
    """The objects of an array, each read for itself."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFault(f": {reason(error)}") from error
    place = _past_space(text, _past_space(text, 0) + 1)
    if text[place : place + 1] == "]":
        return
    while True:
        try:
            value, end = STRICT.raw_decode(text, place)
        except (RecursionError, ValueError) as error:
            fault = reason(error)
            if isinstance(fault, BrokenDocumentError):
                raise FileFault(f": {fault}") from error
            value, end = RowFault(MALFORMED, WHOLE_ROW, str(fault)), _end_of_value(text, place)
        if not isinstance(value, Mapping | RowFault):
            raise FileFault(": must be an array of JSON objects")
        yield value
        place = _past_space(text, end)
        if text[place : place + 1] != ",":
            if text[place : place + 1] != "]":
                raise FileFault(f": invalid JSON (an array that does not end, character {place})")
            return
        place = _past_space(text, place + 1)


def _past_space(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return place if match is None else match.end()


def _end_of_value(text: str, place: int) -> int:
    """Where a value that could not be decoded ends: its brackets are counted, and nothing is nested to do so."""
    depth = 0
    for token in _TOKEN.finditer(text, place):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group()[:1], 0)
        if depth == 0 and token.group() in ("]", "}"):
            return token.end()
    raise FileFault(f": invalid JSON (brackets do not close, from character {place})")
