"""OpenR1-Math: competition problems with reasoning traces of DeepSeek-R1; training data of LUFFY and HPT.

Two sources, told apart by their columns:

- `Elliott/Openr1-Math-46k-8192` (hub): LUFFY's selection, already in verl's columns, one trace per problem in `target`.
- `open-r1/OpenR1-Math-220k` (hub; configurations default, extended, all; split train; columns problem, answer, uuid, source,
  problem_type, generations, is_reasoning_complete, correctness_math_verify, …): the same data before selection. LUFFY's filter
  (arXiv 2504.14945): a trace that is complete, that math-verify accepts, and of at most 8192 tokens. The length is counted here
  with the end token, as the trainer does, and needs `prepare.task.tokenizer`. The first such trace is `target`, all are
  `target_lst`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.options import read_options
from unify_posttrain.preparation.pipeline import Recipe, prepare
from unify_posttrain.preparation.rows import FAILED_VERIFICATION, INCOMPLETE_TRACE, MALFORMED, Candidate, Reader, Row, RowFault
from unify_posttrain.preparation.verl_rows import COLUMNS, read_verl_row

DATA_SOURCE = "openr1_math"
FLAGS = ("is_reasoning_complete", "correctness_math_verify")  # one value per trace, in the order the filter asks


def read_traces(row: Row) -> Candidate:
    """A row of OpenR1-Math-220k; raises RowFault if no trace is complete, or none of those is verified."""
    texts = rows.targets(row["generations"], "generations")
    traces = list(row["generations"] or [])
    flags = [_flags(row, column, len(traces)) for column in FLAGS]
    verdicts = [
        None if complete and verified else FAILED_VERIFICATION if complete else INCOMPLETE_TRACE
        for complete, verified in zip(*flags, strict=True)
    ]
    usable = {trace for trace, verdict in zip(traces, verdicts, strict=True) if verdict is None}
    prompt = rows.messages(row["problem"], "problem")
    truth = rows.ground_truth(row["answer"], "answer")
    if texts and not usable:
        reason = FAILED_VERIFICATION if FAILED_VERIFICATION in verdicts else INCOMPLETE_TRACE
        raise RowFault(reason, "generations", f"none of {len(traces)} traces can be used")
    return Candidate(
        data_source=DATA_SOURCE,
        prompt=prompt,
        ground_truth=truth,
        targets=tuple(trace for trace in texts if trace in usable),
        id=rows.optional_text(row.get("uuid")),
        subject=rows.optional_text(row.get("problem_type")),
        skipped=Counter(verdict for verdict in verdicts if verdict),
    )


def _flags(row: Row, column: str, count: int) -> list[bool]:
    """One truth value per trace; a null list (rows that only another judge looked at) means that none passes."""
    values = row[column]
    if values is None:
        return [False] * count
    if not isinstance(values, list) or len(values) != count:
        raise RowFault(MALFORMED, column, f"must hold one value for each of {count} generations, not {str(values)[:60]!r}")
    return [value is True for value in values]


READERS = (
    Reader(("problem", "answer", "generations", *FLAGS), read_traces, has_targets=True),
    Reader((*COLUMNS, "target"), read_verl_row, has_targets=True),
)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write `train.parquet`, `validation.parquet` if rows are held out, and `manifest.json`; see :func:`pipeline.prepare`."""
    options, _ = read_options(settings)
    return prepare(Path(folder), options, Recipe(READERS))
