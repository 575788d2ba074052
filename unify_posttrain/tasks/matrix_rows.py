"""Rows of matrices: determinants and ranks to train on, and four sources of test rows: det_id, det_ood, rank_id, rank_ood."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.tasks import files
from unify_posttrain.tasks.matrices import determinant, rank

KEY, NAME = "prepare.task", "matrices"
TRAIN = ("train_det", "train_rank")
SOURCES = ("det_id", "det_ood", "rank_id", "rank_ood")
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt
TRIES = 1000  # draws per row: what is not allowed, or there already, is drawn again
SCHEMA = files.schema(answer=pa.int64(), symmetric=pa.bool_())

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Settings:
    """The node `prepare.task` of matrices; conf/task/matrices.yaml has the meanings.

    Raises:
        ValueError: a value of a wrong type; names key, value and remedy.
    """

    seed: int
    entries: Mapping[str, int]
    factor_entries: int
    rows: Mapping[str, int]

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise ValueError(f"{KEY}.seed={self.seed!r}: give an integer")
        for key, known, least in (("entries", ("det_id", "det_ood"), 1), ("rows", (*TRAIN, *SOURCES), 0)):
            given = getattr(self, key)
            if not isinstance(given, Mapping) or set(given) != set(known):
                raise ValueError(f"{KEY}.{key}={given}: give exactly {', '.join(known)}")
            for name, value in given.items():
                if type(value) is not int or value < least:
                    raise ValueError(f"{KEY}.{key}.{name}={value!r}: give an integer of at least {least}")
        if type(self.factor_entries) is not int or self.factor_entries < 1:
            raise ValueError(f"{KEY}.factor_entries={self.factor_entries!r}: give an integer of at least 1")
        if not sum(self.rows[name] for name in TRAIN) or not sum(self.rows[name] for name in SOURCES):
            raise ValueError(f"{KEY}.rows={dict(self.rows)}: train.parquet and test.parquet need at least one row each")

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Settings:
        """From the configuration."""
        return cls(**files.row_settings(NAME, node, [item.name for item in fields(cls)]))


def random_matrix(generator: random.Random, rows: int, columns: int, largest: int) -> Matrix:
    """Entries from -largest to largest."""
    return tuple(tuple(generator.randint(-largest, largest) for _ in range(columns)) for _ in range(rows))


def symmetric_matrix(generator: random.Random, size: int, largest: int) -> Matrix:
    """The same, equal to its transpose."""
    drawn = random_matrix(generator, size, size, largest)
    return tuple(tuple(drawn[max(row, column)][min(row, column)] for column in range(size)) for row in range(size))


def product_of_rank(generator: random.Random, rows: int, columns: int, wanted: int, largest: int) -> Matrix:
    """A matrix of this rank: the product of two factors of full rank."""
    if not wanted:
        return ((0,) * columns,) * rows
    left = _full(generator, rows, wanted, largest)
    right = _full(generator, wanted, columns, largest)
    return tuple(tuple(sum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*right, strict=True)) for row in left)


def _full(generator: random.Random, rows: int, columns: int, largest: int) -> Matrix:
    for _ in range(TRIES):
        drawn = random_matrix(generator, rows, columns, largest)
        if rank(drawn) == min(rows, columns):
            return drawn
    raise AssertionError("random matrices have full rank nearly always")


def question(kind: str, matrix: Sequence[Sequence[int]]) -> str:
    """The message of the user."""
    what = "determinant" if kind == "det" else "rank"
    return (
        f"Compute the {what} of this matrix.\n{json.dumps([list(row) for row in matrix])}\n"
        'Answer with a JSON object and nothing besides; its key "answer" holds the result as an integer.'
    )


def _row(source: str, split: str, index: int, matrix: Matrix) -> files.Row:
    kind = "det" if "det" in source else "rank"
    found = determinant(matrix) if kind == "det" else rank(matrix)
    symmetric = matrix == tuple(zip(*matrix, strict=True))
    truth = json.dumps({"question": kind, "matrix": matrix})
    row = files.make_row(NAME, question(kind, matrix), json.dumps({"answer": found}), truth, answer=found, symmetric=symmetric)
    row["data_source"] = f"{kind}_train" if split == "train" else source
    row["extra_info"] |= {"index": index, "split": split}
    return row


def build_rows(settings: Settings) -> list[files.Row]:
    """All rows, train rows first; equal settings give equal rows. No matrix is in both files, the zero matrix of rank 0 excepted.

    Raises:
        ValueError: more rows than distinct matrices can be found.
    """
    seen: set[Matrix] = set()
    made: list[files.Row] = []
    for split, names in (("train", TRAIN), ("test", SOURCES)):
        drawn = [(name, matrix) for name in names for matrix in _matrices(settings, name, seen)]
        if split == "train":
            random.Random(settings.seed).shuffle(drawn)  # both questions mixed, for runs that read the file in order
        made += [_row(name, split, index, matrix) for index, (name, matrix) in enumerate(drawn)]
    return made


def _matrices(settings: Settings, name: str, seen: set[Matrix]) -> list[Matrix]:
    generator = random.Random(f"{settings.seed}-{name}")
    draw = _drawer(settings, name, generator)
    found: list[Matrix] = []
    for number in range(settings.rows[name]):
        for _ in range(TRIES):
            matrix = draw(number)
            if "det" in name and not determinant(matrix):
                continue
            if matrix not in seen or not any(map(any, matrix)):
                break
        else:
            raise ValueError(f"{KEY}.rows.{name}={settings.rows[name]}: no further matrices are found; ask for fewer")
        seen.add(matrix)
        found.append(matrix)
    return found


def _drawer(settings: Settings, name: str, generator: random.Random) -> Callable[[int], Matrix]:
    """Draws the matrix of a row, by its number."""
    largest, factors = settings.entries, settings.factor_entries
    if name in ("train_det", "det_id"):
        return lambda number: random_matrix(generator, 2, 2, largest["det_id"])
    if name == "det_ood":
        return lambda number: (
            symmetric_matrix(generator, 3, largest[name]) if number % 2 else random_matrix(generator, 3, 3, largest[name])
        )
    rows, columns = (5, 4) if name == "rank_ood" else (4, 5)
    return lambda number: product_of_rank(generator, rows, columns, number % 5, factors)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match the settings.

    Raises:
        ValueError: settings that are refused.
    """
    read = Settings.from_node(settings)
    identity = {"format": MANIFEST_FORMAT, "settings": files.row_settings(NAME, settings, [item.name for item in fields(Settings)])}
    return files.write_files(folder, identity, SCHEMA, lambda: build_rows(read))
