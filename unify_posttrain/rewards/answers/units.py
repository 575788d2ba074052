"""Units: their spellings, and where they stand behind a quantity or a currency before it.

A unit is kept, not thrown away: one may be missing on one side, for questions name it, but two have to be the same.
"""

from __future__ import annotations

import re

from unify_posttrain.rewards.answers.names import FUNCTIONS
from unify_posttrain.rewards.answers.tokens import Token, Tokens, is_sign

# Spellings, the name first. Text behind a number that is not here is a noun, and a unit by its own name.
_SPELLINGS = r"""
    mm millimeter millimeters millimetre millimetres | cm centimeter centimeters centimetre centimetres
    m meter meters metre metres | km kilometer kilometers kilometre kilometres | in inch inches | ft foot feet | yd yard yards
    mi mile miles | s sec secs second seconds | min mins minute minutes | h hr hrs hour hours | day days | week weeks
    month months | year years yr yrs | g gram grams | mg milligram milligrams | kg kilogram kilograms | lb lbs | oz ounce ounces
    t ton tons tonne tonnes | L l liter liters litre litres | mL ml milliliter milliliters | gal gallon gallons
    dollar dollars USD \$ buck bucks | cent cents | euro euros EUR | pound pounds GBP | yen | rupee rupees | rad radian radians
    % \% percent pct percentage | ° degree degrees deg | °C °c | °F °f | mph mi/h miles/hour mile/hour
    km/h kmh kmph kph kilometers/hour kilometer/hour | m/s meters/second meter/second | ft/s feet/second | K kelvin kelvins
    N newton newtons | J joule joules | kJ | W watt watts | kW | V volt volts | A amp amps ampere amperes | Pa pascal pascals
    kPa | MPa | Hz hertz | kHz | MHz | GHz | eV | keV | MeV | GeV | mol mole moles | C coulomb coulombs | T tesla teslas | Wb
    F farad farads | ohm ohms | atm | bar bars | cal | kcal | nm | dB | kWh | sq | acre acres | ha hectare hectares
"""
_UNITS = {
    spelling: group.split()[0]
    for line in _SPELLINGS.strip().splitlines()
    for group in line.split(" | ")
    for spelling in group.split()
}
_MONEY = {"\\$": "dollar", "\\euro": "euro", "\\pounds": "pound", "\\yen": "yen", "\\rupee": "rupee"}
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_COUNTED = {"unit": "unit", "units": "unit"}
_POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
_DIMENSIONS = {"squared": "2", "cubed": "3"}


def spelled(token: Token) -> bool:
    """Whether letters without a text around them are the spelling of a unit."""
    return token.kind == "letters" and token.text in _UNITS


def name(text: str, known: bool = False) -> str | None:
    r"""The name of a unit as it may be spelled: `cubic centimeters` is `cm^3`, and `m s^{-1}` is `m/s`.

    Args:
        text: the spelling.
        known: only units of the list, no nouns.
    """
    text = re.sub(r"[{}~.]|\\[,;: ]?", " " if "\\" in text else "", text.replace("\\$", "dollar").replace("\\%", "%"))
    text = re.sub(r"\s*(?:/|\bper\b)\s*", "/", text.replace("\\cdot", " ")).strip()
    text = re.sub(r"\s*\^\s*", "^", text)
    if text in _UNITS:
        return _UNITS[text]
    if not text or re.search(r"[^\w\s/^%°$-]", text):
        return None
    over: list[str] = []
    under: list[str] = []
    power = ""
    for place, side in enumerate(text.split("/")):
        for word in side.split():
            if word in _POWERS and word != side.strip():
                power = _POWERS[word]
                continue
            if word in _DIMENSIONS and over:
                (under if place else over)[-1] += _DIMENSIONS[word]
                continue
            stem, _, exponent = word.partition("^")
            unit = _UNITS.get(stem) or _UNITS.get(stem.lower() if len(stem) > 2 else stem) or _COUNTED.get(stem.lower())
            if unit is None and (known or not re.fullmatch(r"[A-Za-z][A-Za-z-]+", stem)):
                return None
            unit = unit or _singular(stem.lower())
            exponent = exponent or power
            power = ""
            below = bool(place) != exponent.startswith("-")
            (under if below else over).append(unit + exponent.lstrip("-").replace("1", "", 1 if exponent in ("1", "-1") else 0))
    whole = " ".join(over) + ("/" + " ".join(under) if under else "")
    return _UNITS.get(whole, whole)


def _singular(noun: str) -> str:
    for ending, instead in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if noun.endswith(ending) and len(noun) > len(ending) + 1 and not noun.endswith("ss"):
            return noun[: -len(ending)] + instead
    return noun


def behind(tokens: Tokens) -> tuple[int, str] | None:
    """Where the unit behind a quantity begins, and its name: the longest one that is text, letters of a unit and signs.

    Single letters are units behind a bare number and a blank alone: in 2m and in 2πm they are factors.
    """
    for start in range(1, len(tokens)):
        token, before = tokens[start], tokens[start - 1]
        if before.kind in ("command", "sign") and before.text != "\\pi":
            continue
        if token.text in ("\\%", "%") and start == len(tokens) - 1:
            return start, "%"
        if (degree := _degree(tokens, start)) is not None:
            return start, degree
        if token.kind == "text" or (token.kind == "letters" and before.kind in ("number", "close", "letters")):
            unit = _unit(tokens, start)
            if unit is not None:
                return start, unit
    return None


def _degree(tokens: Tokens, start: int) -> str | None:
    r"""`^\circ`, `^{\circ}`, perhaps with C or F behind it."""
    if not is_sign(tokens[start], "^") or any(token.text.lstrip("\\") in FUNCTIONS for token in tokens[:start]):
        return None  # of an angle in it: sin 30°
    rest = [token for token in tokens[start + 1 :] if token.text not in ("{", "}")]
    if not rest or rest[0].text != "\\circ" or len(rest) > 2:
        return None
    return "°" if len(rest) == 1 else {"C": "°C", "F": "°F"}.get(rest[1].text)


def _unit(tokens: Tokens, start: int) -> str | None:
    token = tokens[start]
    rest = tokens[start:]
    if any(
        part.kind not in ("text", "letters", "number", "open", "close") and not is_sign(part, "^", "/", "-", "\\cdot", " ")
        for part in rest
    ):
        return None
    text = _joined(rest)
    if token.text in FUNCTIONS - {"min"}:
        return None
    if token.kind == "text":
        return name(text)
    plain = start == 1 or all(part.kind in ("number", "sign", "open", "close", "command") for part in tokens[:start])
    if len(token.text) == 1:
        return name(text, known=True) if plain and token.apart else None
    if token.text == "pi":
        return None
    if len(token.text) < 3 or not token.apart:
        return name(text, known=True)
    return name(text) if plain else name(text, known=True)


def _joined(tokens: Tokens) -> str:
    return "".join((" " if token.apart or token.kind == "text" else "") + token.text for token in tokens)


def currency(tokens: Tokens) -> tuple[Tokens, str]:
    """The tokens without a sign of money before them, and the name of the money; empty if there is none."""
    for index, token in enumerate(tokens[:2]):
        unit = _MONEY.get(token.text)
        if unit is not None and (index == 0 or is_sign(tokens[0], "-", "+")):
            return [*tokens[:index], *tokens[index + 1 :]], unit
    return tokens, ""


def multiple(unit: str) -> tuple[int, str]:
    """A unit such as `million dollar` as a factor and the rest; 1 if it has none."""
    first, _, rest = unit.partition(" ")
    return (_MULTIPLES[first], rest) if first in _MULTIPLES else (1, unit)
