"""Answers in words, letters of a choice, figures named by their corners."""

from __future__ import annotations

import re
from collections.abc import Callable

from unify_posttrain.rewards.answers.names import FUNCTIONS
from unify_posttrain.rewards.answers.phrases import SHORT, date, folded
from unify_posttrain.rewards.answers.tokens import Tokens, is_sign, joined
from unify_posttrain.rewards.answers.units import currency
from unify_posttrain.rewards.answers.values import Answer, Choice, Figure, Words

_SHORT = SHORT - FUNCTIONS
_SENTENCE = re.compile(r"\s(?:is|are|equals|:)$|^[A-Z][a-z ]*:$")  # The range is …
_LEADS = re.compile(
    r"(?:(?:is|are|approximately|approx\.?|about|around|roughly|exactly|the (?:final )?answer is|answer"
    r"|therefore|thus|so|hence|if|for|when|where|otherwise)[:,]?\s*)+",
    re.IGNORECASE,
)


def is_word(text: str) -> bool:
    """Whether letters that stand alone are a word or an order of letters: CAB, IV, listen, no; not x, ab, xyz."""
    if len(text) < 2 or not text.isalpha() or text in FUNCTIONS or text in ("pi", "infty", "infinity", "inf", "oo"):
        return False
    return text.isupper() or len(text) > 3 or text.lower() in _SHORT or (len(text) == 3 and not text.islower())


def without_lead(tokens: Tokens) -> Tokens:
    """Without "approximately", "about", a sign of approximation and the like before the answer."""
    while tokens and (
        is_sign(tokens[0], "\\approx", "~", "\\sim", "\\therefore")
        or (
            tokens[0].kind == "text"
            and (_LEADS.fullmatch(tokens[0].text) or (len(tokens) > 1 and _SENTENCE.search(tokens[0].text)))
        )
    ):
        tokens = tokens[1:]
    if len(tokens) > 1 and tokens[0].text.lower() in ("option", "choice", "case") and len(tokens[1].text) == 1:
        return tokens[1:]
    if (
        len(tokens) > 1
        and tokens[0].kind == "letters"
        and len(tokens[0].text) > 2
        and _LEADS.fullmatch(tokens[0].text)
        and tokens[1].kind != "letters"
    ):
        tokens = tokens[1:]
    return tokens


def words(tokens: Tokens) -> Words | None:
    """Text, if the whole is some: words of letters, perhaps with numbers and signs of punctuation between them."""
    if not all(
        token.kind in ("text", "letters", "number") or is_sign(token, ".", ",", "-", "'", " ", "(", ")", "!", "?", "/", ":", "&")
        for token in tokens
    ):
        return None
    if currency(tokens)[1]:
        return None
    if day := date(" ".join(token.text for token in tokens)):
        return Words(day)
    texts = [token for token in tokens if token.kind in ("text", "letters")]
    if len(tokens) == 1 and tokens[0].kind == "text":
        return Words(folded(tokens[0].text))
    if len(tokens) == 1:
        return Words(folded(tokens[0].text)) if texts and is_word(tokens[0].text) else None
    if not texts or not any(token.kind == "text" or is_word(token.text) for token in texts):
        return None
    if tokens[0].kind == "number":
        return None
    if any(token.kind == "letters" and token.text in FUNCTIONS for token in texts):
        return None
    if len(texts) == 1 and not all(token.kind in ("text", "letters", "number") for token in tokens):
        return None
    if any(token.kind == "number" and not token.apart for token in tokens):
        return None
    return Words(folded(joined(tokens)))


def choice(tokens: Tokens, read: Callable[[Tokens], Answer]) -> Choice | None:
    """A letter with a bracket, a colon or a full stop behind it, and what it stands for: `(B) 12`, `B) 12`, `C: a score`."""
    texts = [token.text for token in tokens]
    if tokens[0].kind == "text" and (
        match := re.fullmatch(r"(?:option|choice|answer)\s*:?\s*\(?([A-J])\)?", tokens[0].text, re.IGNORECASE)
    ):
        return Choice(match[1])
    if tokens[0].kind == "text" and (match := re.fullmatch(r"\(?([A-J])\s*[).:](?:\s*(.+))?", tokens[0].text)):
        rest: Tokens = tokens[1:]
        if match[2]:
            return Choice(match[1], Words(folded(match[2])))
        return Choice(match[1], read(rest) if rest else None)
    if not texts:
        return None
    bracket = texts[0] == "("
    letter = texts[1:2] if bracket else texts[:1]
    after = len(letter) + bracket
    if (
        not letter
        or not re.fullmatch("[A-J]", letter[0])
        or len(texts) <= after
        or texts[after] not in ((")",) if bracket else (")", ".", ":"))
    ):
        return None
    rest = tokens[after + 1 :]
    if not rest:
        return Choice(letter[0])
    if bracket and not rest[0].apart:
        return None  # (A)x is a product
    if rest and any(is_sign(token, "+", "-", "\\cup", "\\cap", "=", "\\cdot", ",") for token in rest[:1]):
        return None
    return Choice(letter[0], read(rest))


def figure(tokens: Tokens) -> Figure | None:
    r"""\angle ABC, \triangle ABC."""
    if (
        len(tokens) != 2
        or not is_sign(tokens[0], "\\angle", "\\triangle", "\\Delta", "\\odot")
        or tokens[1].kind not in ("letters", "text")
    ):
        return None
    if not tokens[1].text.isupper() or (tokens[0].text == "\\Delta" and len(tokens[1].text) != 3):
        return None
    return Figure("\\triangle" if tokens[0].text == "\\Delta" else tokens[0].text, tokens[1].text)
