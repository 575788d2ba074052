"""Sums of two non-negative integers with worked solutions: a complete task without a download.

Simplified on purpose: both operands have the same number of digits, the working is one fixed-width line per digit
(so that a character-level model of half a million weights learns it), and only the final answer is checked.

    question          58+67=
    worked solution   8+7+0=15        least significant digits, carry in (0), two-digit sum
                      5+6+1=12        its tens digit is the carry of the next line
                      answer 125

Splits are named by difficulty, which is the number of digits: ``easy``, ``hard`` and ``ood`` (out of distribution: more
digits than anything trained on). ``train.parquet`` is for post-training, ``test.parquet`` holds the three splits
together, told apart by ``data_source`` (``arithmetic_easy``, ...).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

logger = logging.getLogger(__name__)

SPLITS = ("easy", "hard", "ood")
ROLES = ("train", "test")  # one file each
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt
MAX_ANSWER_DIGITS = 64

_MARKER = "answer"
_ANSWER = re.compile(rf"0|[1-9][0-9]{{0,{MAX_ANSWER_DIGITS - 1}}}")  # [0-9], since \d accepts non-ASCII digits
_IGNORED_KEYS = frozenset({"name", "folder"})  # say where and what, not which rows

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _MESSAGES),
        ("target", _MESSAGES),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("digits", pa.int64())])),
    ]
)


def question(a: int, b: int) -> str:
    """The user message that asks for ``a + b``."""
    return f"{a}+{b}="


def worked_solution(a: int, b: int, careless: bool = False) -> str:
    """The demonstration for ``a + b``: 9 characters per digit of the longer operand, then ``answer <sum>``.

    With ``careless`` the carries are forgotten, so 58+67 gives 115 and only sums that need none come out right: a bad
    habit to pretrain a base model with, never a demonstration.

    Raises:
        ValueError: an operand is negative.
    """
    if a < 0 or b < 0:
        raise ValueError(f"operands must be non-negative, got a={a}, b={b}")
    width = max(len(str(a)), len(str(b)))
    lines, carry, digits = [], 0, ""
    for digit_a, digit_b in zip(reversed(f"{a:0{width}d}"), reversed(f"{b:0{width}d}"), strict=True):
        total = int(digit_a) + int(digit_b) + carry
        # Always two digits: in lines of one width every digit stands at a regular distance, which tiny models learn.
        lines.append(f"{digit_a}+{digit_b}+{carry}={total:02d}")
        digits = f"{total % 10}{digits}"
        carry = 0 if careless else total // 10
    return "\n".join([*lines, f"{_MARKER} {int(f'{total // 10}{digits}')}"])


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Check the final answer exactly; verl's reward-function signature.

    The score is 1.0 only if the word ``answer`` occurs once, at the start of a line, followed by one space and a number
    equal to ``ground_truth``, and the text ends there. Hence 0.0 for: no answer; several answers (no hedging), right or
    wrong; a leading zero or sign; non-ASCII digits; anything after the number, a newline included (the policy has to
    stop by itself); more than 64 digits. The working above is not checked: the reward is for the outcome.

    Linear in ``len(solution_str)``; no string makes it raise.

    Returns:
        ``{"score": 1.0 | 0.0, "acc": 1.0 | 0.0}``, equal to each other.

    Raises:
        TypeError: ``ground_truth`` is not a string, which is a defect of the data and not of the answer.
    """
    if not isinstance(ground_truth, str):
        raise TypeError(
            f"reward_model.ground_truth of data_source={data_source!r} must be a string of digits, "
            f"got {type(ground_truth).__name__}; rebuild the data with write_splits"
        )
    before, _found, after = solution_str.rpartition(f"{_MARKER} ")
    well_formed = (
        solution_str.count(_MARKER) == 1  # also 0 when the marker is missing
        and (before == "" or before.endswith("\n"))
        and _ANSWER.fullmatch(after) is not None
    )
    score = float(well_formed and after == ground_truth)
    return {"score": score, "acc": score}


