"""JSON by others. `json.loads` ends with five kinds of errors on hostile or odd text; here they are one, with a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

EXACT = 2.0**53  # up to here every whole number is a float of its own; beyond, a float stands for several


class DocumentError(ValueError):
    """Text that is no JSON, or JSON that cannot be held: the reason, as the end of a sentence."""


class BrokenDocumentError(DocumentError):
    """The text itself is damaged: no JSON, or no UTF-8. What follows it in the same file cannot be trusted either."""


class WrittenNumber(float):
    """A number that a float holds in part, or that floats hold only by chance: `text` has all its digits."""

    text: str

    def __new__(cls, text: str) -> WrittenNumber:
        """`text`: of the JSON."""
        number = super().__new__(cls, text)
        number.text = text
        return number


def _number(text: str) -> float:
    """A float, with its text where that says more."""
    plain = float(text)
    whole = abs(plain) < EXACT
    return plain if whole and Decimal(repr(plain)) == Decimal(text) else WrittenNumber(text)


class _UniqueKeys(json.JSONDecoder):
    """Refuses objects in which a key stands twice: which value counts would be up to the library that reads it. Numbers keep all
    their digits."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=_unique, parse_float=_number)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise DocumentError(f"has the key {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return found


STRICT = _UniqueKeys()  # for rows of data; model folders are read as transformers reads them
PLAIN = json.JSONDecoder()


def reason(error: Exception) -> DocumentError:
    """What a decoder raised, in words."""
    if isinstance(error, DocumentError):
        return error
    if isinstance(error, RecursionError):
        return DocumentError("is nested too deeply")
    if isinstance(error, json.JSONDecodeError):
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        return BrokenDocumentError(f"invalid JSON ({error.msg}, {place})")
    if isinstance(error, UnicodeDecodeError):
        return BrokenDocumentError(f"not UTF-8 text (byte {error.start})")
    return DocumentError("holds a whole number of more digits than can be read")  # the limit that Python itself sets


def parse(text: str | bytes, decoder: json.JSONDecoder = PLAIN) -> Any:
    """The value of a JSON text; a mark of byte order at its begin is no part of it.

    Raises:
        BrokenDocumentError: no JSON or no UTF-8.
        DocumentError: nested too deeply, too large a whole number; with STRICT, a key that stands twice in one object.
    """
    try:
        return decoder.decode(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (RecursionError, ValueError) as error:
        raise reason(error) from error


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file of others holds.

    Raises:
        ValueError: not readable as one; names the file.
    """
    try:
        found = parse(path.read_bytes())
    except DocumentError as error:
        raise ValueError(f"{path} cannot be read: {error}; get the file again") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{path} cannot be read: it holds {type(found).__name__} and no JSON object; get the file again")
    return dict(found)
