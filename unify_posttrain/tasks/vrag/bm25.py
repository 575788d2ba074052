"""BM25 over the texts of pages, exact and without dependencies: its idf is never negative, so that common words rank pages, too."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The tokens of a text.

    >>> words("Headquarters! 2,5")
    ['headquarters', '2', '5']
    """
    return _WORD.findall(text.lower())


class BM25:
    """Scores of pages for queries.

    score = Σ over the words of the query, with repeats, of idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / mean length)),
    idf = ln(1 + (N - df + 0.5) / (df + 0.5)).

    Args:
        texts: page id -> text.
        k1, b: how soon a repeated word stops counting, and how much long pages are discounted.
    """

    def __init__(self, texts: Mapping[str, str], k1: float, b: float) -> None:
        counts = {page: Counter(words(text)) for page, text in texts.items()}
        lengths = {page: sum(count.values()) for page, count in counts.items()}
        mean = sum(lengths.values()) / max(len(lengths), 1) or 1.0  # of pages without a word nothing is divided
        self.k1 = k1
        self.norms = {page: k1 * (1 - b + b * length / mean) for page, length in lengths.items()}
        self.postings: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for page, count in counts.items():
            for word, times in count.items():
                self.postings[word].append((page, times))

    def idf(self, word: str) -> float:
        """How rare a word is."""
        holding = len(self.postings.get(word, ()))
        return math.log(1 + (len(self.norms) - holding + 0.5) / (holding + 0.5))

    def rank(self, query: str, top_k: int) -> list[tuple[str, float]]:
        """Page ids and scores, best first, ties by id; pages without a word of the query are none of them."""
        scores: dict[str, float] = defaultdict(float)
        for word, times in Counter(words(query)).items():
            idf = self.idf(word) * times
            for page, tf in self.postings.get(word, ()):
                scores[page] += idf * tf * (self.k1 + 1) / (tf + self.norms[page])
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:top_k]
