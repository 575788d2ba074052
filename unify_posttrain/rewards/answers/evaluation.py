"""The value of an expression at a point: exact where all is rational, else in high precision.

Roots are the principal ones, but odd roots of negative numbers are real. Where a root, a logarithm or a power of a negative number
depends on a symbol, the point is outside of the domain: expressions of real quantities are compared where both are real.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import mpmath

from unify_posttrain.rewards.answers.functions import FUNCTIONS, floating
from unify_posttrain.rewards.answers.nodes import Node

DIGITS = 60
MAX_BITS = 20_000  # of an exact power; a larger one is computed in floating point
MAX_EXPONENT = 10**15  # of a power at all
MAX_TERMS = 300  # of a sum

Value = Any  # Fraction, mpf or mpc
Point = Mapping[str, Fraction]


class UndefinedError(ValueError):
    """The expression has no value there."""


class OutsideError(ValueError):
    """The point lies outside of the domain in which the expression is real."""


class UnknownError(ValueError):
    """What the expression means is not computed here, as a limit is not."""


class TooLargeError(ValueError):
    """The value cannot be computed."""


def evaluate(node: Node, point: Point, signs: Mapping[str, int] | None = None) -> Value:
    r"""The value of an expression.

    Args:
        node: the expression.
        point: of every symbol its value.
        signs: what ``\pm`` and ``\mp`` are, +1 or -1.

    Raises:
        UndefinedError, OutsideError, UnknownError, TooLargeError: see there; KeyError: a symbol that the point does not name.
    """
    with mpmath.workdps(DIGITS):
        return _Evaluation(point, signs or {}).value(node)


def symbols(node: Node) -> set[str]:
    """The free symbols of an expression."""
    if node.kind == "symbol":
        return {node.name}
    found: set[str] = set().union(*(symbols(part) for part in node.parts)) if node.parts else set()
    return found - {node.name} if node.kind in ("sum", "product") else found


def counted_symbols(node: Node) -> set[str]:
    """The symbols that stand for whole numbers: under a factorial, in a bound of a sum, in the exponent of a negative number."""
    found: set[str] = set()
    if node.kind == "function" and node.name in ("factorial", "factorial2", "binom", "gcd", "lcm"):
        found |= set().union(*(symbols(part) for part in node.parts))
    if node.kind in ("sum", "product"):
        found |= symbols(node.parts[0]) | symbols(node.parts[1])
    if node.kind == "power" and node.parts[0].kind == "negate":
        found |= symbols(node.parts[1])
    return found.union(*(counted_symbols(part) for part in node.parts))


class _Evaluation:
    def __init__(self, point: Point, signs: Mapping[str, int]) -> None:
        self.point, self.signs = dict(point), signs

    def value(self, node: Node) -> Value:
        value = getattr(self, f"_{node.kind}")(node)
        if not isinstance(value, Fraction) and not mpmath.isfinite(value):
            raise UndefinedError("no finite value")
        return value

    def varies(self, node: Node) -> bool:
        return bool(symbols(node))

    def _number(self, node: Node) -> Value:
        return node.value

    def _symbol(self, node: Node) -> Value:
        return self.point[node.name]

    def _constant(self, node: Node) -> Value:
        if node.name in self.point:  # the index of a sum may be called i
            return self.point[node.name]
        if node.name == "infinity":
            raise UnknownError("infinity is no number")
        return {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}[node.name] * mpmath.mpf(1)

    def _add(self, node: Node) -> Value:
        total: Value = Fraction(0)
        for part in node.parts:
            total = _both(total, self.value(part), lambda a, b: a + b)
        return total

    def _multiply(self, node: Node) -> Value:
        left, right = (self.value(part) for part in node.parts)
        return _both(left, right, lambda a, b: a * b)

    def _divide(self, node: Node) -> Value:
        above, below = (self.value(part) for part in node.parts)
        if below == 0 or (not isinstance(below, Fraction) and abs(below) < mpmath.mpf(10) ** (5 - DIGITS)):
            raise UndefinedError("division by zero")
        return _both(above, below, lambda a, b: a / b)

    def _negate(self, node: Node) -> Value:
        return -self.value(node.parts[0])

    def _either(self, node: Node) -> Value:
        return self.signs[node.name] * self.value(node.parts[0])

    def _power(self, node: Node) -> Value:
        base, exponent = (self.value(part) for part in node.parts)
        return self.power(base, exponent, self.varies(node))

    def power(self, base: Value, exponent: Value, varies: bool) -> Value:
        if isinstance(exponent, Fraction) and exponent.denominator == 1:
            power = int(exponent)
            if base == 0 and power <= 0:
                if power < 0:
                    raise UndefinedError("division by zero")
                return Fraction(1)
            if abs(power) > MAX_EXPONENT:
                raise TooLargeError("too large a power")
            if isinstance(base, Fraction):
                bits = max(base.numerator.bit_length(), base.denominator.bit_length())
                if bits * abs(power) <= MAX_BITS or abs(base) == 1:
                    return base**power
            return floating(base) ** power
        if isinstance(exponent, Fraction) and isinstance(base, Fraction) and exponent.denominator <= 64:
            return self.power(self.root(base, exponent.denominator, varies), Fraction(exponent.numerator), varies)
        if abs(exponent) > MAX_EXPONENT:
            raise TooLargeError("too large a power")
        if base == 0:
            if mpmath.re(floating(exponent)) > 0:
                return Fraction(0)
            raise UndefinedError("a power of zero")
        base, exponent = floating(base), floating(exponent)
        if _negative(base) and mpmath.im(exponent) == 0:
            self.refuse(varies)
        return mpmath.power(base, exponent)

    @staticmethod
    def refuse(varies: bool) -> None:
        if varies:
            raise OutsideError("not real there")

    def root(self, radicand: Value, degree: int, varies: bool) -> Value:
        if isinstance(radicand, Fraction) and (root := _exact_root(radicand, degree)) is not None:
            return root
        value = floating(radicand)
        if _negative(value):
            if degree % 2:
                return -mpmath.root(-value, degree)
            self.refuse(varies)
        return mpmath.root(value, degree)

    def _function(self, node: Node) -> Value:
        values = [self.value(part) for part in node.parts]
        if node.name in ("root", "sqrt", "cbrt"):
            degree = values[1] if node.name == "root" else Fraction(2 if node.name == "sqrt" else 3)
            if not isinstance(degree, Fraction) or degree == 0:
                raise UndefinedError("a root of no degree")
            if degree.denominator != 1 or not 0 < degree <= 1000:
                return self.power(values[0], 1 / degree, self.varies(node))
            return self.root(values[0], int(degree), self.varies(node))
        if node.name in ("ln", "log"):
            return self.logarithm(values, self.varies(node))
        if node.name in ("arcsin", "arccos") and self.varies(node) and not -1 <= mpmath.re(floating(values[0])) <= 1:
            raise OutsideError("not real there")
        return apply(node.name, values)

    def logarithm(self, values: list[Value], varies: bool) -> Value:
        results = []
        for value in values:
            if value == 0:
                raise UndefinedError("a logarithm of zero")
            if _negative(floating(value)):
                self.refuse(varies)
            results.append(mpmath.log(floating(value)))
        if len(results) == 1:
            return results[0]
        if results[1] == 0:
            raise UndefinedError("a logarithm to the base 1")
        quotient = results[0] / results[1]
        nearest = Fraction(int(mpmath.nint(mpmath.re(quotient))))
        if all(isinstance(value, Fraction) for value in values) and abs(nearest) < 500 and values[1] ** int(nearest) == values[0]:
            return nearest
        return quotient

    def _call(self, node: Node) -> Value:
        """Something unknown: a number of either sign that depends on the name and on the arguments, and on nothing else."""
        arguments = [mpmath.nstr(floating(self.value(part)), 25) for part in node.parts]
        digest = hashlib.blake2b("\0".join([node.name, *arguments]).encode(), digest_size=16).digest()
        return Fraction(int.from_bytes(digest, "big"), 1 << 127) - 1

    def _sum(self, node: Node) -> Value:
        return self.series(node, Fraction(0), lambda a, b: a + b)

    def _product(self, node: Node) -> Value:
        return self.series(node, Fraction(1), lambda a, b: a * b)

    def series(self, node: Node, total: Value, combine: Any) -> Value:
        first, last = (self.value(part) for part in node.parts[:2])
        if not all(isinstance(bound, Fraction) and bound.denominator == 1 for bound in (first, last)):
            raise UnknownError("a sum between no whole numbers")
        if last - first > MAX_TERMS:
            raise TooLargeError("too many terms")
        before = self.point.get(node.name)
        for index in range(int(first), int(last) + 1):
            self.point[node.name] = Fraction(index)
            total = _both(total, self.value(node.parts[2]), combine)
        self.point.pop(node.name, None)
        if before is not None:
            self.point[node.name] = before
        return total


def _both(left: Value, right: Value, combine: Any) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        result = combine(left, right)
        small = max(result.numerator.bit_length(), result.denominator.bit_length()) <= 4 * MAX_BITS
        return result if small else floating(result)
    return combine(floating(left), floating(right))


def _negative(value: Value) -> bool:
    return bool(mpmath.im(value) == 0 and mpmath.re(value) < 0)


def _exact_root(value: Fraction, degree: int) -> Fraction | None:
    if value < 0 and degree % 2 == 0:
        return None
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    parts = []
    for part in (abs(value.numerator), value.denominator):
        root = int(mpmath.nint(mpmath.root(mpmath.mpf(part), degree))) if part.bit_length() < 180 * degree else -1
        if root < 0 or root**degree != part:
            return None
        parts.append(root)
    return Fraction(parts[0], parts[1]) * (-1 if value < 0 else 1)


def apply(name: str, values: list[Value]) -> Value:
    """A known function of numbers.

    Raises:
        UndefinedError: it has no value there.
    """
    if name not in FUNCTIONS:
        raise UnknownError(f"{name} is not computed")
    try:
        return FUNCTIONS[name](*values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UndefinedError(f"{name}: {error}") from error
