"""Hands, rules, counts and the solver of general points, against a search that knows nothing of strings."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.tasks.formula import evaluate
from unify_posttrain.tasks.general_points.cards import LABELS, Hand, labels_of, worth
from unify_posttrain.tasks.general_points.pools import Puzzle, has_face, ordered_hands
from unify_posttrain.tasks.general_points.solver import SHAPES, playable, playable_values, solve

MULTISETS = list(itertools.combinations_with_replacement(range(1, 14), 4))


@cache
def reachable(values: tuple[int, ...]) -> frozenset[Fraction]:
    """Everything that combining any two numbers, again and again, can reach."""
    if len(values) == 1:
        return frozenset({Fraction(values[0])})
    found = set()
    for size in range(1, len(values)):
        for chosen in set(itertools.combinations(range(len(values)), size)):
            left = tuple(values[place] for place in chosen)
            right = tuple(values[place] for place in range(len(values)) if place not in chosen)
            for a, b in itertools.product(reachable(left), reachable(right)):
                found |= {a + b, a - b, a * b} | ({a / b} if b else set())
    return frozenset(found)


def test_counts_of_playable_values() -> None:
    assert (len(MULTISETS), len(playable_values(13, 4, 24)), len(playable_values(10, 4, 24))) == (1820, 1362, 566)
    assert (len(playable_values(10, 4, 12)), len(playable_values(10, 4, 36))) == (637, 531)
    assert (len(playable_values(13, 3, 24)), len(playable_values(10, 3, 24))) == (111, 59)


def test_counts_of_hands() -> None:
    ten, rank = Puzzle("ten", 24), Puzzle("rank", 24)
    under_ten = [hand for hand in MULTISETS if ten.playable(hand)]
    faces = [hand for hand in MULTISETS if has_face(hand)]
    both = [(ten.playable(hand), rank.playable(hand)) for hand in faces]
    assert (len(under_ten), sum(map(has_face, under_ten))) == (1236, 670)
    assert (sum(b for _, b in both), both.count((True, True)), both.count((True, False)), both.count((False, True))) == (
        796, 529, 141, 267,
    )  # fmt: skip
    by_faces = Counter(sum(card >= 11 for card in hand) for hand in faces if rank.playable(hand))
    assert [by_faces[number] for number in (1, 2, 3, 4)] == [503, 234, 47, 12]


def test_counts_of_ordered_hands() -> None:
    ten, rank = ordered_hands(4, Puzzle("ten", 24)), ordered_hands(4, Puzzle("rank", 24))
    assert (len(ten), sum(map(has_face, ten)), sum(map(has_face, rank))) == (20_876, 12_318, 14_057)
    assert len(ten) / 13**4 == pytest.approx(0.7309, abs=5e-5)
    # the published sampler of the other rule: three ranks and one face more, kept if playable
    drawn = [(*hand, face) for hand in itertools.product(range(1, 14), repeat=3) for face in (11, 12, 13)]
    kept = sum(Puzzle("rank", 24).playable(hand) for hand in drawn)
    assert (len(drawn), kept) == (6591, 4815) and kept / len(drawn) == pytest.approx(0.7305, abs=5e-5)
    three = ordered_hands(3, Puzzle("ten", 24)), ordered_hands(3, Puzzle("rank", 24))
    assert (len(three[0]), sum(map(has_face, three[1]))) == (487, 276)


def test_bracket_shapes_lose_no_hand() -> None:
    """A sample that has all kinds; the whole table is the benchmark's."""
    sample = MULTISETS[::7]
    expected = [Fraction(24) in reachable(hand) for hand in sample]
    assert list(playable(sample, 24)) == expected and 0 < sum(expected) < len(expected)


@pytest.mark.parametrize(
    ("values", "strings"),
    [
        ((1, 2, 3, 4), 314), ((3, 3, 8, 8), 1), ((1, 5, 5, 5), 2), ((4, 4, 10, 10), 1), ((6, 6, 6, 6), 12), ((3, 4, 5, 13), 52),
        ((1, 3, 6, 13), 15), ((1, 3, 6, 10), 70), ((2, 3, 12, 12), 60), ((5, 5, 11, 13), 204), ((1, 11, 12, 13), 29),
        ((7, 7, 3, 3), 4), ((2, 2, 11, 11), 4), ((11, 12, 13, 13), 52), ((2, 4, 10, 10), 4), ((1, 4, 5, 6), 2), ((2, 2, 3, 4), 10),
        ((1, 1, 1, 1), 0), ((10, 10, 10, 10), 0),
    ],
)  # fmt: skip
def test_number_of_strings(values: tuple[int, ...], strings: int) -> None:
    found = solve(values, 24)
    assert len(found.texts) == len(set(found.texts)) == strings
    assert found.ordered == tuple(sorted(found.texts))


@given(st.integers(2, 4).flatmap(lambda count: st.tuples(*[st.integers(1, 13)] * count)), st.integers(1, 60))
def test_every_string_is_right_and_the_order_of_cards_does_not_matter(values: tuple[int, ...], target: int) -> None:
    found = solve(values, target)
    assert found is solve(values[::-1], target)
    for text in found.texts:
        formula = evaluate(text)
        assert formula.value == target and formula.numbers == tuple(sorted(values))
    assert bool(found.texts) == (target in reachable(tuple(sorted(values))))


def test_shapes() -> None:
    assert SHAPES[4] == ("abcd", "(ab)cd", "(abc)d", "a(bc)d", "a(bcd)", "ab(cd)", "(ab)(cd)")
    assert SHAPES[3] == ("abc", "(ab)c", "a(bc)")


@pytest.mark.parametrize("text", ["", "1", "(1+2+3*4", "4/(3-2-1)", "x", "~", "1+2+3+4"])
def test_shared_beginning_is_the_longest(text: str) -> None:
    found = solve((1, 2, 3, 4), 24)
    lengths = [next((i for i in range(len(text), 0, -1) if each.startswith(text[:i])), 0) for each in found.texts]
    assert found.shared_beginning(text) == text[: max(lengths)]


def test_hands_and_their_values() -> None:
    hand = Hand(labels_of([1, 10, 11, 13]), "ten", 24, "native")
    assert hand.labels == ("A", "10", "J", "K")
    assert (hand.values, hand.other_values, hand.faces) == ((1, 10, 10, 10), (1, 10, 11, 13), 2)
    assert Hand.from_truth(hand.truth()) == hand
    assert [worth(rank, "rank") for rank in range(1, 14)] == list(range(1, 14)) and len(LABELS) == 13


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cards", ["A", "1", "2", "3"], r"cards=.*give a list of A, 2"),
        ("cards", "A234", r"cards=A234"),
        ("cards", ["A"], r"a hand has 2 to 4 cards"),
        ("cards", ["A"] * 5, r"a hand has 2 to 4 cards"),
        ("rule", "tens", r"rule='tens' is unknown; choose one of ten, rank"),
        ("target", 0, r"target=0: give a whole number from 1 to 999"),
        ("target", 1000, r"target=1000: give a whole number from 1 to 999"),
        ("target", True, r"target=True: give a whole number from 1 to 999"),
        ("style", "plain", r"style='plain' is unknown; choose one of native, upstream, compact"),
    ],
)
def test_what_is_no_hand(key: str, value: object, message: str) -> None:
    truth = Hand(("A", "2", "3", "4"), "ten", 24, "native").truth()
    with pytest.raises(ValueError, match=message):
        Hand.from_truth({**truth, key: value})
