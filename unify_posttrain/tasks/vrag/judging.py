"""Whether an answer is right, by rule: best over the references of exact match, F1 of tokens, or ANLS, against a threshold."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from unify_posttrain.untrusted.documents import DocumentError, parse

ARTICLES = frozenset({"a", "an", "the"})
ANLS_FROM = 0.5  # a distance of half the longer text or more is no likeness (the measure's own definition)

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TOKENS = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?(?!\w)|\w+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def tokens_of(text: str) -> list[str]:
    """The tokens of an answer: words casefolded, numbers in one form, articles left out unless nothing else remains.

    >>> tokens_of("The 1,250.50 Euro"), tokens_of("The")
    (['1250.5', 'euro'], ['the'])
    """
    plain = _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())
    found = [_canonical(token) for token in _TOKENS.findall(plain)]
    return [token for token in found if token not in ARTICLES] or found


def _canonical(token: str) -> str:
    """A number without needless zeros; by text, since models write numbers of any length."""
    if not _NUMBER.fullmatch(token):
        return token
    sign, digits = ("-", token[1:]) if token.startswith("-") else ("", token)
    whole, _, part = digits.partition(".")
    # Digits of other scripts are \d, too; NFKC leaves them, int() reads them one by one.
    whole, part = ("".join(str(int(digit)) for digit in each) for each in (whole, part))
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    written = f"{whole}.{part}" if part else whole
    return written if written == "0" else f"{sign}{written}"


def exact_match(answer: str, reference: str) -> float:
    """1 if the tokens are equal and there are any."""
    found = tokens_of(answer)
    return float(bool(found) and found == tokens_of(reference))


def f1(answer: str, reference: str) -> float:
    """Of the two multisets of tokens."""
    left, right = Counter(tokens_of(answer)), Counter(tokens_of(reference))
    shared = sum((left & right).values())
    return 2 * shared / (sum(left.values()) + sum(right.values())) if shared else 0.0


def anls(answer: str, reference: str) -> float:
    """1 - Levenshtein distance over the longer length, of casefolded texts with single blanks; 0 from half the length on."""
    left, right = (" ".join(text.casefold().split()) for text in (answer, reference))
    longer = max(len(left), len(right))
    # The lengths alone can tell, which bounds the work for an answer without end.
    if not left or not right or abs(len(left) - len(right)) >= ANLS_FROM * longer:
        return 0.0
    ratio = distance(left, right) / longer
    return 0.0 if ratio >= ANLS_FROM else 1 - ratio


def distance(left: str, right: str) -> int:
    """Levenshtein's: insertions, deletions and replacements that make one text the other.

    >>> distance("kitten", "sitting")
    3
    """
    row = list(range(len(right) + 1))
    for place, sign in enumerate(left, start=1):
        above, row[0] = row[0], place
        for column, other in enumerate(right, start=1):
            above, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, above + (sign != other))
    return row[-1]


RULES: dict[str, Callable[[str, str], float]] = {"em": exact_match, "f1": f1, "anls": anls}


def by_rule(answer: str, references: Sequence[str], rule: str, threshold: float) -> bool:
    """Whether the best likeness to a reference reaches the threshold."""
    return max((RULES[rule](answer, reference) for reference in references), default=0.0) >= threshold


def references_of(truth: Any) -> tuple[str, ...]:
    """The reference answers of a row: a text, a list of texts, or such a list as JSON.

    Raises:
        TypeError, ValueError: none of these, or nothing in it.
    """
    if isinstance(truth, str):
        found: Any = [truth]
        if truth.lstrip().startswith("["):
            try:
                read = parse(truth)
            except DocumentError:
                read = None  # a text that happens to begin like JSON
            found = read if isinstance(read, list) and read and all(isinstance(each, str) for each in read) else found
    else:
        found = truth.tolist() if hasattr(truth, "tolist") else truth  # parquet hands lists on as arrays
    if not isinstance(found, list | tuple) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"reward_model.ground_truth must be text or a list of texts, got {str(truth)[:80]!r}")
    kept = tuple(each for each in found if each.strip())
    if not kept:
        raise ValueError("reward_model.ground_truth holds no answer; leave the row out")
    return kept


def truth_text(references: Sequence[str]) -> str:
    """Reference answers as one text, which :func:`references_of` reads."""
    if len(references) == 1 and references_of(references[0]) == tuple(references):
        return references[0]
    return json.dumps(list(references), ensure_ascii=False)
