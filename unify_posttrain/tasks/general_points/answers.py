"""Reading an answer: the formula, what stands after its `=`, and the cards that the model says it sees.

native     JSON with a text `formula`; else the last "formula" key with a quoted text on one line
upstream   JSON; else the first `"formula": "…"` with exactly one blank and double quotes, as the published data has it
compact    the last `f:…` that a `;` or `}` ends, for models that read characters
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from unify_posttrain.untrusted.documents import DocumentError, parse

_KEYS = {
    "native": re.compile(r"""["']formula["']\s*:\s*(?:"([^"\n]*)"|'([^'\n]*)')"""),
    "upstream": re.compile(r'"formula": "([^"\n]*)"()'),
    "compact": re.compile(r"(?<![^{;])f:([^;}\n]*)[;}]()"),
}
_CARDS = {
    "native": re.compile(r"""["']cards["']\s*:\s*\[([^\[\]\n]*)\]"""),
    "compact": re.compile(r"(?<![^{;])c:([^;}\n]*)[;}]"),
}
_BETWEEN = re.compile(r"""[\s,"']+""")


@dataclass(frozen=True)
class Formula:
    """The text of a formula.

    Attributes:
        left: what stands before the first `=`.
        right: what stands after it; None if there is none.
    """

    left: str
    right: str | None


def read_formula(text: str, style: str) -> Formula | None:
    """The formula of an answer; None if there is none.

    >>> read_formula('{"formula" : "4*6=24",}', "native"), read_formula('{"formula" : "4*6=24",}', "upstream")
    (Formula(left='4*6', right='24'), None)
    """
    document = None if style == "compact" else _document(text)
    found = document.get("formula") if document is not None else None
    if not isinstance(found, str):
        matches = _KEYS[style].findall(text)
        if not matches:
            return None
        found = "".join(matches[0 if style == "upstream" else -1])
    left, equals, right = found.partition("=")
    return Formula(left, right if equals else None)


def read_cards(text: str, style: str) -> tuple[str, ...] | None:
    """The labels that an answer gives for the cards; None if it gives none."""
    document = None if style == "compact" else _document(text)
    found = document.get("cards") if document is not None else None
    if isinstance(found, list):
        return tuple(map(str, found))
    matches = _CARDS["compact" if style == "compact" else "native"].findall(text)
    return tuple(filter(None, _BETWEEN.split(matches[-1]))) if matches else None


def _document(text: str) -> dict[str, Any] | None:
    if "{" not in text:
        return None
    try:
        found = parse(text)
    except DocumentError:
        return None
    return found if isinstance(found, dict) else None
