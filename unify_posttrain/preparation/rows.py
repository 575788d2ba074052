"""Rows: the columns that are written, and the readers of the values that public data sets hold them in.

A reader raises `RowFault` for a value that it cannot use; the pipeline drops and counts the row, or stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from unify_posttrain.preparation.values import MALFORMED as MALFORMED
from unify_posttrain.preparation.values import NO_GROUND_TRUTH as NO_GROUND_TRUTH
from unify_posttrain.preparation.values import RowFault as RowFault
from unify_posttrain.preparation.values import ground_truth as ground_truth
from unify_posttrain.preparation.values import is_list, number_text, shown, stored_messages
from unify_posttrain.untrusted.documents import EXACT, WrittenNumber

GOLD = "gold"
EMPTY_TARGET = "empty_target"
DUPLICATE = "duplicate"
INCOMPLETE_TRACE = "incomplete_trace"
FAILED_VERIFICATION = "failed_verification"
TOO_LONG = "too_long"
FAULTS = frozenset({MALFORMED, NO_GROUND_TRUTH, GOLD, EMPTY_TARGET})  # the others are filters
ROLES = ("system", "user", "assistant", "tool")

Row = Mapping[str, Any]
Message = dict[str, str]


@dataclass(frozen=True)
class Candidate:
    """A row as its reader understood it.

    Attributes:
        data_source: name of the set, by which scores are reported.
        prompt: messages {role, content}, the last one the user's (or a tool's).
        ground_truth: what the reward compares with.
        targets: demonstrations, the preferred one first; empty if there is none.
        style: `rule` (a function scores) or `model` (a reward model does, without ground truth).
        ability: verl's name for the field of a task.
        hint: the demonstration in sentences, each with its own line break; None if the set has no such column.
        id, subject, level: of the published row, where it has them.
        skipped: reason -> number of further traces of this problem that a filter left out.
        images: paths of the pictures that the prompt shows, in the order of its marks.
    """

    data_source: str
    prompt: list[Message]
    ground_truth: str
    targets: tuple[str, ...] = ()
    style: str = "rule"
    ability: str = "math"
    hint: tuple[str, ...] | None = None
    id: str | None = None
    subject: str | None = None
    level: str | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """How a source's rows are read.

    Attributes:
        columns: that the source must have; dotted names lead into nested ones.
        read: row -> candidate; raises RowFault.
        has_targets: whether a row without a target lacks something.
        has_hint: whether a column `hint` is written.
        images: column whose pictures are kept, in a column `images`; None: rows are text.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], Candidate]
    has_targets: bool = False
    has_hint: bool = False
    images: str | None = None


def schema(has_hint: bool = False, has_images: bool = False) -> pa.Schema:
    """Columns of the written files: the same for every set of text, so that verl can concatenate several.

    `target` is one assistant message or null, `target_lst` the texts of all targets or null, `extra_info.index` the position in
    the file, `extra_info.split` train, validation or test, the rest as in :class:`Candidate`.
    """
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    texts = pa.list_(pa.string())
    details = [("index", pa.int64())] + [(name, pa.string()) for name in ("split", "id", "subject", "level")]
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", messages),
            ("target", messages),
            ("target_lst", texts),
            *([("hint", texts)] if has_hint else []),
            *([("images", pa.list_(pa.struct([("image", pa.string())])))] if has_images else []),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct(details)),
        ]
    )


def as_record(candidate: Candidate, targets: Sequence[str]) -> dict[str, Any]:
    """A row of :func:`schema`; index and split are filled in when the rows are dealt to their files."""
    return {
        "data_source": candidate.data_source,
        "prompt": candidate.prompt,
        "target": [{"role": "assistant", "content": targets[0]}] if targets else None,
        "target_lst": list(targets) or None,
        "hint": None if candidate.hint is None else list(candidate.hint),
        "ability": candidate.ability,
        "reward_model": {"style": candidate.style, "ground_truth": candidate.ground_truth},
        "extra_info": {"id": candidate.id, "subject": candidate.subject, "level": candidate.level},
        **({"images": [{"image": path} for path in candidate.images]} if candidate.images else {}),
    }


