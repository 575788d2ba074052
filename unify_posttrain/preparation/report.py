"""What a preparation found: counts by reason, lengths, examples of faults; as JSON for the manifest and as tables to print."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from unify_posttrain.output import cell
from unify_posttrain.preparation.lengths import summary
from unify_posttrain.preparation.options import Options
from unify_posttrain.preparation.rows import FAULTS
from unify_posttrain.preparation.store import MANIFEST

LABELS = {
    "dropped": "dropped",
    "traces_left_out": "further traces left out",
    "media_left_out": "images and sounds left out, of column",
}


@dataclass
class Report:
    """Counts of one split.

    Attributes:
        read, kept: rows.
        dropped: reason -> rows.
        traces: reason -> further traces of rows that are kept.
        media: column of images, sounds or videos -> usable rows that have some; they are not written.
        examples: the first faults, in words.
        prompt_lengths, target_lengths: in tokens, of rows that are no duplicate, before `too_long` is looked at.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    media: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    prompt_lengths: array[int] = field(default_factory=lambda: array("q"))
    target_lengths: array[int] = field(default_factory=lambda: array("q"))

    @property
    def faults(self) -> int:
        """Rows dropped because something is wrong with them, filters apart."""
        return sum(count for reason, count in self.dropped.items() if reason in FAULTS)

    def as_json(self, options: Options) -> dict[str, Any]:
        """For the manifest. `tokens` is null if no tokenizer was given."""
        tokens = {
            "prompt": summary(self.prompt_lengths, options.max_prompt_length, options.quantiles),
            "target": summary(self.target_lengths, options.max_response_length, options.quantiles),
        }
        return {
            "read": self.read,
            "kept": self.kept,
            "dropped": dict(self.dropped),
            "traces_left_out": dict(self.traces),
            **({"media_left_out": dict(self.media)} if self.media else {}),
            "examples": self.examples,
            "tokens": None if options.tokenizer is None else tokens,
        }


def tables(path: Path) -> list[Table]:
    """The report of a manifest, to print: what became of the rows, and lengths if they were counted.

    Returns:
        Nothing for a manifest without a report (generated tasks).
    """
    manifest = json.loads(path.read_text(encoding="utf-8"))
    title = path.parent.name if path.name == MANIFEST else path.name.removesuffix(f".{MANIFEST}")
    report = manifest.get("report") if isinstance(manifest, dict) else None
    if not report:
        return []
    counted = {split: part for split, part in report.items() if part["tokens"]}
    return [_rows_table(title, report), *([_lengths_table(title, counted)] if counted else [])]


def _rows_table(title: str, report: Mapping[str, Any]) -> Table:
    columns = [Column(cell(split), justify="right") for split in report]
    table = Table("rows", *columns, title=cell(title), title_justify="left")
    table.add_row("read", *(f"{part['read']:,}" for part in report.values()))
    for key, label in LABELS.items():
        for reason in sorted({reason for part in report.values() for reason in part.get(key, ())}):
            shown = reason if key == "media_left_out" else reason.replace("_", " ")
            table.add_row(cell(f"{label}: {shown}"), *(f"{part.get(key, {}).get(reason, 0):,}" for part in report.values()))
    table.add_row("kept", *(f"{part['kept']:,}" for part in report.values()), style="bold")
    return table


def _lengths_table(title: str, report: Mapping[str, Any]) -> Table:
    shares = next(iter(report.values()))["tokens"]["prompt"]["quantiles"]
    heads = ["mean", *(f"q{share}" for share in shares), "limit", "over"]
    table = Table("tokens", title=cell(f"{title}: lengths"), title_justify="left")
    for head in heads:
        table.add_column(cell(head), justify="right")
    for split, part in report.items():
        for kind, found in part["tokens"].items():
            if found:
                cells = [found["mean"], *found["quantiles"].values(), found["limit"], found["over"]]
                table.add_row(cell(f"{split}: {kind}"), *(f"{cell:,}" for cell in cells))
    return table
