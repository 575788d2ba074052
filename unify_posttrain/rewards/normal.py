r"""Normal forms of answers: two texts that say the same in other letters become equal strings. Own rules, no parser, one pass each.

    \left( \dfrac12, 3 \right) .   ->   (\frac{1}{2},3)
    x = 1,234 \text{ dollars}      ->   value 1234, unit dollar

What cannot be right to drop is kept: a unit is split off, not thrown away, so that 5 cm is not 5 m.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 1000  # a longer answer is compared as it is
MAX_DIGITS = 400  # of a number that is computed with, and of its exponent's value

# The first alternative is kept: a line break in a matrix is no backslash before a space.
_ERASED = re.compile(
    r"(\\\\)|\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|big|Big|displaystyle|textstyle|limits|quad|qquad)(?![a-zA-Z])"
    r"|\\[,;:!> $]|[~$]"
)
_SYNONYMS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\leq": "\\le", "\\geq": "\\ge",
    "\\leqslant": "\\le", "\\geqslant": "\\ge", "\\neq": "\\ne", "\\lbrace": "\\{", "\\rbrace": "\\}",
    "\\times": "\\cdot", "\\ast": "\\cdot", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|",
    "\\varnothing": "\\emptyset", "\\to": "\\rightarrow",
}  # fmt: skip
_COMMAND = re.compile("|".join(f"{re.escape(name)}(?![a-zA-Z])" for name in _SYNONYMS))
_LETTERS = str.maketrans({
    "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "×": "\\cdot ", "·": "\\cdot ", "∪": "\\cup ", "∩": "\\cap ", "∞": "\\infty ",
    "π": "\\pi ", "√": "\\sqrt ", "−": "-", "–": "-", "°": "^\\circ ", "∅": "\\emptyset ", "½": "\\frac{1}{2}", "±": "\\pm ",
    "∈": "\\in ", "⁄": "/", "²": "^2", "³": "^3", "\u00a0": " ",
})  # fmt: skip
_WRAPPERS = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boldsymbol|rm|bf)\s*\{([^{}]*)\}"
)
_SHORT_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\d)|([a-zA-Z]))\s*(?:\{([^{}]*)\}|(\d)|([a-zA-Z]))")
_SHORT_ROOT = re.compile(r"\\sqrt\s*(\d|[a-zA-Z])(?![\d{])")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NAME = re.compile(r"[a-zA-Z]|\\[a-zA-Z]+|[a-zA-Z]\([a-zA-Z]\)|[a-zA-Z]_\{?\w\}?")  # x, \theta, f(x), a_n
_OR = re.compile(r"(?:\s|\\text\s*\{)\s*(?:or|and)\s*\}?(?=\s|[\\-]|$)", re.IGNORECASE)  # between solutions
_PLAIN_ROOT = re.compile(r"(?<![\\a-zA-Z])sqrt\(([^()]*)\)")
_CHOICE = re.compile(r"\(?([A-Z])(?:\)|\.|:)?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?")
_FRACTION = re.compile(r"([+-]?)(?:\\frac\{([+-]?\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_MIXED = re.compile(r"([+-]?)(\d+)\\frac\{(\d+)\}\{(\d+)\}")
_POWER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:\\cdot|\*)10\^(?:\{([+-]?\d{1,3})\}|([+-]?\d{1,3}))")
_SPACE = re.compile(r"(\\[a-zA-Z]+)\s+(?=[a-zA-Z])|\s+")  # \pi r is not \pir
_APART = re.compile(r"(?:[\s~{]|\\[,;: ])[a-zA-Z]\}?\.?\$?$")  # a last letter that stands for itself
_UNIT = re.compile(
    r"(?P<value>.*[\d}).])(?P<unit>(?:[a-zA-Z]+(?:\^\{?[23]\}?)?(?:/[a-zA-Z]+)?)|\^\{?\\circ\}?[CF]?|\\degree|%|\\%)"
)

# Spellings of a unit, its name first. What is not here is no unit: letters after a number are a factor.
_SPELLINGS = r"""
    mm millimeter millimeters | cm centimeter centimeters | m meter meters metre metres | km kilometer kilometers
    in inch inches | ft foot feet | yd yard yards | mi mile miles | s sec second seconds | min minute minutes
    h hr hour hours | day days | week weeks | month months | year years | g gram grams | kg kilogram kilograms
    lb lbs pound pounds | oz ounce ounces | L liter liters litre litres | mL ml | dollar dollars USD | cent cents
    euro euros | unit units | squareunits squareunit | cubicunits cubicunit | people | students | way ways | point points
    rad radian radians | % \% percent | ^\circ ^{\circ} \degree degree degrees deg | ^\circC ^{\circ}C | ^\circF ^{\circ}F
    cm^2 cm^{2} squarecm squarecentimeters | m^2 m^{2} squaremeters | cm^3 cm^{3} cubiccm cubiccentimeters
    m^3 m^{3} cubicmeters | in^2 in^{2} squareinches | ft^2 ft^{2} squarefeet | mph milesperhour | km/h kmh kmph | m/s