def check_texts(candidate: Candidate) -> None:
    """Refuse what no file of text holds: NUL characters, and halves of a UTF-16 pair (JSON can write both).

    Raises:
        RowFault: names the field.
    """
    named = [(name, getattr(candidate, name)) for name in ("data_source", "ground_truth", "ability", "id", "subject", "level")]
    named += [("prompt", part) for message in candidate.prompt for part in message.values()]
    named += [("target", target) for target in candidate.targets] + [("hint", part) for part in candidate.hint or ()]
    named += [("images", path) for path in candidate.images]
    for name, value in named:
        if value is None:
            continue
        if "\0" in value:
            raise RowFault(MALFORMED, name, "holds a NUL character")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFault(MALFORMED, name, f"holds half of a UTF-16 pair (character {error.start})") from error


def value_at(row: Row, path: str) -> Any:
    """The value of a column; `a.b` and `a.0` lead into mappings and lists. None where something on the way is absent or null.

    >>> value_at({"messages": [{"content": "Hi"}]}, "messages.0.content")
    'Hi'
    """
    if path in row:
        return row[path]
    value: Any = row
    for part in path.split("."):
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = value.get(part)
        elif is_list(value) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            raise RowFault(MALFORMED, path, f"{part!r} leads into {shown(value)}, which is neither a mapping nor a list")
    return value


def text(value: Any, column: str) -> str:
    """A text that is not blank."""
    if not isinstance(value, str):
        raise RowFault(MALFORMED, column, f"must be text, not {shown(value)}")
    if not value.strip():
        raise RowFault(MALFORMED, column, "is empty")
    return value


def optional_text(value: Any) -> str | None:
    """Identifiers and labels: text and numbers as text, anything else as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, WrittenNumber) or (isinstance(value, float) and abs(value) >= EXACT):
        return number_text(value, "id, subject or level")  # all digits, or a fault
    return str(value) if isinstance(value, str | int | float) else None


def messages(value: Any, column: str) -> list[Message]:
    """A prompt: a text becomes one user message; messages, also as JSON text, keep their role and content."""
    if isinstance(value, str):
        stored = stored_messages(value, column)
        if stored is None:
            return [{"role": "user", "content": text(value, column)}]
        value = stored
    if not is_list(value) or not value:
        raise RowFault(MALFORMED, column, f"must be text or a list of {{role, content}}, not {shown(value)}")
    found = [_message(item, column) for item in value]
    if found[-1]["role"] not in ("user", "tool"):
        raise RowFault(MALFORMED, column, f"ends with a message of the {found[-1]['role']}; a prompt ends with one of the user")
    if not found[-1]["content"].strip():
        raise RowFault(MALFORMED, column, "the last message is empty")
    return found


def targets(value: Any, column: str) -> tuple[str, ...]:
    """Demonstrations: a text, one assistant message (in a list, or as JSON), or a list of texts. Blank ones and repeats go."""
    if value is None:
        return ()
    if isinstance(value, str):
        stored = stored_messages(value, column)
        found = [value if stored is None else _one_turn(stored, column)]
    elif is_list(value) and all(isinstance(item, Mapping) for item in value):
        found = [_one_turn(value, column)] if value else []
    elif is_list(value):
        found = [item for item in value if item is not None]
        if any(not isinstance(item, str) for item in found):
            raise RowFault(MALFORMED, column, f"a list of targets must hold texts, not {shown(value)}")
    else:
        raise RowFault(MALFORMED, column, f"must be text, one assistant message, a list of texts, or null, not {shown(value)}")
    return tuple(item for item in dict.fromkeys(found) if item.strip())


def hint(value: Any, column: str) -> tuple[str, ...]:
    """Sentences of a hint: a list of texts, or a text, which is cut after its line breaks. None: no sentences."""
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(value.splitlines(keepends=True))
    if is_list(value) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise RowFault(MALFORMED, column, f"must be a list of texts, a text, or null, not {shown(value)}")


def _message(item: Any, column: str) -> Message:
    role, content = (item.get("role"), item.get("content")) if isinstance(item, Mapping) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        raise RowFault(MALFORMED, column, f"a message must be {{role: {' | '.join(ROLES)}, content: text}}, not {shown(item)}")
    return {"role": role, "content": content}


def _one_turn(value: Sequence[Any], column: str) -> str:
    found = [_message(item, column) for item in value]
    if [message["role"] for message in found] != ["assistant"]:
        raise RowFault(MALFORMED, column, f"must be one assistant message, not {len(found)} of {shown(value)}")
    return found[0]["content"]
