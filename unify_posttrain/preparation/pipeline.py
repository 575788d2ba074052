"""From a source to parquet files: one pass that reads, checks, filters and stages rows, one that deals them to their files."""

from __future__ import annotations

import itertools
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain import __version__
from unify_posttrain.chat import THINKING_FAULTS
from unify_posttrain.preparation.lengths import TokenCounter
from unify_posttrain.preparation.local_rows import Line
from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.prompts import prompt_style
from unify_posttrain.preparation.report import Report
from unify_posttrain.preparation.rows import Reader, RowFault, schema
from unify_posttrain.preparation.sieve import Sieve
from unify_posttrain.preparation.sources import hub_commit, locate, placed_rows
from unify_posttrain.preparation.store import MANIFEST, sha256, up_to_date, write_manifest

logger = logging.getLogger(__name__)

FORMAT = 1  # of the written files; a higher number makes every call rebuild
VALIDATION = "validation"

_NOT_ROWS = ("source", "prompts", "system", "template", "streaming", "chunk_rows", "revision")  # elsewhere, or without effect
_LENGTHS = (
    "chat_template",
    "chat_template_kwargs",
    "max_prompt_length",
    "max_response_length",
    "quantiles",
)  # read only with a tokenizer


@dataclass(frozen=True)
class Recipe:
    """A data set: its readers and the file that its rows go to.

    Attributes:
        readers: for the schemas that the set is published in; the first one whose columns are there is used.
        file: stem of the file of `split`; held-out rows go to `validation`.
        label: what its rows have as `extra_info.split`.
        manifest: name of the manifest, for files of several sets in one folder.
        settings: of this task alone, JSON-ready; part of what a second call compares.
    """

    readers: Sequence[Reader]
    file: str = "train"
    label: str = "train"
    manifest: str = MANIFEST
    settings: Mapping[str, Any] = field(default_factory=dict)


def prepare(folder: Path, options: Options, recipe: Recipe) -> dict[str, Path]:
    """Write the files of a data set and its manifest; nothing to do if they match the settings and the source.

    Args:
        folder: made if missing; files appear in it whole or not at all.
        options: see :class:`~unify_posttrain.preparation.options.Options`.
        recipe: how rows are read.

    Returns:
        {`recipe.file`: path} and, if rows are held out, {"validation": path}.

    Raises:
        ValueError: a source that cannot be read, a missing column, too many faulty rows, or none left; see the package's table.
    """
    source, style = locate(options), prompt_style(options)
    names = [recipe.file] + ([VALIDATION] if options.validation_split or options.validation_rows else [])
    paths = {name: folder / f"{name}.parquet" for name in names}
    texts = {"system": [style.system, style.fill_only], "template": style.template}
    identity = {"format": FORMAT, "settings": {**_identity(options), **texts, **recipe.settings}}
    identity["source"] = source.identity(options.revision)
    if up_to_date(folder / recipe.manifest, identity, paths):
        logger.info("data in %s is up to date", folder)
        return paths
    commit = hub_commit(source.name, options.revision) if source.path is None else None
    counter = (
        None
        if options.tokenizer is None
        else TokenCounter.load(options.tokenizer, options.chat_template, options.chat_template_kwargs)
    )
    if counter is None and options.too_long == "drop":
        logger.warning("prepare.task.tokenizer is null: lengths are not counted and prepare.task.too_long=drop drops nothing")

    def sieve(split: str) -> Sieve:
        return Sieve(f"{source.name}, split {split}", options, style, counter)

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".staging-") as temporary:
        staging = Path(temporary)
        reports = {}
        for split in [options.split] + ([options.validation_split] if options.validation_split else []):
            rows = placed_rows(source, options, split, commit or options.revision)
            reports[split] = _stage(rows, sieve(split), recipe.readers, options, staging / f"staged-{len(reports)}.parquet")
        made = _deal_all(staging, {recipe.file: recipe.label, VALIDATION: VALIDATION}, names, options)
        for name, path in made.items():
            os.replace(path, paths[name])
    if counter is not None:
        for fault, count in counter.thinking.items():
            logger.warning("%s: %d targets %s; %s", source.name, count, *THINKING_FAULTS[fault])
    found = {split: report.as_json(options) for split, report in reports.items()}
    stamp = {"version": __version__, "source_name": source.name, "commit": commit, "report": found}
    sums = {path.name: sha256(path) for path in paths.values()}
    rows_of = {path.name: pq.read_metadata(path).num_rows for path in paths.values()}
    write_manifest(folder / recipe.manifest, {**identity, **stamp, "sha256": sums, "rows": rows_of})
    logger.info("wrote data to %s: %s", folder, rows_of)
    return paths


def _identity(options: Options) -> dict[str, Any]:
    """The settings that decide the rows or the report, JSON-ready."""
    left_out = {*_NOT_ROWS, *(_LENGTHS if options.tokenizer is None else ())}
    values = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in left_out}
    return {key: list(value) if key == "quantiles" else value for key, value in values.items()}


