"""Words of general points: what is asked, how a worked answer looks, and what a wrong answer is told, in three styles.

    native     wording of ours, strict JSON
    upstream   the layout that published data and models have: three blocks, Python's quotes, a comma before the closing brace
    compact    for models that read characters: `JQK=10|K 3 8`, answered by `{c:K 3 8;n:10 3 8;f:(10-…)=24}`

Cards that are shown as a picture are named nowhere: the picture stands first, and an answer begins with what it shows.
Numbers and operators are all that feedback repeats of an answer, a bounded part of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from unify_posttrain.tasks.general_points.cards import Hand
from unify_posttrain.tasks.general_points.verifier import Fault, Finding

SHOWN_FAULTS = 6  # said in one feedback; 4,000 characters can hold thousands
SHOWN_NUMBERS = 8
SHOWN_DIGITS = 9
PLACES = ("{cards}", "{labels}", "{target}", "{rule}")  # of a template of one's own
IMAGE = "<image>"  # the mark of the picture

_UPSTREAM = {
    "characters": "illegal characters",
    "none": "illegal characters",
    "leading_zero": "illegal characters",
    "after_operator": "invalid sequence after operator",
    "after_number": "invalid sequence after number",
    "after_closing": "invalid sequence after ')'",
    "before_opening": "invalid sequence before '('",
    "unmatched": "unmatched closing parenthesis",
    "invalid": "you used invalid numbers: {}",
    "too_often": "you used numbers: {} too many times",
    "unused": "you didn't use numbers: {}",
    "vision": "the cards are not those of the image",
    "right_side": "the right side is not {}",
    "partial": "partial solution",
}
_NATIVE = {
    "characters": "a formula consists of whole numbers, + - * / and brackets",
    "none": 'there is no "formula" with a text in quotes',
    "leading_zero": "a number begins with 0",
    "after_operator": "an operator stands where a number or a bracket is needed",
    "after_number": "a number stands where an operator is needed",
    "after_closing": "a closing bracket stands where a number is needed",
    "before_opening": "there is no operator before an opening bracket",
    "unmatched": "a closing bracket was never opened",
    "invalid": "these numbers are on no card: {}",
    "too_often": "these numbers are used too often: {}",
    "unused": "these numbers are not used: {}",
    "vision": "the cards are not those of the picture",
    "right_side": "the number after = is not {}",
    "partial": "the formula is not finished",
}
_COMPACT = {
    "characters": "signs",
    "none": "f",
    "leading_zero": "0",
    "after_operator": "order",
    "after_number": "order",
    "after_closing": "order",
    "before_opening": "order",
    "unmatched": "order",
    "invalid": "bad {}",
    "too_often": "twice {}",
    "unused": "left {}",
    "vision": "c",
    "right_side": "={}",
    "partial": "end",
}


def rule_sentence(hand: Hand) -> str:
    """What faces are worth, in the words of the hand's style."""
    if hand.style == "upstream":
        worth = "'10'" if hand.rule == "ten" else "'11', '12', and '13' respectively"
        return f"'J', 'Q', and 'K' count as {worth}."
    if hand.style == "compact":
        return "JQK=10" if hand.rule == "ten" else "JQK=11,12,13"
    return "J, Q and K are worth 10 each." if hand.rule == "ten" else "J is worth 11, Q is worth 12 and K is worth 13."


def question(hand: Hand, template: str | None = None) -> str:
    """The message of the user.

    Args:
        template: of the user's, with some of PLACES; None: the style's own.
    """
    shown = IMAGE if hand.suits else ""
    if template is not None:
        parts = (str(list(hand.labels)), ", ".join(hand.labels), str(hand.target), rule_sentence(hand))
        for place, part in zip(PLACES, parts, strict=True):
            template = template.replace(place, part)
        return f"{shown}{template}"
    return shown + {"native": _native, "upstream": _upstream, "compact": _compact}[hand.style](hand)


def _native(hand: Hand) -> str:
    named = "" if hand.suits else f"Cards: {', '.join(hand.labels)}\n"
    told = "as the picture shows them: A, 2 to 10, J, Q or K" if hand.suits else "as they are written here"
    return (
        f"Find a formula that is exactly {hand.target}. Use the number of every card once, the operators + - * / and brackets; "
        f"use nothing else. An A is worth 1, a number itself. {rule_sentence(hand)}\n"
        f"{named}"
        f'Answer with a JSON object and nothing besides, one key per line: "cards", the list of the cards {told}; '
        f'"number", the list of what they are worth, as integers; "formula", a text: your formula, then ={hand.target}.'
    )


