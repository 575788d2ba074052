"""Text of data, models and files, made fit for a terminal, a log or a table: nothing in it acts, everything in it can be seen.

A terminal obeys characters that nobody sees: escape sequences clear the screen or rename the window, a carriage return
overwrites what stands before it, marks of direction turn a line around, and a line break begins what looks like another line of
the log. Such characters are shown by their number (`\\x1b`, `\\u202e`), as Python's own `repr` shows them. Pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Controls (C0, DEL, C1), formats (direction, width zero, tags), halves of a pair, separators of lines and paragraphs.
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
UNSEEN = "\u115f\u1160\u3164\uffa0\u2800\u034f\u180b\u180c\u180d\u180f"  # fillers and joiners that are letters or marks by category
SUSPECT = re.compile(r"[^\x20-\x7e]")
MARGIN = "    "  # before every line of a text but its first


def one_line(text: object) -> str:
    """The text of `text` in one line of visible characters; letters of all scripts stay as they are.

    >>> one_line("a\\x1b[2Jb\\nc"), one_line("π \\u202e 中")
    ('a\\\\x1b[2Jb\\\\nc', 'π \\\\u202e 中')
    """
    return SUSPECT.sub(lambda found: _shown(found[0]), str(text))


def visible(text: object) -> str:
    """The same of a text that has lines and tabs, which stay: everything else that acts is shown by its number.

    >>> visible("a\\tb\\nc\\x1b")
    'a\\tb\\nc\\\\x1b'
    """
    return SUSPECT.sub(lambda found: found[0] if found[0] in "\n\t" else _shown(found[0]), str(text))


def with_margin(text: object) -> str:
    """`visible`, with a margin before every line but the first: none of them can pass for a line of the log's own.

    >>> with_margin("failed\\nINFO all is well")
    'failed\\n    INFO all is well'
    """
    return visible(text).replace("\n", f"\n{MARGIN}")


def lines_of(lines: Iterable[object]) -> str:
    """Lines, each of which stays one, with the break that ends them."""
    return "".join(f"{one_line(line)}\n" for line in lines)


def _shown(character: str) -> str:
    if character not in UNSEEN and unicodedata.category(character) not in ACTING:
        return character
    number = ord(character)
    return SHORT.get(character) or (
        f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
    )
