"""What all generated tasks share: the columns, the checks of their settings, the order of rows, and the files.

A task is a folder with ``train.parquet`` (for post-training), ``test.parquet`` (all splits together, told apart by
``data_source``, e.g. ``arithmetic_easy``) and ``manifest.json``. Splits are named by difficulty: ``easy``, ``hard`` and
``ood`` (out of distribution: more difficult than anything trained on). What makes a problem difficult is one integer, its
level: the digits of a sum, how many numbers a formula has to use.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from unify_posttrain.preparation.store import MANIFEST, replace_file, sha256, up_to_date, write_manifest

logger = logging.getLogger(__name__)

SPLITS = ("easy", "hard", "ood")
ROLES = ("train", "test")  # one file each

_IGNORED_KEYS = frozenset({"name", "folder"})  # say where and what, not which rows

Problem = TypeVar("Problem")
Row = dict[str, Any]


def schema(**extra_info: pa.DataType) -> pa.Schema:
    """The columns of a task: verl's, ``target`` (the demonstration), ``hint`` (the same, sentence by sentence).

    Args:
        extra_info: fields of ``extra_info`` beyond ``index`` (position in the file) and ``split`` (train or test).
    """
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", messages),
            ("target", messages),
            ("hint", pa.list_(pa.string())),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), *extra_info.items()])),
        ]
    )


def make_row(ability: str, question: str, solution: str, ground_truth: str, **extra_info: Any) -> Row:
    """A row without its place (``data_source``, index, split), which :func:`build_rows` fills in.

    ``hint`` holds the lines of ``solution``, each with its newline, so that any first lines joined are a prefix of it.
    """
    return {
        "data_source": "",
        "prompt": [{"role": "user", "content": question}],
        "target": [{"role": "assistant", "content": solution}],
        "hint": solution.splitlines(keepends=True),
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
        "extra_info": {"index": -1, "split": "", **extra_info},
    }


@dataclass(frozen=True)
class Level:
    """The setting that says how difficult a split is: a list of integers under ``key``.

    Attributes:
        key: ``digits`` or ``numbers``, in messages also the plural of what is counted.
        noun: one such count, for messages.
        minimum, maximum: the values a task can make problems for; no upper end if None.
    """

    key: str
    noun: str
    minimum: int
    maximum: int | None = None

    @property
    def accepted(self) -> str:
        """The values in words."""
        return f">= {self.minimum}" if self.maximum is None else f"from {self.minimum} to {self.maximum}"

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` is an integer in range; True and 1.0 are none."""
        return type(value) is int and self.minimum <= value and (self.maximum is None or value <= self.maximum)

    def check(self, splits: Mapping[str, Any]) -> None:
        """ValueError (key, value, remedy) unless ``splits`` is {easy|hard|ood: {<key>: [int], train: int, test: int}}."""
        for name, split in splits.items():
            self._check_split(name, split)
        for role in ROLES:
            if not any(split[role] for split in splits.values()):
                raise ValueError(f"splits.*.{role}: no split has a row for {role}.parquet; set one of them to at least 1")
        if "ood" in splits:
            known = max((level for name, split in splits.items() if name != "ood" for level in split[self.key]), default=0)
            if splits["ood"]["train"] or min(splits["ood"][self.key]) <= known:
                raise ValueError(
                    f"splits.ood={dict(splits['ood'])}: out of distribution means train: 0 and more {self.key} than the other "
                    f"splits; use train: 0 and {self.key} above {known}"
                )

    def _check_split(self, name: str, split: Any) -> None:
        if name not in SPLITS:
            raise ValueError(f"splits.{name}: unknown split; use one of {', '.join(SPLITS)}")
        if not isinstance(split, Mapping) or set(split) != {self.key, *ROLES}:
            raise ValueError(f"splits.{name}={split!r}: give exactly the keys {self.key}, train and test")
        levels, where = split[self.key], f"splits.{name}.{self.key}"
        if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
            raise ValueError(f"{where}={levels!r}: give a non-empty list of integers, for example [{self.minimum}]")
        for value in levels:
            if not self.accepts(value):
                raise ValueError(f"{where}={list(levels)}: {value!r} is no {self.noun}; use integers {self.accepted}")
        if len(set(levels)) != len(levels):
            raise ValueError(f"{where}={list(levels)}: a {self.noun} is repeated; name each one once")
        for role in ROLES:
            rows = split[role]
            if type(rows) is not int or rows < 0:  # True is an int, too
                raise ValueError(f"splits.{name}.{role}={rows!r}: give a number of rows, an integer >= 0")

    def demand(self, splits: Mapping[str, Any]) -> dict[int, list[tuple[str, str]]]:
        """Per level, lowest first, the (split, role) of every row wanted, in a fixed order."""
        wanted: dict[int, list[tuple[str, str]]] = {}
        for name in (name for name in SPLITS if name in splits):
            levels = splits[name][self.key]
            for role in ROLES:
                for i in range(splits[name][role]):  # in turn, so that the levels have equal shares
                    wanted.setdefault(levels[i % len(levels)], []).append((name, role))
        return dict(sorted(wanted.items()))


