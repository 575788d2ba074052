r"""Where the answer stands in what a model wrote. Every function takes one pass: linear in the length of any text.

last_boxed   the content of the last `\boxed{...}` whose braces match
answer_tag   the content of the last `<answer>...</answer>`
answer_line  what follows the last `Answer:` on its line (DAPO, arXiv 2503.14476)
final_line   the last line that is not empty
"""

from __future__ import annotations

import re

THINK_END = "</think>"

# An escaped brace is a character, not a delimiter. A box without braces holds a number or one letter, as in `\boxed 5`.
_BRACES = re.compile(
    r"\\boxed\s*\{|\\boxed(?![a-zA-Z])[^\S\n]*(?P<bare>[+-]?\d[\d.,/]*(?<![.,/])|[A-Z](?![A-Za-z]))|\\.|[{}]", re.DOTALL
)
_NOTHING = re.compile(
    r"(?:\\text\{)?[\s.…?_]*(?:\\[lc]?dots|\\cdot|\\quad|\\square|\\phantom\{.*\}"
    r"|(?:your |final |the )*answer(?: here)?)?[\s.…?_]*\}?",
    re.IGNORECASE,
)
_ANSWER_LINE = re.compile(r"\banswer[^\S\n]{0,3}:", re.IGNORECASE)
_BOLD_ANSWER_LINE = re.compile(r"(?<![^\W_])answer[^\S\n]{0,3}[*_]{0,3}[^\S\n]{0,3}:", re.IGNORECASE)
_MARKS = re.compile(r"\A[*_]{1,3}\s{0,3}|(?<![\^*_])[*_]{1,3}\Z")  # of bold and italics; a star after ^ belongs to the answer
# Bounded repetitions: unbounded ones side by side would be quadratic in a line of spaces.
_LEAD = re.compile(
    r"(?:so|hence|thus|therefore)?[,\s]{0,3}(?:the|my|our)?\s{0,3}(?:final\s{1,3})?answer\s{0,3}(?:is\s{0,3}:?|:|=)\s*",
    re.IGNORECASE,
)


def boxes(text: str) -> list[str]:
    r"""The contents of all ``\boxed{...}`` with matching braces, in their order; of nested ones the inner.

    ``\fbox`` is none, and a box that was cut off (at the length limit, say) doesn't count. An empty one and one with a placeholder
    ("put it in \boxed{...}") are left out if another one says something.
    """
    open_braces: list[int] = []  # where the content of each open brace begins; negative: it is a box
    found: list[tuple[int, int]] = []
    for match in _BRACES.finditer(text):
        token = match.group()
        if match["bare"]:
            found.append(match.span("bare"))
        elif token.startswith("\\boxed"):
            open_braces.append(-match.end())
        elif token == "{":
            open_braces.append(match.end())
        elif token == "}" and open_braces:
            start = open_braces.pop()
            if start < 0 and not (found and found[-1][0] >= -start):  # else it holds a box
                found.append((-start, match.start()))
    contents = [text[slice(*span)].strip() for span in found]
    return [content for content in contents if not (len(content) < 40 and _NOTHING.fullmatch(content))] or contents


def last_boxed(text: str) -> str | None:
    r"""The content of the last box that says something (see :func:`boxes`); None if there is no box.

    >>> last_boxed(r"\boxed{1}, no: \boxed{\frac{2}{3}}. I put it in \boxed{}.")
    '\\frac{2}{3}'
    """
    found = boxes(text)
    return found[-1] if found else None


def answer_tag(text: str) -> str | None:
    """The content of the last ``<answer>...</answer>``; None if there is none."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def answer_line(text: str, bold: bool = False) -> str | None:
    """What follows the last ``Answer:`` (any case) on its line; None if there is none or nothing follows.

    Args:
        text: the response.
        bold: whether marks of Markdown around the word or the line are no part of the answer. verl's reward takes them for it.

    >>> answer_line("**Answer:** 13"), answer_line("**Answer:** 13", bold=True)
    ('** 13', '13')
    """
    end = None
    for match in (_BOLD_ANSWER_LINE if bold else _ANSWER_LINE).finditer(text):
        end = match.end()
    if end is None:
        return None
    answer = text[end:].partition("\n")[0].strip()
    for _ in range(2 if bold else 0):  # **Answer:** **13** has marks of the word before those of the answer
        answer = _MARKS.sub("", answer).strip()
    return answer or None


def final_line(text: str) -> str | None:
    """The last line that is not empty, without a lead such as "The answer is" and a full stop; None if there is none."""
    line = text.rstrip().rpartition("\n")[2].strip()
    lead = _LEAD.match(line)
    line = line[lead.end() :] if lead else line
    return (line[:-1].rstrip() if line.endswith(".") else line) or None


def extract_answer(text: str) -> str | None:
    """The answer by the first of these that is there: the last complete box, the last answer tag, the final line."""
    for find in (last_boxed, answer_tag, final_line):
        answer = find(text)
        if answer:
            return answer
    return None


def after_first_think(text: str) -> str | None:
    """What follows the first ``</think>``; None without one."""
    _, found, after = text.partition(THINK_END)
    return after if found else None


def after_last_think(text: str) -> str | None:
    """What follows the last ``</think>``; None without one."""
    _, found, after = text.rpartition(THINK_END)
    return after if found else None


def between_thinks(text: str) -> str | None:
    """What stands between the first ``</think>`` and the second, or the end; None without one."""
    after = after_first_think(text)
    return None if after is None else after.partition(THINK_END)[0]
