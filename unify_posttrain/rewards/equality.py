r"""When are two answers equal? From cheap and certain to costly: text, number, structure, symbols, math-verify.

Each rung says yes, no, or that it does not know; the next one is asked only then. Parsing and simplifying are sympy's and
math-verify's, whose time and memory are unbounded: call these only where they can be killed (`unify_posttrain.rewards.pool`).
Text is never evaluated: the LaTeX grammar of latex2sympy2 builds expressions node by node, and math-verify's parser of plain
expressions, which would call sympy's `parse_expr`, is left out.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence

import sympy
from latex2sympy2_extended import latex2sympy
from math_verify import LatexExtractionConfig, parse, verify

from unify_posttrain.rewards.normal import MAX_CHARACTERS, Answer, normal_form, parse_number

logger = logging.getLogger(__name__)
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that timeouts are ours to set, which they are

PROBE = r"\frac{5}{7}+w"  # an answer like no other
RELATIVE_TOLERANCE = 1e-4  # of numeric equality, as in PRIME's grader

_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_MATRIX = re.compile(r"\\begin\{([pbvV]?matrix|array)\}(?:\{[clr|]*\})?(.*?)\\end\{\1\}", re.DOTALL)
_SET = re.compile(r"\\\{(.*)\\\}", re.DOTALL)

_VARIABLE, _BOUND = r"[a-zA-Z]", r"[^<>=,]*?\d[^<>=,]*|-?\\infty"
_BETWEEN = re.compile(rf"({_BOUND})\s*(<|\\le)\s*({_VARIABLE})\s*(<|\\le)\s*({_BOUND})")
_BEYOND = re.compile(rf"({_VARIABLE})\s*(<|>|\\le|\\ge)\s*({_BOUND})")
_OPEN, _CLOSE = {"<": "(", r"\le": "["}, {"<": ")", r"\le": "]"}

_WORD = re.compile(r"[A-Za-z]|[a-z]+(?: [a-z]+)*")  # in normal form: a letter, or words

Equality = Callable[[str, str], bool]


def same_text(answer: Answer, gold: Answer) -> bool:
    """Equal normal forms; a unit may be missing on one side, but two units have to be the same."""
    return answer.value == gold.value and _units_agree(answer, gold)


def same_number(answer: Answer, gold: Answer) -> bool | None:
    """Equal exact values; None unless both are numbers. 50 % is 0.5, and also 50 (a percentage asked for as such)."""
    values = parse_number(answer.value), parse_number(gold.value)
    if values[0] is None or values[1] is None:
        return None
    if (answer.unit == "%") != (gold.unit == "%"):
        share, other = (values[0], values[1]) if answer.unit == "%" else (values[1], values[0])
        other_unit = gold.unit if answer.unit == "%" else answer.unit
        return not other_unit and other in (share, share / 100)
    return values[0] == values[1] and _units_agree(answer, gold)


def _units_agree(answer: Answer, gold: Answer) -> bool:
    return answer.unit == gold.unit or not answer.unit or not gold.unit


def same_structure(answer: str, gold: str, equal: Equality) -> bool | None:
    r"""Compare matrices, unions, sets, intervals, tuples and lists part by part; None unless both are of one of these kinds.

    Order counts in tuples, intervals and matrices, not in unions, sets and bare lists. ( and [ are different ends.
    """
    for take in (_matrix, _union):
        parts = take(answer), take(gold)
        if parts[0] is not None and parts[1] is not None:
            return parts[0][0] == parts[1][0] and _pairwise(parts[0][1], parts[1][1], equal, ordered=parts[0][0] != "union")
    parts = _enclosed(answer), _enclosed(gold)
    if parts[0] is None or parts[1] is None:
        return None
    (kind_a, items_a), (kind_b, items_b) = parts
    if len(items_a) == len(items_b) == 1 and kind_a == kind_b == "list":
        return None
    unordered = {"set", "list"}
    if kind_a != kind_b and not {kind_a, kind_b} <= unordered:
        # Brackets left away around a pair: the order still has to be the same.
        if "list" in (kind_a, kind_b) and {kind_a, kind_b} & {"()", "[]"} and len(items_a) == len(items_b) > 1:
            return _pairwise(items_a, items_b, equal, ordered=True)
        return False if "list" not in (kind_a, kind_b) else None
    return _pairwise(items_a, items_b, equal, ordered=kind_a not in unordered)


def _pairwise(items_a: Sequence[str], items_b: Sequence[str], equal: Equality, ordered: bool) -> bool:
    if len(items_a) != len(items_b):
        return False
    if ordered:
        return all(equal(a, b) for a, b in zip(items_a, items_b, strict=True))
    left = list(items_b)
    for a in items_a:
        match = next((index for index, b in enumerate(left) if equal(a, b)), None)
        if match is None:
            return False
        del left[match]
    return True


def _matrix(text: str) -> tuple[str, list[str]] | None:
    match = _MATRIX.fullmatch(text)
    if not match:
        return None
    rows = [row.split("&") for row in match[2].strip().removesuffix(r"\\").split(r"\\")]
    determinant = "determinant" if match[1] in ("vmatrix", "Vmatrix") else "matrix"
    return f"{determinant} {[len(row) for row in rows]}", [entry.strip() for row in rows for entry in row]


def _union(text: str) -> tuple[str, list[str]] | None:
    parts = split_outside(text, r"\cup")
    return ("union", parts) if len(parts) > 1 else None


def _enclosed(text: str) -> tuple[str, list[str]] | None:
    """(kind, parts): `set`, the two brackets of a tuple or an interval, or `list` for everything else."""
    if match := _SET.fullmatch(text):
        return "set", split_outside(match[1], ",")
    if interval := _interval(text):
        return interval
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _closes_at_end(text):
        parts = split_outside(text[1:-1], ",")
        if len(parts) > 1:
            return text[0] + text[-1], parts
    return "list", [part for item in split_outside(text, ",") for part in _both_signs(item)]


def _interval(text: str) -> tuple[str, list[str]] | None:
    r"""An inequality in one variable as the interval it says: ``x\ge3`` is ``[3,\infty)``, ``1<x\le2`` is ``(1,2]``."""
    if match := _BETWEEN.fullmatch(text):
        below, low, high, above = match[1], match[2], match[4], match[5]
        return _OPEN[low] + _CLOSE[high], [below, above]
    if match := _BEYOND.fullmatch(text):
        sign, bound = match[2], match[3]
        if sign in ("<", r"\le"):
            return "(" + _CLOSE[sign], [r"-\infty", bound]
        return _OPEN[{">": "<", r"\ge": r"\le"}[sign]] + ")", [bound, r"\infty"]
    return None


def _both_signs(item: str) -> list[str]:
    r"""``a\pm b`` is two answers."""
    before, found, after = item.partition(r"\pm")
    return [before + sign + after for sign in ("+" if before else "", "-")] if found else [item]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0:
            return position == len(text) - 1
    return False


def split_outside(text: str, separator: str) -> list[str]:
    r"""Split at a separator that stands in no bracket: ``1,(2,3)`` at commas gives ``1`` and ``(2,3)``."""
    parts, depth, start, position = [], 0, 0, 0
    while position < len(text):
        character = text[position]
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and text.startswith(separator, position):
            parts.append(text[start:position])
            start = position = position + len(separator)
            continue
        position += 1
    parts.append(text[start:])
    return [part.strip() for part in parts]


def same_symbols(answer: str, gold: str) -> bool | None:
    """Whether two LaTeX expressions are equal as formulas; None unless both can be parsed. Unbounded time and memory."""
    parsed = _parse(answer), _parse(gold)
    if any(not isinstance(value, sympy.Expr) for value in parsed):
        return None
    difference = sympy.simplify(parsed[0] - parsed[1])
    return bool(difference == 0 or difference.equals(0))


def _parse(text: str) -> object:
    try:
        return latex2sympy(text, convert_degrees="circ" in text)
    except Exception as error:  # whatever the grammar does not know, in whatever exception
        logger.debug("%r is no LaTeX expression: %s", text[:80], error)
        return None


def same_by_math_verify(answer: str, gold: str, boxed: bool = True) -> bool:
    """math-verify's verdict on two LaTeX texts. Unbounded time and memory.

    Args:
        boxed: put the texts into math mode, as an answer that has been extracted has to be; false: they are texts in which it finds
            the answer itself.
    """
    parsed = [parse_by_math_verify(f"${text}$" if boxed else text) for text in (gold, answer)]
    return bool(all(parsed) and verify(*parsed, timeout_seconds=None))


def parse_by_math_verify(text: str) -> list[object]:
    """What math-verify finds in a text, LaTeX only (its plain-expression parser would evaluate text)."""
    # Its own timeouts are signals, which work in the main thread alone and raise what no one expects: our worker's timer does it.
    return parse(text, extraction_config=(LatexExtractionConfig(),), parsing_timeout=None)


def same_value(answer: str, gold: str) -> bool:
    """Numeric equality as in PRIME's grader: relative tolerance 1e-4, π as itself or 3.14; unbounded time and memory."""
    parsed = [_parse(text) for text in (answer, gold)]
    if any(not isinstance(value, sympy.Expr) for value in parsed):
        return False
    for pi in (sympy.pi, sympy.Float("3.14")):
        numbers = [sympy.N(expression.subs(sympy.pi, pi)) for expression in parsed]
        if all(number.is_number for number in numbers) and _close(*(complex(number) for number in numbers)):
            return True
    return False


def _close(a: complex, b: complex) -> bool:
    return math.isfinite(abs(a)) and math.isfinite(abs(b)) and abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def equal_answers(answer: str, gold: str, *, math_verify: bool = False, numeric: bool = False) -> bool:
    """Whether an extracted answer equals the ground truth: text, number, structure, then what is asked for.

    Args:
        answer, gold: as extracted, LaTeX or plain.
        math_verify: ask math-verify, last.
        numeric: accept numeric equality (see `same_value`).
    """
    forms = normal_form(answer), normal_form(gold)
    if not forms[0].value or not forms[1].value:
        return False
    if same_text(*forms):
        return True
    numbers = same_number(*forms)
    if numbers is not None and not (numbers is False and numeric):
        return numbers
    if not _units_agree(*forms) or max(len(answer), len(gold)) > MAX_CHARACTERS:
        return False
    values = forms[0].value, forms[1].value
    if len(values[0]) == len(values[1]) == 1:
        return False  # two different letters; the grammar takes X for x
    parts = same_structure(*values, lambda a, b: equal_answers(a, b, math_verify=math_verify, numeric=numeric))
    if parts is not None:
        return parts
    verdict = same_symbols(*values)
    if verdict is None and math_verify:
        verdict = same_by_math_verify(*values)
    if not verdict and numeric:
        verdict = same_value(*values)
    return bool(verdict)


def compute(gold: str, *, math_verify: bool = False, numeric: bool = False) -> None:
    """Compare a ground truth, part by part, with an answer like no other: whoever can stand this can stand every answer.

    A number or a word is not computed. Arguments as in :func:`equal_answers`; unbounded time and memory.
    """
    form = normal_form(gold).value
    if parse_number(form) is not None or _WORD.fullmatch(form) or len(gold) > MAX_CHARACTERS:
        return
    parts: list[str] = []
    same_structure(form, form, lambda _, part: parts.append(part) is None)
    for part in parts:
        compute(part, math_verify=math_verify, numeric=numeric)
    if not parts:
        equal_answers(PROBE, gold, math_verify=math_verify, numeric=numeric)
