r"""Names in expressions: symbols with indices, primes and accents, functions known and unknown, commands.

Case, indices, primes and accents belong to a name: R is not r, x_1 not x_2, x' not x. `f(x)` of a name that is a function's is an
application of something unknown, which equals itself alone.
"""

from __future__ import annotations

from unify_posttrain.rewards.answers.cursor import Cursor
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.tokens import Token, Tokens, UnreadError, closing, is_sign, joined

_FUNCTIONS = """
    sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp sqrt cbrt abs floor ceil max min
    gcd lcm Re Im arg cis
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "ceiling": "ceil", "asinh": "arcsinh"}
_LETTERS = """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega ell hbar Gamma
    Delta Theta Lambda Xi Pi Sigma Phi Psi Omega
"""
_GREEK = frozenset(_LETTERS.split())
_ACCENTS = frozenset({"\\overline", "\\hat", "\\vec", "\\tilde", "\\dot", "\\ddot", "\\underbar"})
_APPLIED = frozenset("fghFGH") | {
    "\\phi",
    "\\psi",
    "\\Theta",
    "\\Omega",
    "\\Gamma",
    "O",
}  # names that are functions' before a bracket
_MAYBE_APPLIED = frozenset("PQpquvyRSTN")  # P(x), but P(1+r)


def _has_i(node: Node) -> bool:
    return node == Node("constant", "i") or any(map(_has_i, node.parts))


class Names(Cursor):
    """The part of the parser that knows names."""

    def letters(self, token: Token) -> Node:
        """A function's name, a constant's, a word of capitals, or a product of one-letter names."""
        text = _NAMES.get(token.text, token.text)
        if text in FUNCTIONS and not (text in ("Re", "Im", "lg", "max", "min", "abs", "arg") and not self.at_open()):
            return self.function(text)
        if text in ("pi", "infty", "infinity", "inf", "oo"):
            return Node("constant", "pi" if text == "pi" else "infinity")
        if text in _GREEK:
            return self.symbol(f"\\{text}")
        if len(text) > 1 and self._one_name(text):
            return self.symbol(text)
        if len(text) > 1:
            self.split_letters()
            text = text[0]
        elif text == "E" and self.position > 1 and self.tokens[self.position - 2].kind == "number" and not token.apart:
            text = "e"  # 12E, written for 12e
        return self.symbol(text)

    @staticmethod
    def _one_name(text: str) -> bool:
        """Three capitals are a triangle, an order, a word; mixed and long runs are words."""
        return len(text) > 2 and (text.isupper() or not text.islower() or len(text) > 4)

    def at_open(self) -> bool:
        """Whether a round bracket or a brace follows."""
        token = self.peek()
        return token is not None and token.kind == "open" and token.text in ("(", "{", "[")

    def symbol(self, name: str, index: str = "") -> Node:
        """A name with its index and primes; a function's name takes its argument."""
        while self.at("_", "'"):
            if self.take().text == "'":
                index += "'"
                continue
            inner = self.index()
            if self._counts(inner):
                return Node("call", f"{name}{index}_", (self.inside(inner),))
            spelled = [token for token in inner if token.kind not in ("open", "close")]
            index += "_" + joined([Token("text", token.text.lstrip("\\")) for token in spelled])
        whole = name + index
        if not index and name in ("e", "i"):
            return Node("constant", name)
        inverse = self.inverse(name)
        if self.at_paren() and (name in _APPLIED or inverse or (name in _MAYBE_APPLIED and self._simple_argument())):
            return Node("call", whole + inverse, self.arguments())
        if inverse:
            return Node("power", parts=(Node("symbol", whole), number(-1)))
        return Node("symbol", whole)

    @staticmethod
    def _counts(index: Tokens) -> bool:
        """Whether an index is computed: n+1, k, which may be the index of a sum; not 1, max, A."""
        if len(index) == 1:
            return index[0].kind == "letters" and index[0].text in "ijkmn" and len(index[0].text) == 1
        return any(is_sign(token, "+", "-") for token in index[1:]) and any(token.kind == "letters" for token in index)

    def index(self) -> Tokens:
        """What stands behind _: a group, or all digits or one letter."""
        token = self.peek()
        if token is not None and token.kind == "number":
            return [self.take()]
        return self.argument()

    def inverse(self, name: str) -> str:
        """`^{-1}` of a function's name before its argument."""
        begins = self.position
        if name in _APPLIED and self.at("^"):
            self.take()
            try:
                if joined(self.exponent()) == "-1":
                    return "^{-1}"
            except UnreadError:
                pass
        self.position = begins
        return ""

    def at_paren(self) -> bool:
        """Whether a round bracket follows at once."""
        token = self.peek()
        return token is not None and token.kind == "open" and token.text == "(" and not token.apart

    def _simple_argument(self) -> bool:
        end = closing(self.tokens, self.position)
        return end == self.position + 2 and self.tokens[self.position + 1].kind in ("letters", "number")

    def arguments(self) -> tuple[Node, ...]:
        """What a round bracket holds, between commas."""
        end = closing(self.tokens, self.position)
        inner = self.tokens[self.position + 1 : end]
        self.position = end + 1
        parts: list[list[Token]] = [[]]
        depth = 0
        for token in inner:
            depth += (token.kind == "open") - (token.kind == "close")
            if depth == 0 and is_sign(token, ",", ";"):
                parts.append([])
            else:
                parts[-1].append(token)
        return tuple(self.inside(part) for part in parts)

    def function(self, name: str) -> Node:
        r"""A known function with its base, power and argument: \log_2 8, \sin^2 x, \sin 2x, \ln(2)/3."""
        base: Node | None = None
        power: Node | None = None
        while self.at("_", "^"):
            if self.take().text == "_":
                base = self.inside(self.base())
            else:
                power = self.inside(self.exponent())
        if self.at_open() and self.peek() != Token("open", "[", True):
            token = self.tokens[self.position]
            parts = self.arguments() if token.text == "(" else (self.atom(),)
        else:
            parts = (self.bare_argument(),)
        if name in ("sin", "cos", "tan", "sinh", "cosh", "tanh") and power == Node("negate", parts=(number(1),)):
            name, power = f"arc{name}", None
        if name == "log" and base is not None:
            parts = (*parts, base)
        elif name == "lg":
            name, parts = "log", (*parts, number(base.value if base is not None and base.kind == "number" else 10))
        elif base is not None:
            raise UnreadError(f"{name} with an index")
        node = Node("function", name, parts)
        return node if power is None else Node("power", parts=(node, power))

    def base(self) -> Tokens:
        r"""Of a logarithm. Of `\log_48` it is 4, as TeX reads it, for else nothing would be left to take the logarithm of."""
        tokens = self.index()
        if (
            len(tokens) == 1
            and tokens[0].kind == "number"
            and len(tokens[0].text) > 1
            and not self.begins_factor()
            and not self.at("^")
        ):
            self.split_letters()
            tokens = [self.tokens[self.position - 1]]
        return tokens

    def bare_argument(self) -> Node:
        """The product up to the next sign or function."""
        if self.at("-"):
            self.take()
            return Node("negate", parts=(self.bare_argument(),))
        node = self.factor()
        while self.begins_factor() and not self.at_function() and self.tokens[self.position].text != "(":
            node = Node("multiply", parts=(node, self.factor()))
        return node

    def at_function(self) -> bool:
        """Whether a known function follows."""
        token = self.peek()
        return token is not None and (token.text in FUNCTIONS or token.text[1:] in FUNCTIONS) and token.text != "\\sqrt"

    def command(self, token: Token) -> Node:
        """A command of TeX as an atom."""
        name = token.text[1:]
        if name in ("frac", "binom"):
            above, below = self.inside(self.argument()), self.inside(self.argument())
            return Node("divide", parts=(above, below)) if name == "frac" else Node("function", "binom", (above, below))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name == "pi":
            return Node("constant", "pi")
        if name == "infty":
            return Node("constant", "infinity")
        if token.text in _ACCENTS:
            return self.accented(token.text)
        if name in ("sum", "prod"):
            return self.series("sum" if name == "sum" else "product")
        if name == "mathbb":
            return Node("symbol", f"\\mathbb{{{joined(self.argument())}}}")
        if name in _GREEK:
            return self.symbol(token.text)
        raise UnreadError(f"{token.text} is not known")

    def root(self) -> Node:
        r"""\sqrt{x}, \sqrt[3]{x}, \sqrt x, \sqrt(x)."""
        degree = number(2)
        if self.at_open() and self.tokens[self.position].text == "[":
            end = closing(self.tokens, self.position)
            degree = self.inside(self.tokens[self.position + 1 : end])
            self.position = end + 1
        token = self.peek()
        bracketed = token is not None and token.kind == "open" and token.text == "("
        radicand = self.atom() if bracketed else self.inside(self.argument())
        return Node("function", "root", (radicand, degree))

    def accented(self, accent: str) -> Node:
        r"""\overline{z} is not z; over two capitals it is a segment's, and dropped."""
        inner = self.argument()
        text = joined(inner)
        if accent == "\\overline" and len(text) == 2 and text.isupper():
            return self.inside(inner)
        if len(inner) == 1 and inner[0].kind == "letters" and text.isupper():
            return self.symbol(f"{accent}{{{text}}}")
        node = self.inside(inner)
        if accent == "\\overline" and _has_i(node):
            return Node("function", "conjugate", (node,))
        if len(inner) == 1 and inner[0].kind == "letters" and len(text) == 1:
            return self.symbol(f"{accent}{{{text}}}")
        return Node("call", accent, (node,))

    def series(self, kind: str) -> Node:
        r"""\sum_{k=1}^{n} body, the body being a product."""
        if not self.at("_"):
            raise UnreadError("a sum without bounds")
        self.take()
        first = self.argument()
        if not self.at("^"):
            raise UnreadError("a sum without a last bound")
        self.take()
        last = self.inside(self.exponent())
        if len(first) < 3 or first[0].kind != "letters" or len(first[0].text) != 1 or not is_sign(first[1], "="):
            raise UnreadError("a sum over something else than from a to b")
        return Node(kind, first[0].text, (self.inside(first[2:]), last, self.term()))
