"""Units: their spellings, and where they stand behind a quantity or a currency before it.

A unit is kept, not thrown away: one may be missing on one side, for questions name it, but two have to be the same.
"""

from __future__ import annotations

import re
from fractions import Fraction

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
_MONEY = {
    "\\$": "dollar",
    "\\euro": "euro",
    "\\pounds": "pound",
    "\\yen": "yen",
    "\\rupee": "rupee",
    "Rs": "rupee",
    "INR": "rupee",
    "USD": "dollar",
    "EUR": "euro",
}
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
    text = text.replace("\\$", "dollar").replace("\\%", "%").replace("\\cdot", " ")
    text = re.sub(r"[{}~.]|\\[,;: ]?", " " if "\\" in text else "", text)
    text = re.sub(r"\s*(?:/|\bper\b)\s*", "/", text).strip()
    text = re.sub(r"\s*\^\s*", "^", text)
    if text in _UNITS:
        return _UNITS[text]
    if not text or re.search(r"[^\w\s/^%°$-]|(?<![a-zA-Z^-])\d", text):
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
    if not plain:
        return None  # in \mu_k mg it is a product
    return name(text, known=True) if len(token.text) < 3 or not token.apart else name(text)


def _joined(tokens: Tokens) -> str:
    return "".join((" " if token.apart or token.kind == "text" else "") + token.text for token in tokens)


def currency(tokens: Tokens) -> tuple[Tokens, str]:
    """The tokens without a sign of money before them, and the name of the money; empty if there is none."""
    for index, token in enumerate(tokens[:2]):
        unit = _MONEY.get(token.text.rstrip("."))
        if unit is not None and (index == 0 or is_sign(tokens[0], "-", "+")):
            return [*tokens[:index], *tokens[index + 1 :]], unit
    return tokens, ""


def multiple(unit: str) -> tuple[int, str]:
    """A unit such as `million dollar` as a factor and the rest; 1 if it has none."""
    first, _, rest = unit.partition(" ")
    return (_MULTIPLES[first], rest) if first in _MULTIPLES else (1, unit)


# How many of the smallest one of its kind a unit is.
_SIZES = {
    **{unit: ("time", size) for unit, size in {"s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800}.items()},
    **{unit: ("length", size) for unit, size in {"mm": 1, "cm": 10, "m": 1000, "km": 10**6}.items()},
    **{unit: ("span", size) for unit, size in {"in": 1, "ft": 12, "yd": 36, "mi": 63360}.items()},
    **{unit: ("mass", size) for unit, size in {"mg": 1, "g": 1000, "kg": 10**6}.items()},
    **{unit: ("weight", size) for unit, size in {"oz": 1, "lb": 16}.items()},
    **{unit: ("volume", size) for unit, size in {"mL": 1, "L": 1000}.items()},
    **{unit: ("money", size) for unit, size in {"cent": 1, "dollar": 100}.items()},
    **{unit: ("energy", size) for unit, size in {"J": 1, "kJ": 1000}.items()},
    **{unit: ("power", size) for unit, size in {"W": 1, "kW": 1000}.items()},
    **{unit: ("frequency", size) for unit, size in {"Hz": 1, "kHz": 1000, "MHz": 10**6, "GHz": 10**9}.items()},
    **{unit: ("pressure", size) for unit, size in {"Pa": 1, "kPa": 1000, "MPa": 10**6}.items()},
}


def ratio(unit: str, other: str) -> Fraction | None:
    """How many of another unit one is; None: they are not of one kind."""
    sizes = _SIZES.get(unit), _SIZES.get(other)
    if sizes[0] is None or sizes[1] is None or sizes[0][0] != sizes[1][0]:
        return None
    return Fraction(sizes[0][1], sizes[1][1])


def compound(tokens: Tokens) -> tuple[Fraction, str] | None:
    """`3 hours 20 minutes`, `5 ft 7 in`, `36^\\circ 30'` as one number of the first unit; None: it is nothing of the kind."""
    bare = [token for token in tokens if token.text not in ("{", "}")]
    if len(bare) in (5, 7) and is_sign(bare[1], "^") and bare[2].text == "\\circ" and is_sign(bare[4], "'"):
        seconds = Fraction(bare[5].text) if len(bare) == 7 and bare[5].kind == "number" else Fraction(0)
        if bare[0].kind == bare[3].kind == "number":
            return Fraction(bare[0].text) + Fraction(bare[3].text) / 60 + seconds / 3600, "°"
    parts = [token for token in bare if not is_sign(token, ",", " ") and token.text != "and"]
    if len(parts) < 4 or len(parts) % 2 or any(token.kind != "number" for token in parts[::2]):
        return None
    names = [name(token.text, known=True) if token.kind in ("text", "letters") else None for token in parts[1::2]]
    total, first = Fraction(0), names[0]
    for token, unit in zip(parts[::2], names, strict=True):
        size = None if unit is None or first is None else ratio(unit, first)
        if size is None:
            return None
        total += Fraction(token.text) * size
    return (total, first) if first is not None else None
