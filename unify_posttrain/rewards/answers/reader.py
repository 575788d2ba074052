r"""From a text to a typed answer. The rules are asked from the outside in: several, relations, brackets, words, expressions.

read(r"x=1 \text{ or } x=2")    a list of two named values
read(r"k > e")                   the region (e, ∞) of k
read(r"\{1,2\}")                 a set
read("12,345")                   a number, or a list of two
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

from unify_posttrain.rewards.answers import regions
from unify_posttrain.rewards.answers.cleaning import clean
from unify_posttrain.rewards.answers.lists import is_system, spread, takes_away, unnamed
from unify_posttrain.rewards.answers.nodes import number
from unify_posttrain.rewards.answers.numerals import clock, grouped, numeral
from unify_posttrain.rewards.answers.quantities import infinite, interval, meant, quantity, times
from unify_posttrain.rewards.answers.relations import related
from unify_posttrain.rewards.answers.tokens import (
    Token,
    Tokens,
    UnreadError,
    closing,
    is_sign,
    joined,
    lex,
    outside,
    split,
    unwrapped,
)
from unify_posttrain.rewards.answers.units import compound
from unify_posttrain.rewards.answers.values import (
    Answer,
    Either,
    Items,
    Named,
    Quantity,
    Ratio,
    Region,
    Relation,
    Spelling,
    Words,
)
from unify_posttrain.rewards.answers.words import choice, figure, without_lead, words

MAX_CHARACTERS = 1000  # a longer answer is compared as it is
MAX_DEPTH = 12  # of answers in answers

_ALIGNED = frozenset({"aligned", "align", "gathered", "split"})
_POINTS = frozenset("ABCDEMNOPQRSTUVXYZ")  # before a tuple they name a point
_OR, _AND = frozenset({"or"}), frozenset({"and", "&"})


@lru_cache(maxsize=4096)
def read(text: str) -> Answer:
    """The answer that a text is; a `Spelling` if no reader knows it. It never raises for any text."""
    if len(text) > MAX_CHARACTERS:
        return Spelling(text.strip())
    try:
        tokens = lex(clean(text))
        return _Reader().answer(tokens)
    except (UnreadError, RecursionError):
        return Spelling(" ".join(clean(text).split()))


def _word(token: Token) -> str:
    """The word that joins two answers, if a token is one."""
    if token.kind in ("text", "letters"):
        return token.text.strip(" ,.;").lower()
    return {"\\lor": "or", "\\land": "and"}.get(token.text, "") if token.kind == "command" else ""


class _Reader:
    def __init__(self) -> None:
        self.depth = 0

    def answer(self, tokens: Tokens) -> Answer:
        """Several answers, or one."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadError("nested too deeply")
        try:
            return self._answer(tokens)
        finally:
            self.depth -= 1

    def _answer(self, tokens: Tokens) -> Answer:
        braced = unwrapped(tokens)
        if len(braced) < len(tokens) and any(is_sign(token, ",") for _, token in outside(braced)):
            return Items("set", self.items(split(braced, lambda token: is_sign(token, ",", ";"))))  # {1,2}, for \{1,2\}
        tokens = without_lead(braced)
        if not tokens:
            return Spelling("")
        picked = choice(tokens, self.answer)
        if picked is not None:
            return picked
        parts = split(tokens, lambda token: is_sign(token, ";", "\\\\"))
        if len(parts) > 1:
            return self.listed(parts)
        whole = self.one_or_several([token for token in tokens if not is_sign(token, "\n")])
        lines = split(tokens, lambda token: is_sign(token, "\n"))
        unread = isinstance(whole, Spelling) or (isinstance(whole, Items) and whole.kind == "beside")
        return self.listed(lines) if unread and len(lines) > 1 else whole

    def one_or_several(self, tokens: Tokens) -> Answer:
        if (time_or_length := compound(tokens)) is not None:
            return Quantity(number(time_or_length[0]), time_or_length[1])
        joins = {_word(token) for _, token in outside(tokens)} & (_OR | _AND)
        if joins:
            parts = split(tokens, lambda token: _word(token) in joins)
            found = [self.answer(part) for part in parts]
            if len(joins) == 1 and len(found) > 1 and (of_relations := self.combined(found, joins == {"or"})) is not None:
                return of_relations
            if any(is_sign(token, "\\lor", "\\land") for _, token in outside(tokens)):
                return Items("any" if joins == {"or"} else "all", tuple(found)) if len(joins) == 1 else Spelling(joined(tokens))
            if joins == {"or"} and len(found) > 1 and all(map(is_system, found)):
                return Items("list", tuple(found))  # x=1, y=2 or x=2, y=1
            if joins == {"or"} and len({each.name for each in found if isinstance(each, Named)}) == len(found) > 1:
                return Items("any", tuple(found))  # x=1 or y=2
        whole, doubtful = grouped(tokens)
        whole, tokens = ([token for token in each if not is_sign(token, " ")] for each in (whole, tokens))
        answer = self.separated(whole)
        return Either(answer, self.separated(tokens)) if doubtful else answer

    @staticmethod
    def combined(found: Sequence[Answer], any_of: bool) -> Answer | None:
        """Relations with `or` or `and` between them, as the numbers of which all that is true."""
        if not all(isinstance(each, Region) and regions.known(each) for each in found):
            return None
        sets = [each for each in found if isinstance(each, Region)]
        if len({each.variable for each in sets}) > 1:
            return None
        return reduce(regions.union if any_of else regions.intersection, sets)

    def separated(self, tokens: Tokens) -> Answer:
        """What stands between commas, `or` and `and`."""
        parts = split(tokens, lambda token: is_sign(token, ",") or _word(token) in _OR | _AND)
        if (
            len(parts) > 1
            and (text := words(tokens)) is not None
            and not any(_word(token) in _OR | _AND for token in tokens)
            and not all(len(part) == 1 for part in parts)
        ):
            return text  # June 20, 2020
        return self.listed(parts) if len(parts) > 1 else self.one(parts[0] if parts else tokens)

    def listed(self, parts: Sequence[Tokens]) -> Answer:
        if len(parts) == 1:
            return self.answer(parts[0])
        items = self.items(parts)
        return Items("list", tuple(unnamed(items)))

    def items(self, parts: Sequence[Tokens]) -> tuple[Answer, ...]:
        found: list[Answer] = []
        for part in parts:
            answer = self.answer(part)
            inner = answer.items if isinstance(answer, Items) and answer.kind == "list" and spread(part, answer) else (answer,)
            found += inner
        return tuple(found)

    # One answer ----------------------------------------------------------------------------------------------------

    def one(self, tokens: Tokens) -> Answer:
        tokens = without_lead(unwrapped(tokens))
        if not tokens:
            return Spelling("")
        known_set = regions.NAMED.get(joined(tokens).replace(" ", ""))
        if known_set is not None:
            return Region((known_set,))
        if (
            len(tokens) > 4
            and is_sign(tokens[1], ":")
            and tokens[0].kind in ("letters", "command")
            and any(is_sign(t, "=") for t in tokens)
        ):
            tokens = tokens[2:]  # \ell: y = 2x
        for reader in (self.related, self.of_sets, self.proportion, self.enclosed):
            answer = reader(tokens)
            if answer is not None:
                return answer
        known = figure(tokens) or numeral(tokens) or words(tokens)
        return meant(known) if known is not None else quantity(tokens)

    def related(self, tokens: Tokens) -> Answer | None:
        return related(tokens, self.answer)

    def of_sets(self, tokens: Tokens) -> Answer | None:
        r"""\cup, \cap and \setminus, from left to right; finite sets and sets of real numbers."""
        if tokens[0].text in ("\\mathbb", "(", "[") and len(tokens) > 5:  # R - {2}
            tokens = [Token("command", "\\setminus") if takes_away(tokens, place) else token for place, token in enumerate(tokens)]
        signs = [token.text for _, token in outside(tokens) if is_sign(token, "\\cup", "\\cap", "\\setminus")]
        if not signs:
            return None
        parts = [self.answer(part) for part in split(tokens, lambda token: is_sign(token, "\\cup", "\\cap", "\\setminus"))]
        sets = [regions.as_region(part) for part in parts]
        if len(parts) != len(signs) + 1 or any(each is None or not regions.known(each) for each in sets):
            if set(signs) == {"\\cup"} and len(parts) > 1:
                return Items("union", tuple(parts))
            return Spelling(joined(tokens))
        result = sets[0]
        assert result is not None
        for sign, right in zip(signs, sets[1:], strict=True):
            assert right is not None
            if sign == "\\cup":
                result = regions.union(result, right)
            else:
                result = regions.intersection(result, right if sign == "\\cap" else regions.complement(right))
        return result

    def proportion(self, tokens: Tokens) -> Answer | None:
        """A time of day or a ratio."""
        time = clock(tokens)
        if time is not None:
            return time
        if len(tokens) == 3 and tokens[1].text == "to":
            tokens = [tokens[0], Token("sign", ":"), tokens[2]]
        if not any(is_sign(token, ":") for _, token in outside(tokens)):
            return None
        terms = tuple(self.answer(part) for part in split(tokens, lambda token: is_sign(token, ":")))
        return Ratio(terms) if len(terms) > 1 and all(isinstance(term, Quantity | Words) for term in terms) else None

    def enclosed(self, tokens: Tokens) -> Answer | None:
        """What one pair of brackets holds: a set, a tuple, an interval, a matrix."""
        if len(tokens) > 4 and tokens[0].kind == "letters" and tokens[0].text in _POINTS and tokens[1].text == "(":
            corner = self.enclosed(tokens[1:])
            if isinstance(corner, Items) and corner.kind == "tuple":
                return Named(tokens[0].text, corner)  # P(1,4)
        first, last = tokens[0], tokens[-1]
        if last.kind == "end" and first.kind != "begin" and (scaled := self.scaled(tokens)) is not None:
            return scaled
        if first.kind not in ("open", "begin"):
            return Items("set", ()) if joined(tokens) == "\\emptyset" else None
        if closing(tokens, 0) != len(tokens) - 1:
            return None
        inner = tokens[1:-1]
        if first.kind == "begin":
            return self.table(first.text, inner)
        if first.text == "\\{":
            return self.of_braces(inner)
        if inner and inner[0].kind == "begin" and closing(inner, 0) == len(inner) - 1:
            return self.table("determinant" if first.text == "|" else inner[0].text, inner[1:-1])
        parts = split(inner, lambda token: is_sign(token, ",", ";"))
        if len(parts) < 2:
            return None
        brackets = ("(" if first.text in ("\\langle", "(") else "[") + (")" if last.text in ("\\rangle", ")") else "]")
        items = tuple(self.answer(part) for part in parts)
        if brackets in ("[)", "(]") or (len(items) == 2 and any(infinite(item) is not None for item in items)):
            return interval(items, brackets)
        return Items("tuple", items, brackets)

    def scaled(self, tokens: Tokens) -> Answer | None:
        """A number times a matrix."""
        begins = next(index for index, token in enumerate(tokens) if token.kind == "begin")
        if closing(tokens, begins) != len(tokens) - 1:
            return None
        table = self.enclosed(tokens[begins:])
        if not isinstance(table, Items) or table.kind != "matrix":
            return None
        return times(tokens[:begins], table)

    def of_braces(self, tokens: Tokens) -> Answer:
        r"""\{1,2\}, \{x \mid x>3\}, \{x : x>3\}."""
        for index, token in outside(tokens):
            if is_sign(token, "|", ":") and index:
                such = self.answer(tokens[index + 1 :])
                if isinstance(such, Region | Relation):
                    return such
                break
        return Items("set", self.items(split(tokens, lambda token: is_sign(token, ",", ";"))))

    def table(self, name: str, tokens: Tokens) -> Answer:
        """A matrix, a determinant or cases, row by row."""
        rows = split(tokens, lambda token: is_sign(token, "\\\\"))
        column = (
            name == "array" and not any(is_sign(token, "&") for token in tokens) and any(is_sign(token, "=") for token in tokens)
        )
        if column or name.rstrip("*") in _ALIGNED or (name.endswith("cases") and not any(is_sign(token, "&") for token in tokens)):
            return self.listed([[token for token in row if not is_sign(token, "&")] for row in rows])  # a system
        kind = "cases" if name.endswith("cases") else "determinant" if name in ("vmatrix", "Vmatrix", "determinant") else "matrix"
        return Items(
            kind, tuple(Items("row", tuple(map(self.answer, split(row, lambda token: is_sign(token, "&"))))) for row in rows)
        )
