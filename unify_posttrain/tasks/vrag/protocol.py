"""What the model is asked for and how its answers are read: the tags of thoughts, searches, boxes and answers.

Only text that the model wrote comes in here. What it is told names the tags without brackets, so that no message of ours can be
read as an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from unify_posttrain.untrusted.documents import DocumentError, parse

THINK, SEARCH, ANSWER = "think", "search", "answer"
CROP_TAGS = ("bbox", "region")  # of the published code, and of the paper
INVALID, CROP = "invalid", "crop"  # kinds of actions beside SEARCH and ANSWER

Box = tuple[Fraction, Fraction, Fraction, Fraction]


@dataclass(frozen=True)
class Action:
    """What an answer asks for.

    Attributes:
        kind: SEARCH, CROP, ANSWER or INVALID.
        text: of a search or an answer.
        box: x1, y1, x2, y2 of a crop, in pixels of the view shown last.
    """

    kind: str
    text: str = ""
    box: Box | None = None


def read_action(text: str, crop_tag: str) -> Action:
    """The first complete `<tag>content</tag>` outside of thoughts; an open thought hides the rest.

    >>> read_action("<think>maybe <answer>x</answer></think><search>a</search>", "bbox").text
    'a'
    """
    found = _first_tag(text, (SEARCH, crop_tag, ANSWER))
    if found is None or not found[1].strip():
        return Action(INVALID)
    tag, content = found[0], found[1].strip()
    if tag != crop_tag:
        return Action(tag, content)
    box = read_box(content)
    return Action(INVALID) if box is None else Action(CROP, content, box)


def read_box(text: str) -> Box | None:
    """A JSON list of exactly four finite numbers, exactly as they are written; None if it is anything else."""
    try:
        found = parse(text)
    except DocumentError:
        return None
    if not isinstance(found, list) or len(found) != 4 or any(type(each) not in (int, float) for each in found):
        return None
    if any(isinstance(each, float) and not math.isfinite(each) for each in found):
        return None
    x1, y1, x2, y2 = (Fraction(each) if isinstance(each, int) else Fraction(repr(each)) for each in found)
    return x1, y1, x2, y2


def _first_tag(text: str, tags: tuple[str, ...]) -> tuple[str, str] | None:
    """Tag and content. Every tag is searched for from the left once, whatever is open and never closed."""
    opened = {tag: text.find(f"<{tag}>") for tag in (THINK, *tags)}
    place = 0
    while True:
        for tag, found in opened.items():
            if 0 <= found < place:
                opened[tag] = text.find(f"<{tag}>", place)
        here = [(found, tag) for tag, found in opened.items() if found >= 0]
        if not here:
            return None
        begin, tag = min(here)
        inside = begin + len(tag) + 2
        end = text.find(f"</{tag}>", inside)
        if tag == THINK:
            if end < 0:
                return None
            place = end + len(THINK) + 3
        elif end >= 0:
            return tag, text[inside:end]
        else:
            opened[tag] = -1  # none that follows is closed either


def question_text(question: str, crop_tag: str, max_turns: int) -> str:
    """The one message of the user."""
    return (
        "Answer the question from pages of documents, which you look at one by one.\n"
        "- Whenever you have learnt something, first think about it inside <think> and </think>.\n"
        "- <search>words</search> looks for a page; the user then shows you the image of the page that fits best and that you have "
        "not seen yet.\n"
        f"- <{crop_tag}>[x1, y1, x2, y2]</{crop_tag}> enlarges a part of the image that you were shown last: its left, top, right "
        "and bottom edge in pixels of that image.\n"
        f"- Search and enlarge as often as you need, {max_turns} times at most, one of them in each message.\n"
        "- End with <answer>the answer</answer>, a few words.\n"
        f"Question: {question}"
    )


# What the model is told. No message contains a bracket of a tag.
NO_PAGE = "No page that you have not seen yet fits this search. Search with other words, or answer."
NO_SEARCH = "The search does not work at the moment. Try it again, or answer with what you know."
NO_IMAGE = "The page cannot be shown. Search for another one, or answer."


def no_action(crop_tag: str) -> str:
    """To an answer without an action."""
    return (
        f"There is no action in this message that can be carried out. Write exactly one: search with words, {crop_tag} with four "
        "numbers in square brackets, or answer with the answer, each between its tag and its end tag."
    )


def no_crop(reason: str) -> str:
    """To a box that is refused."""
    return f"This part cannot be enlarged: {reason}. Give another one, search, or answer."
