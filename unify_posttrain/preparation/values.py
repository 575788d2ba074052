"""Values as public files hold them: numbers with all their digits, messages stored as JSON text, images beside a text.

A reader raises `RowFault` for a value that it cannot use; the pipeline drops and counts the row, or stops.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from typing import Any

from unify_posttrain.untrusted.documents import EXACT, BrokenDocumentError, DocumentError, WrittenNumber, parse

MALFORMED = "malformed"
NO_GROUND_TRUTH = "no_ground_truth"

_MEDIA = re.compile(r"(decoded_)?(image|img|picture|photo|video|audio|sound)s?(_(path|file|url|bytes)s?)?", re.IGNORECASE)
_STORED = frozenset({"bytes", "path"})  # what `datasets` keeps of an image or a sound
_PYTHON = re.compile(r"\[?\{\s*'(role|content)'")  # a list of messages as Python prints it, which is no JSON
_CUT = re.compile(r'\[?\s*\{\s*"role"\s*:')  # messages, even if their JSON breaks off


class RowFault(Exception):
    """A row that cannot be used: why (one of the reasons of `rows`), in which column, and what was found there."""

    def __init__(self, reason: str, column: str, detail: str) -> None:
        super().__init__(f"column {column!r}: {detail}")
        self.reason = reason


def is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def shown(value: Any) -> str:
    """Type and begin of a value, for messages."""
    if isinstance(value, date | time):
        return f"a date ({value}), which its file holds in place of text"
    kind = "float" if isinstance(value, WrittenNumber) else type(value).__name__
    return f"{kind} {str(value)[:60]!r}"


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)


def number_text(value: Any, column: str) -> str:
    """All digits of a finite number, a whole one without a point: 142.0 is 142.

    Raises:
        RowFault: a float so large that it stands for several whole numbers.
    """
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and not isinstance(value, WrittenNumber):
        if abs(value) >= EXACT:
            raise RowFault(
                MALFORMED,
                column,
                f"holds {value!r} as a float, which stands for several whole numbers; write it as text, or as an integer in a "
                "column without floats",
            )
        return str(int(value)) if value.is_integer() else str(value)
    exact = value if isinstance(value, Decimal) else Decimal(value.text)
    return str(int(exact)) if exact == exact.to_integral_value() else f"{exact.normalize():f}"


def ground_truth(value: Any, column: str) -> str:
    """An answer as text: 142.0 becomes 142; of a list of answers one stands for itself, and several become a JSON list of texts,
    any of which will do; a mapping becomes JSON."""
    if is_list(value) and len(value) == 1:
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        raise RowFault(NO_GROUND_TRUTH, column, "holds no ground truth")
    if isinstance(value, str):
        return value.strip()
    if is_number(value):
        return number_text(value, column)
    if is_list(value) or isinstance(value, Mapping):
        if not value:
            raise RowFault(NO_GROUND_TRUTH, column, "holds no ground truth")
        if is_list(value) and all(isinstance(item, str | bool | None) or is_number(item) for item in value):
            value = [ground_truth(item, column) for item in value]
        return _json(value, column)
    raise RowFault(MALFORMED, column, f"must be text, a number, a list or a mapping, not {shown(value)}")


def stored_messages(value: str, column: str) -> list[Any] | None:
    """The messages that a text is the JSON of; None: it is a text, even if it begins as JSON does.

    Some sets store messages as JSON, because Arrow has no type for content that is now text, now a list.

    Raises:
        RowFault: JSON that cannot be held, or messages as Python prints them.
    """
    begin = value.lstrip("\ufeff \t\r\n")
    if _PYTHON.match(begin):
        raise RowFault(MALFORMED, column, f"holds messages as Python prints them, not as JSON: {begin[:60]!r}")
    if not begin.startswith(("[", "{")):
        return None
    try:
        decoded = parse(begin)
    except BrokenDocumentError as error:
        if _CUT.match(begin):
            raise RowFault(MALFORMED, column, f"holds messages as JSON that cannot be read: {error}") from error
        return None
    except DocumentError as error:
        raise RowFault(MALFORMED, column, str(error)) from error
    found = [decoded] if isinstance(decoded, Mapping) else decoded
    if not found or not is_list(found) or not all(isinstance(item, Mapping) for item in found):
        return None
    if all({"from", "value"} <= set(item) for item in found):
        raise RowFault(MALFORMED, column, "holds messages of `from` and `value`; write them as `role` and `content`")
    return found if all("role" in item for item in found) else None


def media_columns(row: Mapping[str, Any]) -> Iterator[str]:
    """The columns of a row that hold images, sounds or videos, by their names or by what is in them."""
    for column, value in row.items():
        if _is_medium(value) or (_MEDIA.fullmatch(column) and value is not None and (not hasattr(value, "__len__") or len(value))):
            yield column


def _is_medium(value: Any) -> bool:
    if is_list(value):
        return bool(value) and all(_is_medium(item) for item in value)
    if isinstance(value, Mapping):
        return set(value) == _STORED and any(part is not None for part in value.values())
    return isinstance(value, bytes) and bool(value)


def _json(value: Any, column: str) -> str:
    try:
        return json.dumps(_plain(value, column), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault(MALFORMED, column, f"cannot be written as JSON: {error}") from error


def _plain(value: Any, column: str) -> Any:
    """The same with numbers that JSON writes with all their digits."""
    if isinstance(value, Mapping):
        return {key: _plain(item, column) for key, item in value.items()}
    if is_list(value):
        return [_plain(item, column) for item in value]
    if isinstance(value, Decimal | float) and math.isfinite(value):
        digits = number_text(value, column)
        plain = int(digits) if digits.lstrip("-").isdigit() else float(digits)
        if isinstance(plain, float) and Decimal(repr(plain)) != Decimal(digits):
            raise RowFault(
                MALFORMED, column, f"holds {digits}, which has more digits than a number of JSON keeps; write it as text"
            )
        return value if isinstance(value, float) and value == plain and not isinstance(value, WrittenNumber) else plain
    return value
