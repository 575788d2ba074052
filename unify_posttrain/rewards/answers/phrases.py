"""Words that mean something else: numbers, dates, sets and the absence of an answer, each in one spelling."""

from __future__ import annotations

import re

_SHORT_WORDS = """
    no on yes or and odd even all none is it in to at as an of be by do go if me my so up us we he she his her the not any
    one two ten six red blue tan day may june july act god dog cat tac saw was top pot net ten won now own eat tea ate tie
    sun nus mon tue wed thu fri sat
"""
SHORT = frozenset(_SHORT_WORDS.split())  # that are written with or without capitals
_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen
"""
_ONES = {word: value for value, word in enumerate(_NUMBERS.split())}
_TENS = {word: value for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)}  # noqa: SIM905
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAY_MONTH = re.compile(rf"(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTHS})(?:,? (\d{{4}}))?")
_MONTH_DAY = re.compile(rf"({_MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?")
_PHRASES = {
    "no solutions": "no solution", "no real solutions": "no real solution", "no integer solutions": "no integer solution",
    "empty set": "no solution", "dne": "does not exist", "reals": "all real numbers", "all reals": "all real numbers",
    "real numbers": "all real numbers", "all real x": "all real numbers", "positive infinity": "infinity", "inf": "infinity",
    "minus infinity": "negative infinity",
}  # fmt: skip


def folded(text: str) -> str:
    """One spelling of words: without case, articles and punctuation; a single letter keeps its case."""
    text = " ".join(re.sub(r"[`'\"]", "", text).split()).strip(" .,;:!?")
    if len(text) == 1:
        return text
    if text.casefold() in _PHRASES:
        return _PHRASES[text.casefold()]
    if text.isalpha() and len(text) <= 3 and text.casefold() not in SHORT:
        return text  # CO is not Co
    text = re.sub(r"^(?:the|an?|there (?:is|are)) (?=\w)", "", text.casefold())
    if match := re.match(r"(yes|no|true|false)\s*[,.;:]\s", text):
        return match[1]
    return date(text) or _PHRASES.get(text, text)


def date(text: str) -> str | None:
    """A day as month, day and perhaps year: 20 June 2024, June 20th, 2024; None if it is none."""
    text = " ".join(text.casefold().replace(" ,", ",").split())
    if match := _DAY_MONTH.fullmatch(text):
        return " ".join(filter(None, (match[2], match[1], match[3])))
    if match := _MONTH_DAY.fullmatch(text):
        return " ".join(filter(None, match.groups()))
    return None


def number_in_words(text: str) -> int | None:
    """The whole number that words say: seven, twenty-one, one hundred and five; None if they say none."""
    total = part = 0
    words = [word for word in re.split(r"[\s-]+", text.casefold()) if word != "and"]
    for word in words:
        if word in _ONES:
            part += _ONES[word]
        elif word in _TENS:
            part += 10 * _TENS[word]
        elif word == "hundred":
            part = (part or 1) * 100
        elif word in _SCALES:
            total, part = total + (part or 1) * _SCALES[word], 0
        else:
            return None
    return total + part if words else None
