"""Numerals whose digits mean more than their value: grouped thousands, digits to a base, times of day."""

from __future__ import annotations

import re

from unify_posttrain.rewards.answers.tokens import Token, Tokens, is_sign, joined
from unify_posttrain.rewards.answers.values import Clock, Numeral

_NAMES = """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
"""
_BASES = {name: base for base, name in enumerate(_NAMES.split(), start=2)} | {"hex": 16, "oct": 8, "bin": 2}  # fmt: skip
_HALVES = {"am": "am", "pm": "pm", "noon": "pm", "midnight": "am"}


def grouped(tokens: Tokens) -> tuple[list[Token], bool]:
    """Tokens with groups of three digits as one number, outside of brackets; and whether a comma could also separate a list.

    1,234,567 and 1 234 567; not 1,23, 12 34, 0,123 or 1, 234.
    """
    found: list[Token] = []
    doubtful = False
    index = depth = 0
    while index < len(tokens):
        token = tokens[index]
        depth += (token.kind in ("open", "begin")) - (token.kind in ("close", "end"))
        end = _group_end(tokens, index) if depth == 0 and token.kind == "number" else index + 1
        if end > index + 1:
            text = "".join(part.text for part in tokens[index:end] if part.kind == "number")
            doubtful |= any(part.kind == "sign" for part in tokens[index:end])
            found.append(Token("number", text, token.apart))
        else:
            found.append(token)
        index = end
    return found, doubtful


def _group_end(tokens: Tokens, start: int) -> int:
    """Where the groups of digits that begin at `start` end; the next token if there are none."""
    if re.fullmatch(r"[1-9]\d{0,2}", tokens[start].text) and not _goes_on(tokens, start - 1, -1):
        for comma in (True, False):
            end = start + 1
            while (after := end + comma) < len(tokens) and _is_group(tokens, end, after, comma) and "." not in tokens[end - 1].text:
                end = after + 1
            if end > start + 1 and not _goes_on(tokens, end, 1):
                return end
    return start + 1


def _is_group(tokens: Tokens, end: int, after: int, comma: bool) -> bool:
    """Whether three digits follow, behind a comma without blanks or behind a blank."""
    if comma and not (is_sign(tokens[end], ",") and not tokens[end].apart):
        return False
    token = tokens[after]
    return token.kind == "number" and token.apart != comma and bool(re.fullmatch(r"\d{3}(?:\.\d+)?", token.text))


def _goes_on(tokens: Tokens, place: int, step: int) -> bool:
    """Whether more digits stand beside some groups, so that they are no groups."""
    if not 0 <= place < len(tokens):
        return False
    if tokens[place].kind == "number":
        return True
    beyond = place + step
    if not is_sign(tokens[place], ",") or not 0 <= beyond < len(tokens) or tokens[beyond].kind != "number":
        return False
    return not (tokens[beyond].apart if step > 0 else tokens[place + 1].apart)


def numeral(tokens: Tokens) -> Numeral | None:
    r"""Digits with a base as their index: 2516_7, 1A_{16}, 2516_{\text{eight}}."""
    place = next((index for index, token in enumerate(tokens) if is_sign(token, "_")), None)
    if place and tokens[0].text == "(" and tokens[place - 1].text == ")":  # (1011)_2
        tokens, place = [*tokens[1 : place - 1], *tokens[place:]], place - 2
    if not place or any(
        token.kind not in ("number", "letters") or (token.apart and index) for index, token in enumerate(tokens[:place])
    ):
        return None
    digits = "".join(token.text for token in tokens[:place]).upper()
    base_text = joined([token for token in tokens[place + 1 :] if token.text not in ("{", "}", "(", ")")])
    base = _BASES.get(base_text.lower()) or (int(base_text) if re.fullmatch(r"\d{1,2}", base_text) else 0)
    if not 2 <= base <= 36 or not re.fullmatch(r"[0-9A-Z]+", digits):
        return None
    if not any(token.kind == "number" for token in tokens[:place]) and base <= 10:
        return None  # a letter with an index
    return Numeral(digits.lstrip("0") or "0", base)


def clock(tokens: Tokens) -> Clock | None:
    """A time of day: 4:30, 4:30 pm, 16:05; minutes have two digits."""
    if len(tokens) == 2 and tokens[0].kind == "number" and tokens[0].text.isdigit():  # 9 AM
        half = re.sub(r"[^a-z]", "", tokens[1].text.lower())
        return Clock(int(tokens[0].text), 0, half) if half in _HALVES.values() and 1 <= int(tokens[0].text) <= 12 else None
    if len(tokens) < 3 or not is_sign(tokens[1], ":") or tokens[0].kind != "number" or tokens[2].kind != "number":
        return None
    hour, minute = tokens[0].text, tokens[2].text
    if not re.fullmatch(r"\d{1,2}", hour) or not re.fullmatch(r"[0-5]\d", minute) or int(hour) > 24:
        return None
    rest = re.sub(r"[^a-z]", "", "".join(token.text for token in tokens[3:]).lower())
    if len(tokens) > 3 and rest not in _HALVES:
        return None
    return Clock(int(hour), int(minute), _HALVES.get(rest, ""))
