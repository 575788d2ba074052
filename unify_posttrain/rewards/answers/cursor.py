"""A position in a row of tokens: what the parts of the expression reader stand on."""

from __future__ import annotations

from abc import ABC, abstractmethod

from unify_posttrain.rewards.answers.nodes import Node
from unify_posttrain.rewards.answers.tokens import Token, Tokens, UnreadError, closing, is_sign

MAX_DEPTH = 40
STOPS = frozenset({
    "\\le", "\\ge", "\\ne", "\\in", "\\cup", "\\cap", "\\setminus", "\\approx", "\\equiv", "\\ldots", "\\lor", "\\land",
    "\\mid", "\\pmod",
    "\\bmod", "\\mod", "\\rightarrow", "\\choose", "\\notin", "\\subset", "\\sim", "\\%",
})  # fmt: skip


class Cursor(ABC):
    """A position in a row of tokens; what each part of the reader needs of the others is abstract here."""

    def __init__(self, tokens: Tokens, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise UnreadError("nested too deeply")
        self.tokens, self.position, self.depth = list(tokens), 0, depth
        self.bars = 0  # open absolute values

    @property
    def done(self) -> bool:
        """Whether nothing is left but blanks."""
        while self.position < len(self.tokens) and is_sign(self.tokens[self.position], " ", "\n"):
            self.position += 1
        return self.position >= len(self.tokens)

    def peek(self) -> Token | None:
        """The next token, which stays."""
        return None if self.done else self.tokens[self.position]

    def take(self) -> Token:
        """The next token.

        Raises:
            UnreadError: there is none.
        """
        token = self.peek()
        if token is None:
            raise UnreadError("it ends too early")
        self.position += 1
        return token

    def at(self, *texts: str) -> bool:
        """Whether one of some signs or commands is next."""
        token = self.peek()
        return token is not None and is_sign(token, *texts)

    def split_letters(self) -> None:
        """The token just taken becomes its first letter and the rest."""
        token = self.tokens[self.position - 1]
        self.tokens[self.position - 1 : self.position] = [
            Token(token.kind, token.text[0], token.apart),
            Token(token.kind, token.text[1:]),
        ]

    def argument(self) -> Tokens:
        """What TeX takes for a command's argument: a group, a digit, a letter or a command."""
        token = self.take()
        if token.kind == "open" and token.text == "{":
            end = closing(self.tokens, self.position - 1)
            tokens = self.tokens[self.position : end]
            self.position = end + 1
            return tokens
        if token.kind in ("number", "letters") and len(token.text) > 1:
            self.split_letters()
            return [self.tokens[self.position - 1]]
        if token.kind in ("number", "letters"):
            return [token]
        start = self.position - 1
        if token.kind == "command" and token.text not in STOPS:
            self.position = start
            self.atom()
            return self.tokens[start : self.position]
        raise UnreadError("an argument is missing")

    @abstractmethod
    def atom(self) -> Node:
        """The next atom."""

    @abstractmethod
    def factor(self) -> Node:
        """The next atom with its powers."""

    @abstractmethod
    def sum(self) -> Node:
        """All that follows, up to what is no part of a sum."""

    @abstractmethod
    def term(self) -> Node:
        """All that follows, up to the next sign of a sum."""

    @abstractmethod
    def inside(self, tokens: Tokens) -> Node:
        """The expression that a bracket holds."""

    @abstractmethod
    def begins_factor(self) -> bool:
        """Whether a factor follows."""

    @abstractmethod
    def exponent(self) -> Tokens:
        """What stands behind ^."""