"""
_UNITS = {
    spelling: names.split()[0]
    for line in _SPELLINGS.strip().splitlines()
    for names in line.split("|")
    for spelling in names.split()
}


@dataclass(frozen=True)
class Answer:
    """An answer in normal form.

    Attributes:
        value: without its unit.
        unit: name of the unit, empty if none is given.
    """

    value: str
    unit: str = ""

    @property
    def text(self) -> str:
        """One string, for majority votes: equal numbers of one unit have equal texts."""
        number = parse_number(self.value)
        return (self.value if number is None else str(number)) + self.unit


def normal_form(text: str) -> Answer:
    r"""The normal form of an answer (LaTeX or plain). Longer ones than MAX_CHARACTERS are only stripped."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        return Answer(text)
    apart = bool(_APART.search(text))
    text = text.translate(_LETTERS)
    text = re.sub(r"^\\[\[(]|\\[\])]$", "", text)
    text = _COMMAND.sub(lambda match: _SYNONYMS[match[0]], text)
    text = _ERASED.sub(lambda match: match[1] or (" " if match[0] in ("~", "\\ ") else ""), text)
    text = _OR.sub(",", text) if re.search(r"\d", text) else text
    text = _unwrapped(text).strip().rstrip(".,;:").strip()
    words = " ".join(text.split())
    if re.fullmatch(r"[A-Za-z][a-z]+(?: [A-Za-z]+)*", words):
        return Answer(words.lower())  # words, not a product of letters
    text = _SPACE.sub(lambda match: f"{match[1]} " if match[1] else "", text)
    text = text.replace("{,}", ",")
    choice = _CHOICE.fullmatch(text)
    if choice:
        return Answer(choice.group(1))
    text = _PLAIN_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_ROOT.sub(r"\\sqrt{\1}", text)
    text = _SHORT_FRACTION.sub(_full_fraction, text)
    if text.count("=") == 1:
        left, _, right = text.partition("=")
        text = right if _NAME.fullmatch(left) else left if _NAME.fullmatch(right) else text
    value, unit = _split_unit(text, apart)
    if _THOUSANDS.fullmatch(value):
        value = value.replace(",", "")
    return Answer(value, unit)


def _unwrapped(text: str) -> str:
    """Without \\text{...} and the like; nested ones up to the depth that short answers have."""
    for _ in range(4):
        text, count = _WRAPPERS.subn(lambda match: match.group(1), text)
        if not count:
            break
    return text


def _full_fraction(match: re.Match[str]) -> str:
    above, below = (next(part for part in match.groups()[start : start + 3] if part is not None) for start in (0, 3))
    return f"\\frac{{{above}}}{{{below}}}"


def _split_unit(text: str, apart: bool) -> tuple[str, str]:
    """A single letter is a unit only behind a number and apart from it: in 2m, 2π m and (a+b)g it is a factor. Degrees behind
    something that is no number belong to an angle in it: sin 30°."""
    match = _UNIT.fullmatch(text)
    if not match or match["unit"] not in _UNITS:
        return text, ""
    value, unit = match["value"], match["unit"]
    number = parse_number(value) is not None
    if (len(unit) == 1 and unit.isalpha() and not (apart and number)) or ("circ" in unit and not number):
        return text, ""
    return value, _UNITS[unit]


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a whole number, decimal, fraction a/b or \frac{a}{b}, mixed number or a*10^b; None for anything else.

    >>> parse_number(r"2\frac{1}{2}")
    Fraction(5, 2)
    """
    if len(text) > MAX_DIGITS:
        return None
    text = text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
    text = text[1:-1] if text.startswith("{") and text.endswith("}") else text
    if _NUMBER.fullmatch(text):
        return Fraction(text.rstrip("."))
    if match := _FRACTION.fullmatch(text):
        sign, above, below, plain_above, plain_below = match.groups()
        return _ratio(sign, int(above or plain_above), int(below or plain_below))
    if match := _MIXED.fullmatch(text):
        sign, whole, above, below = match.groups()
        return _ratio(sign, int(whole) * int(below) + int(above), int(below))
    if match := _POWER.fullmatch(text):
        return Fraction(match[1].rstrip(".")) * Fraction(10) ** int(match[2] or match[3])
    return None


def _ratio(sign: str, above: int, below: int) -> Fraction | None:
    if below == 0:
        return None
    return Fraction(above, below) * (-1 if sign == "-" else 1)
