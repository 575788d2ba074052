"""Any JSON, JSONL or parquet file, or data set on the hub, by naming its columns.

    python -m unify_posttrain.prepare task=convert prepare.task.source=rows.jsonl prepare.task.columns.prompt=question \\
        prepare.task.columns.ground_truth=meta.answer prepare.task.columns.target=solution

A field takes its value from the source column that `prepare.task.columns` names (`a.b` and `a.0` lead into nested values), or,
where that is null, from `prepare.task.constants`. Prompts may be text or messages, also as JSON text; targets text, one assistant
message, or a list of texts. With
`prepare.task.layout=sharegpt` the column of prompts holds conversations, whose last answer is the target. `columns.images` names
the column with the paths of pictures, each of which has a mark `<image>` in the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.options import read_options
from unify_posttrain.preparation.pipeline import Recipe, prepare
from unify_posttrain.preparation.rows import Candidate, Reader, Row, value_at
from unify_posttrain.tasks import sharegpt

COLUMNS = ("prompt", "target", "ground_truth", "hint", "images", "data_source", "ability", "id", "subject", "level")
CONSTANTS = ("data_source", "ability", "ground_truth", "style")
STYLES = ("rule", "model")
LAYOUTS = ("columns", "sharegpt")


def reader(columns: Mapping[str, str | None], constants: Mapping[str, str | None], layout: str = "columns") -> Reader:
    """A reader of rows with these columns.

    Args:
        columns: field -> source column, or null.
        constants: field -> text, for fields without a column; `style` is rule or model.
        layout: `columns`, or `sharegpt`: `columns.prompt` holds prompt and target.

    Raises:
        ValueError: an unknown layout, an unknown or missing field, no prompt, no ground truth for style=rule, no data_source.
    """
    _check(columns, constants, layout)

    def value(row: Row, name: str) -> tuple[Any, str]:
        column = columns[name]
        return (value_at(row, column), column) if column else (constants.get(name), name)

    def read(row: Row) -> Candidate:
        style = str(constants["style"])
        truth = value(row, "ground_truth")
        images = sharegpt.images(*value(row, "images")) if columns["images"] else ()
        if layout == "sharegpt":
            prompt, answer = sharegpt.read(*value(row, "prompt"), shown=len(images))
            targets: tuple[str, ...] = (answer,)
        else:
            prompt, targets = rows.messages(*value(row, "prompt")), rows.targets(*value(row, "target"))
            if columns["images"]:
                sharegpt.check_marks(prompt, len(images), columns["prompt"] or "prompt")
        return Candidate(
            data_source=rows.text(*value(row, "data_source")),
            prompt=prompt,
            ground_truth="" if style == "model" and truth[0] in (None, "") else rows.ground_truth(*truth),
            targets=targets,
            style=style,
            ability=rows.optional_text(value(row, "ability")[0]) or "",
            hint=rows.hint(*value(row, "hint")) if columns["hint"] else None,
            images=images,
            **{name: rows.optional_text(value(row, name)[0]) for name in ("id", "subject", "level")},
        )

    needed = tuple(column for column in columns.values() if column)
    has_targets = layout == "sharegpt" or bool(columns["target"])
    return Reader(needed, read, has_targets=has_targets, has_hint=bool(columns["hint"]), images=columns["images"])


def _check(columns: Mapping[str, str | None], constants: Mapping[str, str | None], layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"prepare.task.layout={layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    if layout == "sharegpt" and columns.get("target"):
        raise ValueError(
            f"prepare.task.columns.target={columns['target']}: a conversation holds its target; set it to null, or layout=columns"
        )
    for key, given, known in (("columns", columns, COLUMNS), ("constants", constants, CONSTANTS)):
        if set(given) != set(known):
            raise ValueError(
                f"prepare.task.{key}={dict(given)}: give exactly the keys {', '.join(known)} (null where there is none)"
            )
        for name, entry in given.items():
            if entry is not None and not isinstance(entry, str):
                raise ValueError(f"prepare.task.{key}.{name}={entry!r}: give a text or null")
    if constants["style"] not in STYLES:
        raise ValueError(f"prepare.task.constants.style={constants['style']!r}: choose one of {', '.join(STYLES)}")
    required = ["prompt", "data_source"] + (["ground_truth"] if constants["style"] == "rule" else [])
    for name in required:
        if not columns[name] and not constants.get(name):
            remedy = f"name its column in prepare.task.columns.{name}"
            raise ValueError(
                f"{name} comes from nowhere; {remedy}{f' or prepare.task.constants.{name}' if name in CONSTANTS else ''}"
            )


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write `train.parquet`, `validation.parquet` if rows are held out, and `manifest.json`; see :func:`pipeline.prepare`."""
    options, own = read_options(settings, extra=("columns", "constants", "layout"))
    return prepare(Path(folder), options, Recipe((reader(own["columns"], own["constants"], own["layout"]),), settings=own))