def build_rows(
    task: str,
    splits: Mapping[str, Any],
    seed: int,
    level: Level,
    available: Callable[[int], int],
    draw: Callable[[random.Random, int, int], list[Problem]],
    row: Callable[[int, Problem], Row],
) -> list[Row]:
    """Draw the rows of all splits, train rows first; equal arguments give equal rows.

    Args:
        task: prefix of ``data_source``.
        splits: {easy|hard|ood: {<level.key>: list of levels, train: rows, test: rows}}.
        seed: of the draw.
        available: level -> number of distinct problems.
        draw: (generator, level, count) -> ``count`` distinct problems.
        row: (level, problem) -> its row, see :func:`make_row`.

    Raises:
        ValueError: settings that ``level`` refuses, or more rows than distinct problems.
    """
    level.check(splits)
    generator = random.Random(seed)
    rows: dict[str, list[Row]] = {role: [] for role in ROLES}
    for value, wanted in level.demand(splits).items():
        if len(wanted) > available(value):
            names = ", ".join(sorted({f"splits.{name}.{role}" for name, role in wanted}))
            raise ValueError(
                f"{names}: {len(wanted)} distinct problems of {level.key}={value} wanted in all, but only "
                f"{available(value)} exist (the order of numbers makes no difference); ask for fewer rows or more {level.key}"
            )
        # One draw for all rows of a level, of whatever split and role, makes them distinct at once.
        for problem, (split, role) in zip(draw(generator, value, len(wanted)), wanted, strict=True):
            made = row(value, problem)
            made["data_source"], made["extra_info"]["split"] = f"{task}_{split}", role
            rows[role].append(made)
    generator.shuffle(rows["train"])  # mix the levels, for runs that read the file in order
    rows["test"].sort(key=lambda made: SPLITS.index(made["data_source"].removeprefix(f"{task}_")))  # stable
    for role in ROLES:
        for index, made in enumerate(rows[role]):
            made["extra_info"]["index"] = index
    return rows["train"] + rows["test"]


def shares_by_level(level: Level, settings: Mapping[str, Any]) -> tuple[dict[int, float], dict[int, float]]:
    """The two settings of pretraining examples: share of each level, and share of careless solutions per level.

    Args:
        settings: {<level.key>: {level: share}, careless: {level: share}}; keys may be strings, as JSON makes them.

    Raises:
        ValueError: a level out of range, a negative share, no positive one, or a careless level without examples.
    """
    shares, careless = ({int(value): share for value, share in settings[key].items()} for key in (level.key, "careless"))
    where = f"pretraining.{level.key}={shares}"
    if not shares or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(f"{where}: give {{{level.noun}: share}} with shares >= 0, one above 0")
    for value in shares:
        if not level.accepts(value):
            raise ValueError(f"{where}: {value} is no {level.noun}; use integers {level.accepted}")
    if not set(careless) <= set(shares) or any(not 0 <= share <= 1 for share in careless.values()):
        raise ValueError(
            f"pretraining.careless={careless}: give {{{level.noun}: share of careless solutions, 0 to 1}} "
            f"for counts that are in pretraining.{level.key}"
        )
    return shares, careless


def plain(value: Any) -> Any:
    """A JSON-ready copy of settings (mappings with string keys, lists, scalars), OmegaConf containers included."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def row_settings(task: str, settings: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A plain copy of what decides the rows, without ``name`` and ``folder``; ValueError unless its keys are ``keys``."""
    settings = {key: value for key, value in plain(settings).items() if key not in _IGNORED_KEYS}
    if set(settings) != set(keys):
        raise ValueError(f"settings of the {task} task: keys {sorted(settings)}; give exactly {' and '.join(keys)}")
    return settings


def write_files(folder: Path, identity: Mapping[str, Any], columns: pa.Schema, rows: Callable[[], list[Row]]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match ``identity``.

    Args:
        folder: made if missing.
        identity: JSON-ready; files of an equal one are kept. Holds what decides the rows: settings and format.
        columns: see :func:`schema`.
        rows: called if the files have to be written.

    Returns:
        {"train": path, "test": path}.
    """
    folder = Path(folder)
    paths = {role: folder / f"{role}.parquet" for role in ROLES}
    if up_to_date(folder / MANIFEST, identity, paths):
        logger.info("data in %s is up to date", folder)
        return paths
    made = rows()
    folder.mkdir(parents=True, exist_ok=True)
    counts, sums = {}, {}
    for role, path in paths.items():
        table = pa.Table.from_pylist([row for row in made if row["extra_info"]["split"] == role], schema=columns)
        replace_file(path, partial(pq.write_table, table))
        counts[path.name], sums[path.name] = table.num_rows, sha256(path)
    # Last: a crash before this line leaves sums that don't match, so the next call rebuilds.
    write_manifest(folder / MANIFEST, {**identity, "sha256": sums, "rows": counts})
    logger.info("wrote data to %s: %s", folder, counts)
    return paths
