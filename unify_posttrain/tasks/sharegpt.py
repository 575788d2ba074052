"""Conversations in the ShareGPT layout, as published fine-tuning data has them: written, and read by `prepare task=convert`.

    [{"id": 0, "image": null, "conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}, …]

The last answer is the target; what comes before it is the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.preparation.rows import MALFORMED, RowFault
from unify_posttrain.preparation.store import replace_file

ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
NAMES = {role: name for name, role in ROLES.items()}
IMAGE = "<image>"


def conversation(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages {role, content} in this layout."""
    return [{"from": NAMES[message["role"]], "value": message["content"]} for message in messages]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the prompts and targets of data rows, whole or not at all; `image` is the path of the picture that a row shows."""
    found = [
        {"id": number, "image": _image(row), "conversations": conversation([*row["prompt"], *row["target"]])}
        for number, row in enumerate(rows)
    ]
    text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _image(row: Mapping[str, Any]) -> Any:
    shown = [each["image"] for each in row.get("images") or ()]
    return shown[0] if len(shown) == 1 else shown or None


def images(value: Any, column: str) -> tuple[str, ...]:
    """The pictures of a conversation: a path, a list of paths, or nothing.

    Raises:
        RowFault: something else.
    """
    found = [value] if isinstance(value, str) else [] if value is None else list(value) if isinstance(value, Sequence) else [None]
    if any(not isinstance(each, str) or not each.strip() for each in found):
        raise RowFault(MALFORMED, column, f"must be the path of a picture, a list of paths, or null, not {str(value)[:60]}")
    return tuple(found)


def check_marks(messages: Sequence[Mapping[str, str]], shown: int, column: str) -> None:
    """RowFault if messages do not have a mark for each picture."""
    marks = sum(message["content"].count(IMAGE) for message in messages)
    if marks != shown:
        raise RowFault(MALFORMED, column, f"has {marks} marks {IMAGE} for {shown} pictures")


def read(value: Any, column: str, shown: int = 0) -> tuple[list[dict[str, str]], str]:
    """The prompt's messages and the target of a conversation.

    Args:
        value: of the row.
        column: that it stands in, for errors.
        shown: pictures of the row, each of which has its mark in what the user says.

    Raises:
        RowFault: no list of {from, value}, roles that do not take turns, no answer at the end, or another number of marks than of
            pictures.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RowFault(MALFORMED, column, "must be a list of {from, value}")
    found = []
    for item in value:
        name, text = (item.get("from"), item.get("value")) if isinstance(item, Mapping) else (None, None)
        if name not in ROLES or not isinstance(text, str) or not text.strip():
            raise RowFault(MALFORMED, column, f"an entry must be {{from: {' | '.join(ROLES)}, value: text}}, not {str(item)[:60]}")
        if IMAGE in text and not (shown and ROLES[name] == "user"):
            raise RowFault(MALFORMED, column, f"{IMAGE} stands for a picture, and rows of text have none")
        found.append({"role": ROLES[name], "content": text})
    check_marks(found, shown, column)
    turns = [message["role"] for message in found if message["role"] != "system"]
    if len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2) or "system" in [each["role"] for each in found[1:]]:
        raise RowFault(
            MALFORMED, column, "human and gpt must take turns, human first and gpt last, behind one system message at most"
        )
    if not turns:
        raise RowFault(MALFORMED, column, "holds no answer")
    return found[:-1], found[-1]["content"]
