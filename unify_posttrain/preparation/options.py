"""The settings that all public data sets share: the node `prepare.task`, of which conf/prepare/common.yaml is the larger part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

MISSING_TARGET = ("drop", "keep")
TOO_LONG = ("keep", "drop")
ON_BAD_ROW = ("drop", "error")

_PLACE = frozenset({"name", "folder"})
_OPTIONAL = (
    "source",
    "config_name",
    "revision",
    "template",
    "tokenizer",
    "chat_template",
    "chat_template_kwargs",
    "gold_version",
    "validation_split",
)
_INTEGERS = {"seed": None, "validation_rows": 0, "chunk_rows": 1, "examples": 0, "max_prompt_length": 1, "max_response_length": 1}


@dataclass(frozen=True)
class Options:
    """What decides which rows are written, and how; conf/prepare/common.yaml says what each one means.

    Raises:
        ValueError: a value of a wrong type or outside its choices; names key, value and remedy.
    """

    source: str
    config_name: str | None
    revision: str | None
    split: str
    validation_split: str | None
    validation_rows: int
    seed: int
    streaming: bool
    chunk_rows: int
    system: str
    template: str | None
    prompts: Mapping[str, Mapping[str, str]]
    deduplicate: bool
    missing_target: str
    too_long: str
    tokenizer: str | None
    chat_template: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    max_prompt_length: int
    max_response_length: int
    quantiles: Sequence[float]
    gold_version: int | None
    grader: Mapping[str, Any]
    on_bad_row: str
    max_bad_share: float
    examples: int

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError("prepare.task.source is not set; give a file, a folder, or the name of a data set on the hub")
        for key in ("source", "split", "system"):
            if not isinstance(getattr(self, key), str):
                raise ValueError(f"prepare.task.{key}={getattr(self, key)!r}: give a text")
        for key, least in _INTEGERS.items():
            value = getattr(self, key)
            if type(value) is not int or (least is not None and value < least):
                raise ValueError(f"prepare.task.{key}={value!r}: give an integer{'' if least is None else f' >= {least}'}")
        for key in ("streaming", "deduplicate"):
            if type(getattr(self, key)) is not bool:
                raise ValueError(f"prepare.task.{key}={getattr(self, key)!r}: give true or false")
        if not isinstance(self.chat_template_kwargs, Mapping | None):
            raise ValueError(
                f"prepare.task.chat_template_kwargs={self.chat_template_kwargs!r}: give a mapping, e.g. {{enable_thinking: false}}"
            )
        for key, choices in (("missing_target", MISSING_TARGET), ("too_long", TOO_LONG), ("on_bad_row", ON_BAD_ROW)):
            if getattr(self, key) not in choices:
                raise ValueError(f"prepare.task.{key}={getattr(self, key)!r}: choose one of {', '.join(choices)}")
        if (
            isinstance(self.max_bad_share, bool)
            or not isinstance(self.max_bad_share, int | float)
            or not 0 <= self.max_bad_share <= 1
        ):
            raise ValueError(f"prepare.task.max_bad_share={self.max_bad_share!r}: give a share from 0 to 1")
        if self.gold_version is not None and type(self.gold_version) is not int:
            raise ValueError(
                f"prepare.task.gold_version={self.gold_version!r}: give a version of the math reward, or null for no check"
            )
        if not self.quantiles or any(not 0 <= share <= 1 for share in self.quantiles):
            raise ValueError(f"prepare.task.quantiles={list(self.quantiles)}: give shares from 0 to 1")
        if self.validation_split and self.validation_rows:
            raise ValueError(
                f"prepare.task.validation_rows={self.validation_rows}: the validation rows come from "
                f"prepare.task.validation_split={self.validation_split}; set one of the two to 0 or null"
            )


def read_options(settings: Mapping[str, Any], extra: Sequence[str] = ()) -> tuple[Options, dict[str, Any]]:
    """The shared settings of `prepare.task` and, apart, those of one task.

    Args:
        settings: the node; `name` and `folder` say which task and where, and are left out.
        extra: keys that the task has beyond the shared ones, all required.

    Raises:
        ValueError: a missing or unknown key, or a value that :class:`Options` refuses.
    """
    given = {key: value for key, value in settings.items() if key not in _PLACE}
    shared = [item.name for item in fields(Options)]
    absent = sorted({*shared, *extra} - set(given) - set(_OPTIONAL))
    unknown = sorted(set(given) - {*shared, *extra})
    if absent or unknown:
        raise ValueError(
            f"prepare.task: missing keys {absent}, unknown keys {unknown}; conf/prepare/common.yaml and the task's file list them"
        )
    return Options(**{key: given.get(key) for key in shared}), {key: given[key] for key in extra}
