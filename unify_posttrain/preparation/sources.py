"""Where rows come from: a data set on the hub, a folder, or one file.

Nothing runs code of the data set. Of a local source exactly the files of the splits that are asked for are read, and these files
are what the manifest holds the digests of. A data set on the hub is read through `datasets`, whose version 4 has no loading scripts
any more; its files must be its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unify_posttrain.preparation.local_rows import Line, check_archive, rows_of
from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.splits import named_files, split_files
from unify_posttrain.preparation.store import sha256
from unify_posttrain.untrusted.folders import leads_out

logger = logging.getLogger(__name__)

FORMATS = (".parquet", ".json", ".jsonl")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A located source.

    Attributes:
        name: as the user gave it.
        path: the local file or folder; None: `name` is a data set on the hub.
        splits: split -> its local files, in the order in which they are read; of a single file, whatever split is asked for.
    """

    name: str
    path: Path | None = None
    splits: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def identity(self, revision: str | None) -> dict[str, Any]:
        """What a second call compares: digests of what is read, or name and revision on the hub. Never asks the network."""
        if self.path is None:
            return {"hub": self.name, "revision": revision}
        if self.path.is_file():
            return {"files": {self.path.name: sha256(self.path)}}
        root = self.path.resolve()
        files = dict.fromkeys(file for files in self.splits.values() for file in files)
        found: dict[str, Any] = {"files": {str(file.relative_to(root)): sha256(file) for file in sorted(files)}}
        # Which file belongs to which split decides the rows, too, and may be changed by the README alone.
        found["splits"] = {split: [str(file.relative_to(root)) for file in files] for split, files in self.splits.items()}
        return found


def locate(options: Options) -> Source:
    """Find `prepare.task.source`.

    Raises:
        ValueError: neither an existing file or folder nor a name on the hub; an unknown format; an empty file; an archive; a
            folder without data, or one whose README or links lead out of it; a split that is not there.
    """
    path = Path(options.source).expanduser()
    if path.is_file():
        _check_file(path)
        if options.validation_split:
            raise ValueError(
                f"prepare.task.validation_split={options.validation_split}: the file {options.source} has one split; set it to "
                "null and prepare.task.validation_rows to the rows to hold out, or give a folder"
            )
        return Source(options.source, path, {options.split: (path,)})
    if path.is_dir():
        return Source(options.source, path, _splits(path, options))
    if HUB_NAME.fullmatch(options.source) and path.suffix not in FORMATS and not options.source.startswith("."):
        return Source(options.source)
    raise ValueError(
        f"prepare.task.source={options.source} does not exist; give a file ({_formats()}), a folder of them, or a name on the hub "
        "(owner/name)"
    )


def hub_commit(name: str, revision: str | None) -> str | None:
    """The commit that a revision stands for now, so that every read sees the same data; None if the hub cannot be asked.

    Raises:
        ValueError: the data set's README names files elsewhere, of this machine or of other places, for `datasets` to read.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(name, revision=revision)
    except OSError as error:  # no network, or the hub refuses: loading from the local cache may still work, or says more
        logger.warning("the commit of %s on the hub is unknown (%s); the revision is recorded as given", name, _line(error))
        return None
    card = getattr(info, "card_data", None)
    check_card(name, [] if card is None else card.to_dict().get("configs") or [])
    return info.sha


def check_card(name: str, sets: Any) -> None:
    """ValueError unless what a card says of a data set's files, its `configs`, are names of files of the data set."""
    for pattern in named_files(sets):
        if leads_out(pattern):
            raise ValueError(
                f"prepare.task.source={name}: its README names {pattern!r}, which is none of its files and is not read; download "
                "the files that you want, and give their folder"
            )


def placed_rows(source: Source, options: Options, split: str, revision: str | None) -> Iterator[tuple[str, Line]]:
    """(place, row or what is wrong with it) of one split, in order. The place is the position, after the file of a folder.

    Raises:
        ValueError: the source cannot be read; for local files with the file and, for JSON, the line at fault.
    """
    if source.path is None:
        yield from ((f"row {number}", row) for number, row in enumerate(_hub_rows(source, options, split, revision)))
        return
    root = source.path.resolve()
    for file, number, row in rows_of(source.splits[split], options.chunk_rows):
        yield f"row {number}" if source.path.is_file() else f"{file.relative_to(root)}, row {number}", row


def _hub_rows(source: Source, options: Options, split: str, revision: str | None) -> Iterator[Line]:
    from datasets import load_dataset

    try:
        rows = load_dataset(source.name, options.config_name, split=split, revision=revision, streaming=options.streaming)
        yield from undecoded(rows)
    except Exception as error:  # datasets raises a dozen kinds of errors for what it cannot find or parse
        raise ValueError(f"prepare.task.source={source.name}, split {split}: cannot be read: {_line(error)}") from error


def undecoded(rows: Any) -> Any:
    """A data set whose columns of images and sounds stay what is stored: decoding opens the path or address that a row names."""
    for name, kind in (getattr(rows, "features", None) or {}).items():
        stored = _stored(kind)
        if stored != kind:
            rows = rows.cast_column(name, stored)
    return rows


def _stored(kind: Any) -> Any:
    """A type of `datasets` without decoding, at any depth."""
    if isinstance(kind, dict):
        return {name: _stored(each) for name, each in kind.items()}
    if isinstance(kind, list):
        return [_stored(each) for each in kind]
    if hasattr(kind, "feature"):
        return replace(kind, feature=_stored(kind.feature))
    return replace(kind, decode=False) if getattr(kind, "decode", False) else kind


def _splits(folder: Path, options: Options) -> dict[str, tuple[Path, ...]]:
    """The files of the splits that are asked for."""
    there = split_files(folder, options.config_name, FORMATS)
    if not there:
        raise ValueError(f"prepare.task.source={folder}: the folder holds no {_formats()} file; check the path")
    wanted = {"split": options.split, **({"validation_split": options.validation_split} if options.validation_split else {})}
    for key, split in wanted.items():
        if split not in there:
            raise ValueError(f"prepare.task.{key}={split}: {folder} has {', '.join(there)}; choose one of them")
        for file in there[split]:
            _check_file(file)
    return {split: there[split] for split in wanted.values()}


def _check_file(path: Path) -> None:
    if path.suffix not in FORMATS:
        raise ValueError(f"prepare.task.source={path}: the format must be {_formats()}")
    if not path.stat().st_size:
        raise ValueError(f"prepare.task.source: {path} is empty; write it again")
    check_archive(path)


def _formats() -> str:
    return " or ".join(FORMATS)


def _line(error: Exception) -> str:
    """An error's own message on one line, shortened."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
