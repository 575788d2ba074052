"""TL;DR: summaries of Reddit posts, judged by a reward model (arXiv 2009.01325).

Source: `trl-internal-testing/tldr-preference-sft-trl-style` (hub, splits train, validation, test); column messages: the post up to
"TL;DR:" by the user, the summary by the assistant. There is no ground truth: the reward model scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.options import read_options
from unify_posttrain.preparation.pipeline import Recipe, prepare
from unify_posttrain.preparation.rows import MALFORMED, Candidate, Reader, Row, RowFault

DATA_SOURCE = "tldr"


def read_summary(row: Row) -> Candidate:
    """The post as prompt, the summary as target."""
    turns = row["messages"]
    if not isinstance(turns, list) or len(turns) != 2:
        raise RowFault(MALFORMED, "messages", f"must be two messages, a post and its summary, not {str(turns)[:60]!r}")
    return Candidate(
        data_source=DATA_SOURCE,
        prompt=rows.messages(turns[:1], "messages"),
        ground_truth="",
        targets=rows.targets(turns[1:], "messages"),
        style="model",
        ability="summary",
    )


READERS = (Reader(("messages",), read_summary, has_targets=True),)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write `train.parquet`, `validation.parquet` and `manifest.json`; see :func:`pipeline.prepare`."""
    options, _ = read_options(settings)
    return prepare(Path(folder), options, Recipe(READERS))
