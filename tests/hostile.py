"""Text that attacks whoever reads it: on a terminal, in a log, in a table. Shared by tests."""

from __future__ import annotations

import unicodedata

BIDI, ZERO_WIDTH = "\u202e\u2066\u061c", "\u200b\u200d\ufeff\u2060"
HOSTILE = f"data\x1b[2J\x1b]0;owned\x07\r\nERROR forged\x7f\x9b31m{BIDI}{ZERO_WIDTH}\u2028\x00[red]markup[/red][/]$x$"
# What may stay raw in what a command writes: line breaks and tabs of its own, and the letters of its tables.
OWN = "\n\t"


def acting(text: str, allowed: str = OWN) -> set[str]:
    """Characters that act on a terminal or change how the text is read."""
    return {each for each in text if each not in allowed and unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


def assert_harmless(text: str, allowed: str = OWN) -> None:
    """Nothing acts, nothing begins a line of its own, nothing was read as markup, and the text was shown at all."""
    assert acting(text, allowed) == set(), text
    assert "\\x1b[2J" in text and "[red]markup[" in text.replace("\n", "")
    assert not any(line.startswith("ERROR forged") for line in text.splitlines())