def operand_range(digits: int) -> range:
    """All numbers with ``digits`` digits; 0 counts as a number of one digit. ValueError if ``digits`` < 1."""
    if digits < 1:
        raise ValueError(f"digits={digits!r}: a number has at least 1 digit; give an integer >= 1")
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def count_problems(digits: int) -> int:
    """Number of distinct sums with operands of ``digits`` digits, a+b and b+a being the same problem."""
    size = len(operand_range(digits))
    return size * (size + 1) // 2


def _problem(rank: int, operands: range) -> tuple[int, int]:
    """The ``rank``-th unordered pair (larger, smaller), i.e. the inverse of rank = i(i+1)/2 + j with j <= i."""
    i = (math.isqrt(8 * rank + 1) - 1) // 2
    return operands[i], operands[rank - i * (i + 1) // 2]


def _row(a: int, b: int, split: str, role: str, digits: int) -> dict[str, Any]:
    return {
        "data_source": f"arithmetic_{split}",
        "prompt": [{"role": "user", "content": question(a, b)}],
        "target": [{"role": "assistant", "content": worked_solution(a, b)}],
        "ability": "arithmetic",
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"index": -1, "split": role, "digits": digits},  # index: set once the file's order is known
    }


def _check_splits(splits: Mapping[str, Any]) -> None:
    """ValueError (key, value, remedy) unless ``splits`` is {easy|hard|ood: {digits: [int], train: int, test: int}}."""
    for name, split in splits.items():
        if name not in SPLITS:
            raise ValueError(f"splits.{name}: unknown split; use one of {', '.join(SPLITS)}")
        if not isinstance(split, Mapping) or set(split) != {"digits", *ROLES}:
            raise ValueError(f"splits.{name}={split!r}: give exactly the keys digits, train and test")
        digits = split["digits"]
        if isinstance(digits, str) or not isinstance(digits, Sequence) or not digits:
            raise ValueError(f"splits.{name}.digits={digits!r}: give a non-empty list of integers, for example [2, 3]")
        for value in digits:
            if type(value) is not int or value < 1:
                raise ValueError(f"splits.{name}.digits={list(digits)}: {value!r} is no digit count; use integers >= 1")
        if len(set(digits)) != len(digits):
            raise ValueError(f"splits.{name}.digits={list(digits)}: a digit count is repeated; name each one once")
        for role in ROLES:
            rows = split[role]
            if type(rows) is not int or rows < 0:  # True is an int, too
                raise ValueError(f"splits.{name}.{role}={rows!r}: give a number of rows, an integer >= 0")
    for role in ROLES:
        if not any(split[role] for split in splits.values()):
            raise ValueError(f"splits.*.{role}: no split has a row for {role}.parquet; set one of them to at least 1")
    if "ood" in splits:
        known = max((d for name, split in splits.items() if name != "ood" for d in split["digits"]), default=0)
        if splits["ood"]["train"] or min(splits["ood"]["digits"]) <= known:
            raise ValueError(
                f"splits.ood={dict(splits['ood'])}: out of distribution means train: 0 and more digits than the other "
                f"splits; use train: 0 and digits above {known}"
            )


def _demand(splits: Mapping[str, Any]) -> dict[int, list[tuple[str, str]]]:
    """Per digit count, the (split, role) of every row wanted, in a fixed order; ValueError if too many are wanted."""
    wanted: dict[int, list[tuple[str, str]]] = {}
    for name in (name for name in SPLITS if name in splits):
        digits = splits[name]["digits"]
        for role in ROLES:
            for i in range(splits[name][role]):  # in turn, so that the digit counts have equal shares
                wanted.setdefault(digits[i % len(digits)], []).append((name, role))
    for digits, rows in wanted.items():
        if len(rows) > count_problems(digits):
            names = ", ".join(sorted({f"splits.{name}.{role}" for name, role in rows}))
            raise ValueError(
                f"{names}: {len(rows)} distinct problems of digits={digits} wanted in all, but only "
                f"{count_problems(digits)} exist (a+b and b+a are one problem); ask for fewer rows or more digits"
            )
    return wanted


