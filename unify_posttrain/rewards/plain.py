"""Plain arithmetic such as 2*(3+4)/5 as sympy's objects, without evaluating any text.

math-verify's reader of plain expressions calls sympy's `parse_expr`, which compiles and evaluates Python. What reaches it are
digits, points, operators and round brackets; here Python's grammar alone reads them, and the tree is walked.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import sympy
from math_verify import parser

MAX_CHARACTERS = 1000
_OPERATORS: dict[type[ast.operator], Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    ast.Add: lambda a, b: sympy.Add(a, b, evaluate=False),
    ast.Sub: lambda a, b: sympy.Add(a, sympy.Mul(-1, b, evaluate=False), evaluate=False),
    ast.Mult: lambda a, b: sympy.Mul(a, b, evaluate=False),
    ast.Div: lambda a, b: sympy.Mul(a, sympy.Pow(b, -1, evaluate=False), evaluate=False),
    ast.Pow: lambda a, b: sympy.Pow(a, b, evaluate=False),
}


def arithmetic(text: str) -> sympy.Expr:
    """Numbers, + - * / **, signs and brackets as an unevaluated expression, as `parse_expr(text, evaluate=False)` reads them.

    Raises:
        ValueError: the text is longer than MAX_CHARACTERS, or anything else than that.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS} characters")
    try:
        return _walk(ast.parse(text.strip(), mode="eval").body, text.strip())
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"no arithmetic: {text[:80]!r}") from error


def _walk(node: ast.expr, text: str) -> sympy.Expr:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        digits = ast.get_source_segment(text, node) or ""
        return sympy.Integer(digits) if type(node.value) is int else sympy.Float(digits)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        operand = _walk(node.operand, text)
        return operand if isinstance(node.op, ast.UAdd) else sympy.Mul(-1, operand, evaluate=False)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_walk(node.left, text), _walk(node.right, text))
    raise ValueError(f"no arithmetic: {ast.unparse(node)[:80]!r}")


def stand_in() -> None:
    """From now on math-verify reads plain expressions by :func:`arithmetic`, in this process."""
    parser.parse_expr_cached = arithmetic