def choose_reader(readers: Sequence[Reader], columns: Sequence[str], name: str) -> Reader:
    """The first reader whose columns are all there.

    Raises:
        ValueError: none; names a column that the nearest one lacks.
    """

    def lacking(reader: Reader) -> list[str]:
        return [column for column in reader.columns if column not in columns and column.split(".")[0] not in columns]

    found = next((reader for reader in readers if not lacking(reader)), None)
    if found is None:
        absent = min((lacking(reader) for reader in readers), key=len)
        raise ValueError(f"{name}: column {absent[0]!r} is missing; present: {', '.join(columns)}")
    return found


def _stage(rows: Iterator[tuple[str, Line]], sieve: Sieve, readers: Sequence[Reader], options: Options, path: Path) -> Report:
    """Write the rows that the sieve lets through, a chunk at a time."""
    head = []
    for place, row in rows:
        head.append((place, row))
        if not isinstance(row, RowFault):
            break
    else:
        found = f"none of {len(head)} rows can be read: {head[0][1]}" if head else "holds no rows"
        raise ValueError(f"{sieve.name}: {found}; check prepare.task.source and prepare.task.split")
    reader = choose_reader(readers, list(row), sieve.name)
    columns = schema(reader.has_hint, reader.images is not None)
    rows = itertools.chain(head, rows)
    with pq.ParquetWriter(path, columns) as writer:
        while chunk := list(itertools.islice(rows, options.chunk_rows)):
            records = sieve.sift(chunk, reader)
            if records:
                writer.write_table(pa.Table.from_pylist(records, schema=columns))
    _check_shares(sieve, options)
    for column, count in sieve.report.media.items():
        logger.warning(
            "%s: %d of %d rows have images, sounds or videos in column %r; the rows that are written are text, without them",
            sieve.name,
            count,
            sieve.report.read,
            column,
        )
    return sieve.report


def _check_shares(sieve: Sieve, options: Options) -> None:
    report = sieve.report
    reasons = ", ".join(f"{count} {reason}" for reason, count in report.dropped.most_common())
    first = f"; first: {report.examples[0]}" if report.examples else ""
    if report.faults > options.max_bad_share * report.read:
        raise ValueError(
            f"{sieve.name}: {report.faults} of {report.read} rows are faulty ({reasons}), more than "
            f"prepare.task.max_bad_share={options.max_bad_share}; mend the source or raise it{first}"
        )
    if not report.kept:
        raise ValueError(f"{sieve.name}: none of {report.read} rows can be used ({reasons}); check the source{first}")


def _deal_all(staging: Path, labels: Mapping[str, str], names: Sequence[str], options: Options) -> dict[str, Path]:
    """Deal the staged rows to one file per name, in ``staging``; their rows are labelled as ``labels`` says."""
    made = {name: staging / f"{name}.parquet" for name in names}
    staged = sorted(staging.glob("staged-*.parquet"))
    if len(staged) == len(names):  # every split has its own file
        for source, (name, path) in zip(staged, made.items(), strict=True):
            _deal(source, {name: path}, labels, lambda number, name=name: name, options.chunk_rows)
        return made
    total, held_out = pq.read_metadata(staged[0]).num_rows, options.validation_rows
    if held_out >= total:
        raise ValueError(f"prepare.task.validation_rows={held_out}, but only {total} rows can be used; hold out fewer")
    validation = set(random.Random(options.seed).sample(range(total), held_out))
    _deal(staged[0], made, labels, lambda number: VALIDATION if number in validation else names[0], options.chunk_rows)
    return made


def _deal(
    source: Path, made: Mapping[str, Path], labels: Mapping[str, str], name_of: Callable[[int], str], chunk_rows: int
) -> None:
    """Copy rows to the files that ``name_of`` says, numbering them there."""
    with pq.ParquetFile(source) as staged:
        columns = staged.schema_arrow
        writers = {name: pq.ParquetWriter(path, columns) for name, path in made.items()}
        written, seen = dict.fromkeys(made, 0), 0
        try:
            for batch in staged.iter_batches(batch_size=chunk_rows):
                names = np.array([name_of(number) for number in range(seen, seen + batch.num_rows)])
                seen += batch.num_rows
                for name, writer in writers.items():
                    part = pa.Table.from_batches([batch]).filter(pa.array(names == name))
                    if part.num_rows:
                        writer.write_table(_numbered(part, labels[name], written[name]))
                        written[name] += part.num_rows
        finally:
            for writer in writers.values():
                writer.close()


def _numbered(table: pa.Table, label: str, start: int) -> pa.Table:
    """Fill in `extra_info.index` and `extra_info.split`."""
    place = table.schema.get_field_index("extra_info")
    details = table.schema.field(place)
    old = dict(zip([item.name for item in details.type], table.column(place).combine_chunks().flatten(), strict=True))
    old["index"] = pa.array(range(start, start + table.num_rows), pa.int64())
    old["split"] = pa.array([label] * table.num_rows, pa.string())
    return table.set_column(place, details, pa.StructArray.from_arrays(list(old.values()), fields=list(details.type)))
