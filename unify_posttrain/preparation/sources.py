"""Where rows come from: a data set on the hub, a folder, or one file, all through `datasets.load_dataset`.

Neither kind runs code of the data set: `datasets` 4 has no loading scripts any more.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.store import sha256

logger = logging.getLogger(__name__)

FORMATS = {".parquet": "parquet", ".json": "json", ".jsonl": "json"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_SEEN_BY_LOADER = ("README.md",)  # its header may say which file belongs to which split


@dataclass(frozen=True)
class Source:
    """A located source.

    Attributes:
        name: as the user gave it.
        path: the local file or folder; None: `name` is a data set on the hub.
        files: the local data files, sorted.
    """

    name: str
    path: Path | None = None
    files: tuple[Path, ...] = ()

    def identity(self, revision: str | None) -> dict[str, Any]:
        """What a second call compares: digests of local files, or name and revision on the hub. Never asks the network."""
        if self.path is None:
            return {"hub": self.name, "revision": revision}
        root = self.path if self.path.is_dir() else self.path.parent
        notes = [root / name for name in _SEEN_BY_LOADER if self.path.is_dir() and (root / name).is_file()]
        return {"files": {str(file.relative_to(root)): sha256(file) for file in [*self.files, *notes]}}


def locate(options: Options) -> Source:
    """Find `prepare.task.source`.

    Raises:
        ValueError: neither an existing file or folder nor a name on the hub; an unknown format; an empty file; a folder without
            data; a second split asked of a single file.
    """
    path = Path(options.source).expanduser()
    if path.is_file():
        _check_file(path)
        if options.validation_split:
            raise ValueError(
                f"prepare.task.validation_split={options.validation_split}: the file {options.source} has one split; set it to "
                "null and prepare.task.validation_rows to the rows to hold out, or give a folder"
            )
        return Source(options.source, path, (path,))
    if path.is_dir():
        inside = (file for file in path.rglob("*") if file.suffix in FORMATS and file.is_file())
        files = tuple(sorted(file for file in inside if not any(part.startswith(".") for part in file.relative_to(path).parts)))
        if not files:
            raise ValueError(f"prepare.task.source={options.source}: the folder holds no {_formats()} file; check the path")
        for file in files:
            _check_file(file)
        return Source(options.source, path, files)
    if HUB_NAME.fullmatch(options.source) and path.suffix not in FORMATS and not options.source.startswith("."):
        return Source(options.source)
    raise ValueError(
        f"prepare.task.source={options.source} does not exist; give a file ({_formats()}), a folder of them, or a name on the hub "
        "(owner/name)"
    )


def hub_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision stands for now, so that every read sees the same data; None if the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except OSError as error:  # no network, or the hub refuses: loading from the local cache may still work, or says more
        logger.warning("the commit of %s on the hub is unknown (%s); the revision is recorded as given", name, _line(error))
        return None


def numbered_rows(source: Source, options: Options, split: str, revision: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(position, row) of one split, in order.

    Raises:
        ValueError: the source cannot be read; for local files with the file and, for JSON, the line at fault.
    """
    try:
        rows = iter(_load(source, options, split, revision))
    except Exception as error:  # datasets raises a dozen kinds of errors for what it cannot find or parse
        raise ValueError(_unreadable(source, split, error)) from error
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the same, in the middle of a file
            raise ValueError(_unreadable(source, split, error)) from error
        yield number, row
        number += 1


def _load(source: Source, options: Options, split: str, revision: str | None) -> Any:
    from datasets import load_dataset

    if source.path is None:
        return load_dataset(source.name, options.config_name, split=split, revision=revision, streaming=options.streaming)
    if source.path.is_dir():
        return load_dataset(str(source.path), options.config_name, split=split, streaming=options.streaming)
    kind = FORMATS[source.path.suffix]
    return load_dataset(kind, data_files={split: str(source.path)}, split=split, streaming=options.streaming)


def _check_file(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise ValueError(f"prepare.task.source={path}: the format must be {_formats()}")
    if not path.stat().st_size:
        raise ValueError(f"prepare.task.source: {path} is empty; write it again")


def _formats() -> str:
    return " or ".join(FORMATS)


def _unreadable(source: Source, split: str, error: Exception) -> str:
    for file in source.files:
        found = _fault(file)
        if found:
            return f"prepare.task.source: {file}{found}; write the file again"
    return f"prepare.task.source={source.name}, split {split}: cannot be read: {_line(error)}"


def _fault(file: Path) -> str | None:
    """What makes a local file unreadable, as the end of a sentence that begins with its name; None if nothing is found."""
    if FORMATS[file.suffix] == "parquet":
        try:
            rows = pq.read_metadata(file).num_rows
        except (pa.ArrowException, OSError) as error:
            return f" is no complete parquet file ({_line(error)})"
        return None if rows else " holds no rows"  # datasets cannot read such a file
    content = file.read_bytes()
    if file.suffix == ".json" and content.lstrip()[:1] == b"[":
        return _json_fault(content, "")
    for number, line in enumerate(content.splitlines(), start=1):
        found = _json_fault(line, f", line {number}") if line.strip() else None
        if found:
            return found
    return None


def _json_fault(content: bytes, where: str) -> str | None:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"{where}: not UTF-8 text (byte {error.start})"
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if where else f"line {error.lineno}"
        return f"{where}: invalid JSON ({error.msg}, {place})"
    return f"{where}: must be a JSON object" if where and not isinstance(value, Mapping) else None


def _line(error: Exception) -> str:
    """An error's own message on one line, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
