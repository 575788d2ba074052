"""Reading target columns: what a demonstration says, whichever way a data row holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unify_posttrain.chat import joined

TARGET_COLUMNS = ("target", "target_lst")


@dataclass(frozen=True)
class Target:
    """An answer, or several with what the user says between them.

    Attributes:
        texts: of the assistant and the user in turn, the assistant's at both ends.
    """

    texts: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """{role, content} each."""
        return [{"role": ("assistant", "user")[place % 2], "content": text} for place, text in enumerate(self.texts)]

    def after(self, prompt: str) -> Target:
        """Without the `<think>` that a rendered prompt has opened already."""
        return Target((joined(prompt, self.texts[0]), *self.texts[1:]))


def targets_of(row: Mapping[str, Any], row_id: int) -> list[Target]:
    """All targets of a data row that are not empty: `target` first, then `target_lst`.

    Raises:
        KeyError: the row has neither column.
        ValueError: a target is neither text, nor null, nor messages {role, content} with text content: one of the assistant, or
            assistant, user, …, assistant.
    """
    if not any(column in row for column in TARGET_COLUMNS):
        raise KeyError(f"training row {row_id}: no column 'target' (or 'target_lst'); this algorithm trains demonstrations")
    found = [_texts(row.get("target"), row_id, "target")]
    several = row.get("target_lst")
    if several is not None and (isinstance(several, str) or not isinstance(several, Sequence | np.ndarray)):
        raise ValueError(f"training row {row_id}: column 'target_lst' must be a list of texts, or null, not {_shown(several)}")
    found += [_texts(target, row_id, "target_lst") for target in (several if several is not None else [])]
    return [Target(texts) for texts in dict.fromkeys(found) if texts[0]]


def _texts(target: Any, row_id: int, column: str) -> tuple[str, ...]:
    """The texts of a target; one empty text is none."""
    if target is None:
        return ("",)
    if isinstance(target, str):
        stripped = target.lstrip()
        if stripped.startswith("[{"):
            try:
                return _texts(json.loads(stripped), row_id, column)
            except json.JSONDecodeError:
                return (target,)  # a text that happens to begin like JSON
            except RecursionError as error:  # brackets without end
                raise ValueError(_unreadable(row_id, column, error)) from error
            except ValueError as error:
                if str(error).startswith("training row"):
                    raise
                raise ValueError(_unreadable(row_id, column, error)) from error  # a number without end
        return (target,)
    if isinstance(target, Sequence | np.ndarray):
        messages = list(target)
        if not messages:
            return ("",)
        if all(isinstance(message, Mapping) for message in messages):
            return _of_messages(messages, row_id, column)
    raise ValueError(
        f"training row {row_id}: column {column!r} must be text, null, or messages {{role, content}} with text content, "
        f"not {_shown(target)}"
    )


def _of_messages(messages: Sequence[Mapping[str, Any]], row_id: int, column: str) -> tuple[str, ...]:
    contents = [message.get("content") for message in messages]
    if len(messages) == 1:
        if isinstance(contents[0], str) and messages[0].get("role") in (None, "assistant"):
            return (contents[0],)
        raise ValueError(
            f"training row {row_id}: column {column!r} must be one message of the assistant with text content, not "
            f"{str(messages[0])[:80]}"
        )
    roles = [str(message.get("role")) for message in messages]
    if roles != ["assistant", "user"] * (len(messages) // 2) + ["assistant"]:
        raise ValueError(
            f"training row {row_id}: column {column!r} holds {len(messages)} messages ({', '.join(roles)}); those of several turns "
            "are assistant, user, …, assistant: what comes before the first answer belongs into the prompt, and the last message "
            "is an answer"
        )
    other = next((content for content in contents if not isinstance(content, str)), None)
    if other is not None or None in contents:
        raise ValueError(f"training row {row_id}: column {column!r} must hold messages with text content, not {_shown(other)}")
    return tuple(str(content) for content in contents)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:80]!r}"


def _unreadable(row_id: int, column: str, error: Exception) -> str:
    return (
        f"training row {row_id}: column {column!r} holds JSON that cannot be read ({type(error).__name__}); "
        "python -m unify_posttrain.prepare leaves such rows out"
    )