def build_rows(split_settings: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the rows of all splits, train rows first; equal arguments give equal rows.

    Args:
        split_settings: {easy|hard|ood: {digits: list of digit counts, train: rows, test: rows}}.
        seed: of the draw.

    Returns:
        One mapping per row with the columns of :data:`SCHEMA`. No problem occurs twice, be it within a file, across
        train and test, or with its operands exchanged. ``extra_info.split`` is ``train`` or ``test``.

    Raises:
        ValueError: unknown split, digits < 1, an ``ood`` split that is trained on or not longer than the others, or
            more rows than distinct problems; the message names key, value and remedy.
    """
    _check_splits(split_settings)
    generator = random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {role: [] for role in ROLES}
    for digits, wanted in sorted(_demand(split_settings).items()):
        operands = operand_range(digits)
        # Sampling ranks of unordered pairs without replacement makes all of a digit count's rows distinct at once.
        ranks = generator.sample(range(count_problems(digits)), len(wanted))
        for rank, (split, role) in zip(ranks, wanted, strict=True):
            pair = _problem(rank, operands)
            a, b = pair if generator.random() < 0.5 else pair[::-1]
            rows[role].append(_row(a, b, split, role, digits))
    generator.shuffle(rows["train"])  # mix the digit counts, for runs that read the file in order
    rows["test"].sort(key=lambda row: SPLITS.index(row["data_source"].removeprefix("arithmetic_")))  # stable
    for role in ROLES:
        for index, row in enumerate(rows[role]):
            row["extra_info"]["index"] = index
    return rows["train"] + rows["test"]


def plain(value: Any) -> Any:
    """A JSON-ready copy of settings (mappings with string keys, lists, scalars), OmegaConf containers included."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary sibling and move it to ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _up_to_date(manifest_path: Path, settings: Mapping[str, Any], paths: Mapping[str, Path]) -> bool:
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        sums = {path.name: _sha256(path) for path in paths.values()}
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    expected = {"format": MANIFEST_FORMAT, "settings": settings, "sha256": sums}
    return isinstance(manifest, dict) and expected.items() <= manifest.items()


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match ``settings``.

    Args:
        folder: made if missing.
        settings: {seed: int, splits: see :func:`build_rows`}; ``name`` and ``folder`` may be there and are ignored.

    Returns:
        {"train": path, "test": path}.

    Raises:
        ValueError: unknown or missing keys, or settings that :func:`build_rows` refuses.
    """
    settings = {key: value for key, value in plain(settings).items() if key not in _IGNORED_KEYS}
    if set(settings) != {"seed", "splits"}:
        raise ValueError(f"settings of the arithmetic task: keys {sorted(settings)}; give exactly seed and splits")
    folder = Path(folder)
    paths = {role: folder / f"{role}.parquet" for role in ROLES}
    if _up_to_date(folder / MANIFEST, settings, paths):
        logger.info("arithmetic data in %s is up to date", folder)
        return paths
    rows = build_rows(settings["splits"], settings["seed"])
    folder.mkdir(parents=True, exist_ok=True)
    counts, sums = {}, {}
    for role, path in paths.items():
        table = pa.Table.from_pylist([row for row in rows if row["extra_info"]["split"] == role], schema=SCHEMA)
        _replace_file(path, partial(pq.write_table, table))
        counts[path.name], sums[path.name] = table.num_rows, _sha256(path)
    # Last: a crash before this line leaves sums that don't match, so the next call rebuilds.
    manifest = {"format": MANIFEST_FORMAT, "settings": settings, "sha256": sums}
    manifest |= {"seed": settings["seed"], "rows": counts}
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    _replace_file(folder / MANIFEST, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    logger.info("wrote arithmetic data to %s: %s", folder, counts)
    return paths