def _upstream(hand: Hand) -> str:
    given, where = ("", "image") if hand.suits else (f"[Input]\nCards: {list(hand.labels)}\n\n", "input")
    places = ", ".join("xyzw"[: len(hand.labels)]), ", ".join("abcd"[: len(hand.labels)])
    return (
        "[Task Description]\n"
        f"{len(hand.labels)} cards are given. Combine what they count into a formula that evaluates to {hand.target}, with the "
        "operators '+', '-', '*', '/' and parentheses. Each card is used once. "
        f"'A' counts as '1'. {rule_sentence(hand)}\n\n"
        f"{given}"
        "[Output]\n"
        f"Reply with an object of three keys. 'cards': the cards of the {where}. 'number': what they count; {rule_sentence(hand)} "
        f"'formula': the formula, which equals {hand.target}.\n"
        "{\n"
        f'"cards": [{places[0]}],\n'
        f'"number": [{places[1]}],\n'
        "\"formula\": '…',\n"
        "}"
    )


def _compact(hand: Hand) -> str:
    of_target = "" if hand.target == 24 else f"|{hand.target}"
    named = "" if hand.suits else f"|{' '.join(hand.labels)}"
    return f"{rule_sentence(hand)}{of_target}{named}"


def answer(hand: Hand, formula: str) -> str:
    """The worked answer with this formula: what a demonstration says."""
    labels, values, equation = list(hand.labels), list(hand.values), f"{formula}={hand.target}"
    if hand.style == "compact":
        return f"{{c:{' '.join(labels)};n:{' '.join(map(str, values))};f:{equation}}}"
    if hand.style == "upstream":
        return f'{{\n"cards": {labels},\n"number": {values},\n"formula": "{equation}",\n}}'
    lines = (f'  "{key}": {json.dumps(value)}' for key, value in (("cards", labels), ("number", values), ("formula", equation)))
    return "{\n" + ",\n".join(lines) + "\n}"


def hint(hand: Hand, text: str) -> list[str]:
    """An answer in the steps that a hint is cut at: its lines, or its parts up to each `;`."""
    if hand.style != "compact":
        return text.splitlines(keepends=True)
    parts = text.split(";")
    return [f"{part};" for part in parts[:-1]] + parts[-1:]


def message(finding: Finding, style: str) -> str:
    """What was found, in the words of a style, as one piece of a sentence."""
    say, between = _SAYERS[style]
    faults = list(dict.fromkeys(map(say, finding.faults)))
    return between.join(faults[:SHOWN_FAULTS])


def feedback(finding: Finding, style: str) -> str:
    """The message of the user after an answer that is not right."""
    said = message(finding, style)
    if style == "upstream":
        return f"You failed this trial because {said}."
    if style == "compact":
        return f"no:{said}"
    return f"That is not right: {said}. Answer again, in the same form."


def _upstream_fault(fault: Fault) -> str:
    if fault.name == "no_solution":
        if fault.about:
            return f"{fault.about[0]} is partially correct but the full formula does not match any solution"
        return "your formula does not match any solution"
    return _UPSTREAM[fault.name].format(_numbers(fault, ", ", "[{}]" if fault.outcome == "incorrect_number" else "{}"))


def _native_fault(fault: Fault) -> str:
    if fault.name == "no_solution":
        begun = f"; solutions begin with {fault.about[0]}, none goes on as yours does" if fault.about else ""
        return f"the formula has another value{begun}"
    return _NATIVE[fault.name].format(_numbers(fault, ", "))


def _compact_fault(fault: Fault) -> str:
    if fault.name == "no_solution":
        return f"ok {fault.about[0]}" if fault.about else "value"
    return _COMPACT[fault.name].format(_numbers(fault, " "))


def _numbers(fault: Fault, between: str, around: str = "{}") -> str:
    shown = [_short(str(each)) for each in fault.about[:SHOWN_NUMBERS]]
    return around.format(between.join([*shown, *(["..."] if len(fault.about) > SHOWN_NUMBERS else [])]))


def _short(digits: str) -> str:
    return digits if len(digits) <= SHOWN_DIGITS else f"{digits[:SHOWN_DIGITS]}..."


_SAYERS: dict[str, tuple[Callable[[Fault], str], str]] = {
    "upstream": (_upstream_fault, ", "),
    "native": (_native_fault, "; "),
    "compact": (_compact_fault, ";"),
}


def read_template(key: str, text: Any, pictures: bool = False) -> str:
    """A template of one's own.

    Args:
        key: that names it, for messages.
        text: of the template.
        pictures: the cards are shown as a picture, in front of it.

    Raises:
        ValueError: it has no place for the cards, or names cards that are to be seen.
    """
    if pictures:
        named = [place for place in (*PLACES[:2], IMAGE) if place in str(text)]
        if not isinstance(text, str) or named:
            raise ValueError(f"{key}: the cards are shown as a picture in front of the text; take {', '.join(named)} out of it")
        return text
    if not isinstance(text, str) or not any(place in text for place in PLACES[:2]):
        raise ValueError(f"{key}: the template has no place for the cards; write {PLACES[0]} or {PLACES[1]} where they belong")
    return text
