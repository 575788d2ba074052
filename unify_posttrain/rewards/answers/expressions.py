r"""The reader of expressions: sums, products, powers.

A product is what stands side by side, from left to right as division does: 1/2x is x/2. A function without brackets takes the
product behind it up to the next function: \sin 2x\cos y is sin(2x)cos(y). Names, functions and commands are those of `names`.
"""

from __future__ import annotations

from fractions import Fraction

from unify_posttrain.rewards.answers.cursor import STOPS
from unify_posttrain.rewards.answers.names import FUNCTIONS, Names
from unify_posttrain.rewards.answers.nodes import MAX_DIGITS, Node, number, numeral
from unify_posttrain.rewards.answers.tokens import Token, Tokens, UnreadError, closing, is_sign, joined, outside, trimmed


def parse(tokens: Tokens) -> Node:
    """Read all of some tokens as one expression.

    Raises:
        UnreadError: they are none.
    """
    return _Parser([]).inside(tokens)


class _Parser(Names):
    def inside(self, tokens: Tokens) -> Node:
        inner = _Parser(trimmed(tokens), self.depth + 1)
        for index, token in outside(inner.tokens):
            if token.text == "\\choose":
                return Node("function", "binom", (self.inside(inner.tokens[:index]), self.inside(inner.tokens[index + 1 :])))
        node = inner.sum()
        if not inner.done:
            raise UnreadError(f"what is {joined(inner.tokens[inner.position :])!r}?")
        return node

    # Sums and products ---------------------------------------------------------------------------------------------

    def sum(self) -> Node:
        terms = [self.signed()]
        while self.at("+", "-", "\\pm", "\\mp"):
            terms.append(self.signed())
        return terms[0] if len(terms) == 1 else Node("add", parts=tuple(terms))

    def signed(self) -> Node:
        if self.at("+", "-", "\\pm", "\\mp"):
            sign = self.take().text
            operand = self.signed() if self.at("+", "-") else self.term()
            if sign == "+":
                return operand
            return Node("negate", parts=(operand,)) if sign == "-" else Node("either", sign, (operand,))
        return self.term()

    def term(self) -> Node:
        node = self.factor()
        while True:
            if self.at("*", "\\cdot", "/"):
                sign = self.take().text
                operand = self.signed_factor()
                node = Node("divide" if sign == "/" else "multiply", parts=(node, operand))
            elif self.begins_factor():
                previous, following = self.tokens[self.position - 1], self.peek()
                right = self.factor()
                if right.kind == "number" and previous.kind == "number" and self.at("/"):  # 2 2/3, as plain text writes it
                    self.take()
                    right = Node("divide", parts=(right, self.factor()))
                node = self.beside(node, previous, right, following is not None and following.kind == "number")
            else:
                return node

    def signed_factor(self) -> Node:
        if self.at("+", "-"):
            return self.signed_factor() if self.take().text == "+" else Node("negate", parts=(self.signed_factor(),))
        return self.factor()

    @staticmethod
    def beside(left: Node, before: Token, right: Node, bare: bool) -> Node:
        """Side by side: a mixed number, or a product. Two numbers are neither."""
        if right.kind == "number":
            if before.kind == "number" and bare:
                raise UnreadError("two numbers side by side")
        elif (
            left.kind == "number"
            and before.kind == "number"
            and right.kind == "divide"
            and left.value.denominator == 1
            and all(part.kind == "number" and part.value.denominator == 1 and part.value > 0 for part in right.parts)
        ):
            return Node("add", parts=(left, right))
        return Node("multiply", parts=(left, right))

    def begins_factor(self) -> bool:
        token = self.peek()
        if token is None:
            return False
        if token.kind == "open":
            return token.text != "\\}"
        if token.kind in ("number", "letters") or (token.kind == "text" and (token.text in FUNCTIONS or len(token.text) == 1)):
            return True
        if is_sign(token, "|", "\\|"):
            return self.bars == 0
        return token.kind == "command" and token.text not in STOPS and token.text not in ("\\cdot", "\\pm", "\\mp")

    # Factors: an atom with its powers, factorials and primes ------------------------------------------------------

    def factor(self) -> Node:
        node = self.atom()
        while True:
            if self.at("^"):
                self.take()
                node = self.power(node)
            elif self.at("!"):
                self.take()
                double = self.at("!") and not self.tokens[self.position].apart
                if double:
                    self.take()
                node = Node("function", "factorial2" if double else "factorial", (node,))
            elif self.at("'"):
                self.take()
                node = Node("call", "'", (node,))
            else:
                return node

    def power(self, base: Node) -> Node:
        if self.at("*"):
            self.take()
            return Node("call", "*", (base,))
        tokens = self.exponent()
        if len(tokens) == 1 and tokens[0].text in ("\\circ", "*", "'", "\\top", "\\dagger", "\\perp", "\\intercal"):
            return Node("function", "degree", (base,)) if tokens[0].text == "\\circ" else Node("call", tokens[0].text, (base,))
        if len(tokens) == 1 and tokens[0].text == "T" and base.kind == "symbol" and base.name.isupper():
            return Node("call", "\\top", (base,))
        return Node("power", parts=(base, self.inside(tokens)))

    def exponent(self) -> Tokens:
        r"""Of `2^10`, which everybody but TeX takes for 2^{10}, and `10^-3`, the number with its sign; then 2^3^2 is 2^{3^2}."""
        start = self.position
        while self.at("-", "+"):
            self.take()
        token = self.take()
        if token.kind == "open":
            self.position = closing(self.tokens, self.position - 1) + 1
            whole = self.tokens[start : self.position]
            tokens: Tokens = whole[1:-1] if whole[0].text == "{" else whole
        elif token.kind == "letters" and len(token.text) > 1 and token.text not in FUNCTIONS and token.text != "pi":
            self.split_letters()
            tokens = self.tokens[start : self.position]
        elif token.text in ("\\frac", "\\sqrt", "\\binom"):
            self.position -= 1
            self.atom()
            tokens = self.tokens[start : self.position]
        else:
            tokens = self.tokens[start : self.position]
        if self.at("^"):
            self.take()
            return [
                Token("open", "{"),
                *tokens,
                Token("close", "}"),
                Token("sign", "^"),
                Token("open", "{"),
                *self.exponent(),
                Token("close", "}"),
            ]
        return tokens

    def atom(self) -> Node:
        token = self.take()
        if token.kind == "number":
            return self.decimal(token)
        if token.kind == "letters":
            return self.letters(token)
        if token.kind == "open":
            return self.bracket(token)
        if is_sign(token, "|", "\\|"):
            return self.bars_around(token.text)
        if token.kind == "command":
            return self.command(token)
        if token.kind == "text":
            return self.function(token.text) if token.text in FUNCTIONS else self.symbol(token.text)
        raise UnreadError(f"no expression begins with {token.text!r}")

    def decimal(self, token: Token) -> Node:
        """A number, perhaps with digits that repeat."""
        if "." in token.text or self.at("\\overline", "\\dot"):
            digits = self.repeating(token.text)
            if digits is not None:
                return number(digits)
        return number(numeral(token.text))

    def repeating(self, text: str) -> Fraction | None:
        begins = self.position
        tail = ""
        if self.at_paren() and joined(self.tokens[self.position : self.position + 3]).strip("()").isdigit():  # 0.1(6)
            tail = self.tokens[self.position + 1].text
            self.position += 3
        while self.at("\\overline", "\\dot"):
            self.take()
            try:
                inner = self.argument()
            except UnreadError:
                inner = []
            if len(inner) != 1 or inner[0].kind != "number" or not inner[0].text.isdigit():
                self.position = begins
                return None
            tail += inner[0].text
            between = self.tokens[self.position : self.position + 2]
            if len(between) == 2 and between[0].kind == "number" and is_sign(between[1], "\\dot"):  # 0.\dot{2}7\dot{0}
                tail += self.take().text
        if not tail and self.at("\\ldots"):
            decimals = text.partition(".")[2]
            for period in range(1, len(decimals) // 2 + 1):
                tail = decimals[-period:]
                if len(decimals) >= 3 and decimals[period:] == decimals[:-period]:
                    self.take()
                    return numeral(text) + Fraction(int(tail), (10**period - 1) * 10 ** len(decimals))
            return None
        if not tail or ("." not in text and not text.endswith(".")):
            self.position = begins
            return None
        decimals = text.partition(".")[2]
        if len(decimals) + len(tail) > MAX_DIGITS:
            raise UnreadError("too many digits")
        return numeral(text) + Fraction(int(tail), (10 ** len(tail) - 1) * 10 ** len(decimals))

    def bracket(self, token: Token) -> Node:
        end = closing(self.tokens, self.position - 1)
        inner = self.tokens[self.position : end]
        closes = self.tokens[end].text
        self.position = end + 1
        if token.text in ("\\lfloor", "\\lceil"):
            return Node("function", "floor" if token.text == "\\lfloor" else "ceil", (self.inside(inner),))
        if (token.text, closes) == ("\\{", "\\}"):
            return Node("function", "fractional", (self.inside(inner),))
        if (token.text, closes) not in (("(", ")"), ("[", "]"), ("{", "}")):
            raise UnreadError(f"{token.text} … {closes} is no expression")
        return self.inside(inner)

    def bars_around(self, bar: str) -> Node:
        self.bars += 1
        node = self.sum()
        self.bars -= 1
        if not self.at(bar):
            raise UnreadError("an absolute value that does not end")
        self.take()
        return Node("function", "abs", (node,)) if bar == "|" else Node("call", "norm", (node,))
