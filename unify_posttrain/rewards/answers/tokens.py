r"""Tokens of a cleaned answer, and what is done with rows of them: matching brackets, splitting outside of brackets.

Letters side by side stay one token: whether `ab` is a product, a word or a name is the readers' to say. A token knows whether a
blank stood before it, because `3 4` is no `34`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MAX_TOKENS = 600


class UnreadError(ValueError):
    """A text is nothing that a reader knows."""


@dataclass(frozen=True)
class Token:
    r"""A piece of an answer.

    Attributes:
        kind: number, letters, command (`\frac`), text (`\text{…}` or a word in quotes), open, close, begin, end, or sign.
        text: the characters; of a command with its backslash, of a text its content, of begin and end the environment's name.
        apart: a blank stands before it.
    """

    kind: str
    text: str
    apart: bool = False


Tokens = Sequence[Token]

_PATTERN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<text>\\text\s*\{)"
    r"|\\(?P<bound>begin|end)\s*\{(?P<name>[a-zA-Z]+\*?)\}"
    r"|(?P<line>\\\\(?:\s*\[[^\]\\]*\])?)"
    r"|(?P<bracket>\\[{}|]|\\[lr](?:floor|ceil|angle)(?![a-zA-Z]))"
    r"|(?P<command>\\[a-zA-Z]+|\\[%$&#_])"
    r"|(?P<number>\d+\.(?=\\(?:overline|dot)(?![a-zA-Z])|\(\d+\))|\d+(?:\.\d+)?(?:[eE][+-]?\d{1,4}(?![\d.a-zA-Z]))?|\.\d+)"
    r"|(?P<letters>[A-Za-z]+)"
    r"|(?P<relation><\s*=|>\s*=|!=|==|\.\.\.)"
    r"|(?P<sign>.)",
    re.DOTALL,
)
_OPEN = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "\\langle": "\\rangle"}
_CLOSE = frozenset(_OPEN.values())
_RELATIONS = {"<=": "\\le", ">=": "\\ge", "!=": "\\ne", "==": "=", "...": "\\ldots"}
_COLUMNS = re.compile(r"\s*\{[clr|\s]*\}")


def lex(text: str) -> list[Token]:
    r"""Tokens of a text that `clean` has made.

    Raises:
        UnreadError: more than MAX_TOKENS, or a `\text{` that does not end.
    """
    tokens: list[Token] = []
    position, apart = 0, False
    while position < len(text):
        match = _PATTERN.match(text, position)
        if match is None:  # cannot be: the last alternative takes any character
            raise UnreadError(text)
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space":
            if "\n" in match[0]:
                tokens.append(Token("sign", "\n", True))
            elif "\u2003" in match[0]:
                tokens.append(Token("sign", " ", True))
            apart = True
            continue
        if kind == "text":
            end = matching(text, position - 1)
            tokens += _content(text[position:end], apart)
            position = end + 1
        elif kind == "name":
            if match["name"].rstrip("*") == "array" and match["bound"] == "begin" and (columns := _COLUMNS.match(text, position)):
                position = columns.end()
            tokens.append(Token(match["bound"], match["name"], apart))
        else:
            tokens.append(_token(kind, match[0], apart))
        apart = False
        if len(tokens) > MAX_TOKENS:
            raise UnreadError(f"more than {MAX_TOKENS} tokens")
    return tokens


def _token(kind: str, text: str, apart: bool) -> Token:
    if kind == "line":
        return Token("sign", "\\\\", apart)
    if kind == "relation":
        text = _RELATIONS["".join(text.split())]
        return Token("command" if text.startswith("\\") else "sign", text, apart)
    if text in _OPEN:
        return Token("open", text, apart)
    if text in _CLOSE:
        return Token("close", text, apart)
    return Token("sign" if kind == "bracket" else kind, text, apart)


def _content(text: str, apart: bool) -> list[Token]:
    r"""A text that holds digits or mathematics is read as if it stood outside; another is one token, without quotes."""
    inner = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    stripped = inner.strip(" \n`'\"")
    apart = apart or inner[:1].isspace()
    if stripped in (",", ";", ":"):
        return [Token("sign", stripped, apart)]
    if re.search(r"[\d\\$^=<>]", stripped) and not re.fullmatch(r"[A-Za-z/.\s]*[A-Za-z]\^\{?-?\d\}?[A-Za-z/.\s^{}\d-]*", stripped):
        inside = lex(re.sub(r"(?<!\\)\$", " ", inner))
        return [Token(token.kind, token.text, token.apart or (apart and not index)) for index, token in enumerate(inside)]
    if re.search(r",| and | or ", stripped) and not re.match(r"(?:yes|no|true|false)\b", stripped, re.IGNORECASE):
        parts = [part for part in re.split(r"\s*,\s*(?:and |or )?|\s+(and|or)\s+", stripped) if part]
        if all(len(part.split()) <= 2 for part in parts):  # red, blue, and green
            made = [piece for part in parts for piece in (Token("text", part, True), Token("sign", ","))]
            return [piece for piece, after in zip(made, [*made[1:], made[-1]], strict=True) if not _joins(piece, after)][:-1]
    return [Token("text", " ".join(stripped.split()), apart)] if stripped else [Token("sign", " ", True)]


def _joins(piece: Token, after: Token) -> bool:
    """Whether a comma stands beside `and`, which separates by itself."""
    return piece.text == "," and after.text in ("and", "or")


def matching(text: str, start: int) -> int:
    """Where the brace at `start` closes.

    Raises:
        UnreadError: it does not.
    """
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    raise UnreadError(text)


def is_sign(token: Token, *texts: str) -> bool:
    """Whether a token is one of some signs or commands."""
    return token.kind in ("sign", "command") and token.text in texts


def closing(tokens: Tokens, start: int) -> int:
    """Index of the bracket that closes the one at `start`; round and square ones may close each other, as in intervals.

    Raises:
        UnreadError: none does.
    """
    depth = 0
    for index in range(start, len(tokens)):
        depth += _step(tokens[index])
        if depth == 0:
            return index
    raise UnreadError("a bracket that does not close")


def _step(token: Token) -> int:
    return (token.kind in ("open", "begin")) - (token.kind in ("close", "end"))


def outside(tokens: Tokens) -> Iterator[tuple[int, Token]]:
    """The tokens that stand in no bracket, with their indices; brackets themselves are left out."""
    depth = 0
    for index, token in enumerate(tokens):
        step = _step(token)
        depth += step
        if depth < 0:
            raise UnreadError("a bracket that was not opened")
        if depth == 0 and not step:
            yield index, token


def split(tokens: Tokens, separates: Callable[[Token], bool]) -> list[Tokens]:
    """The parts between separators that stand in no bracket; parts without tokens are left out."""
    parts, start = [], 0
    for index, token in outside(tokens):
        if separates(token):
            parts.append(tokens[start:index])
            start = index + 1
    parts.append(tokens[start:])
    return [part for part in map(trimmed, parts) if part]


def trimmed(tokens: Tokens) -> Tokens:
    """Without blanks and lines at the ends."""
    start, end = 0, len(tokens)
    while start < end and _blank(tokens[start]):
        start += 1
    while end > start and _blank(tokens[end - 1]):
        end -= 1
    return tokens[start:end]


def _blank(token: Token) -> bool:
    return token.kind == "sign" and token.text in (" ", "\n", "\\\\")


def unwrapped(tokens: Tokens) -> Tokens:
    """Without braces around the whole."""
    tokens = trimmed(tokens)
    while len(tokens) >= 2 and tokens[0].text == "{" and tokens[0].kind == "open" and closing(tokens, 0) == len(tokens) - 1:
        tokens = trimmed(tokens[1:-1])
    return tokens


def joined(tokens: Tokens) -> str:
    """One spelling of some tokens: blanks only where they separate numbers or letters."""
    pieces: list[str] = []
    previous = ""
    for token in tokens:
        if token.kind == "sign" and token.text in (" ", "\n"):
            continue
        if (
            previous in ("number", "letters", "text")
            and token.kind in ("number", "letters", "text")
            and (token.apart or token.kind == previous)
        ) or (previous == "command" and token.kind == "letters"):
            pieces.append(" ")
        pieces.append(token.text)
        previous = token.kind
    return "".join(pieces)
