"""What the known functions of `names` compute, exactly where whole numbers allow it."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

MAX_WHOLE = 5000  # of a factorial that is computed exactly, and of the upper number of a binomial coefficient
MAX_FACTORIAL = 10**9


class NoValueError(ArithmeticError):
    """A function has no value there, or one that is too large to compute."""


def floating(value: Any) -> Any:
    """A Fraction in floating point; other numbers as they are."""
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _whole(value: Any, least: int = 0) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1 or not least <= value <= MAX_WHOLE:
        raise NoValueError("not of a small whole number")
    return int(value)


def _factorial(value: Any) -> Any:
    if isinstance(value, Fraction) and value.denominator == 1 and MAX_WHOLE < value <= MAX_FACTORIAL:
        return mpmath.factorial(int(value))
    return Fraction(math.factorial(_whole(value)))


def _double_factorial(value: Any) -> Any:
    return Fraction(math.prod(range(_whole(value), 0, -2)))


def _binomial(above: Any, below: Any) -> Any:
    chosen = _whole(below)
    if isinstance(above, Fraction) and above.denominator == 1 and above >= 0:
        return Fraction(math.comb(_whole(above), chosen))
    product = Fraction(1)
    for index in range(chosen):
        product = product * (above - index) / (index + 1)
    return product


def _real(value: Any) -> Any:
    if mpmath.im(value) != 0:
        raise NoValueError("not of a complex number")
    return value


def _rounded(value: Any, rounding: Callable[[Any], Any]) -> Any:
    if isinstance(value, Fraction):
        return Fraction(math.floor(value) if rounding is mpmath.floor else math.ceil(value))
    value = _real(value)
    nearest = mpmath.nint(value)
    if abs(value - nearest) < mpmath.mpf(10) ** (10 - mpmath.mp.dps) * max(1, abs(value)):
        return Fraction(int(nearest))  # a whole number, computed with an error
    if abs(value) > mpmath.mpf(10) ** 30:
        raise NoValueError("too large to be rounded")
    return Fraction(int(rounding(value)))


def _extreme(values: tuple[Any, ...], choose: Callable[..., Any]) -> Any:
    if not values:
        raise NoValueError("of nothing")
    return choose(values, key=lambda value: _real(floating(value)))


def _plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: function(floating(value))


def _quotient(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def divided(value: Any) -> Any:
        below = function(floating(value))
        if abs(below) < mpmath.mpf(10) ** (5 - mpmath.mp.dps):
            raise NoValueError("a pole")
        return 1 / below

    return divided


def _tan(value: Any) -> Any:
    value = floating(value)
    return mpmath.sin(value) * _quotient(mpmath.cos)(value)


def _cot(value: Any) -> Any:
    value = floating(value)
    return mpmath.cos(value) * _quotient(mpmath.sin)(value)


def _absolute(value: Any) -> Any:
    return abs(value)


def _exponential(value: Any) -> Any:
    if abs(value) > 10**12:
        raise NoValueError("too large a power of e")
    return mpmath.exp(floating(value))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sin": _plain(mpmath.sin), "cos": _plain(mpmath.cos), "tan": _tan, "cot": _cot, "sec": _quotient(mpmath.cos),
    "csc": _quotient(mpmath.sin),
    "arcsin": _plain(mpmath.asin), "arccos": _plain(mpmath.acos), "arctan": _plain(mpmath.atan), "arccot": _plain(mpmath.acot),
    "sinh": _plain(mpmath.sinh), "cosh": _plain(mpmath.cosh), "tanh": _plain(mpmath.tanh), "coth": _plain(mpmath.coth),
    "arcsinh": _plain(mpmath.asinh), "arccosh": _plain(mpmath.acosh), "arctanh": _plain(mpmath.atanh),
    "exp": _exponential, "abs": _absolute, "degree": lambda value: floating(value) * mpmath.pi / 180,
    "floor": lambda value: _rounded(value, mpmath.floor), "ceil": lambda value: _rounded(value, mpmath.ceil),
    "factorial": _factorial, "factorial2": _double_factorial, "binom": _binomial,
    "max": lambda *values: _extreme(values, max), "min": lambda *values: _extreme(values, min),
    "gcd": lambda *values: Fraction(math.gcd(*(_whole(value) for value in values))),
    "lcm": lambda *values: Fraction(math.lcm(*(_whole(value) for value in values))),
    "conjugate": lambda value: mpmath.conj(floating(value)), "cis": lambda value: mpmath.expj(floating(value)),
    "fractional": lambda value: value - _rounded(value, mpmath.floor),
    "Re": lambda value: mpmath.re(floating(value)), "Im": lambda value: mpmath.im(floating(value)),
    "arg": lambda value: mpmath.arg(floating(value)),
}  # fmt: skip
