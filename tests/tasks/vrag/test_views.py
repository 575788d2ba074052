"""Shown sizes and crops: vectors S and C, and that boxes never leave their page."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unify_posttrain.tasks.vrag.views import RefusedBoxError, Showing, View

SHOWING = Showing(200704, 401408, 0, 28)
PAGE = View("page", (0, 0, 1600, 1200))


@pytest.mark.parametrize(
    ("raw", "shown", "tokens"),
    [
        ((1600, 1200), (728, 532), 494),
        ((1700, 2200), (532, 700), 475),
        ((300, 200), (560, 392), 280),
        ((64, 64), (448, 448), 256),
        ((3000, 100), (2996, 112), 428),
    ],
)
def test_shown_sizes(raw: tuple[int, int], shown: tuple[int, int], tokens: int) -> None:
    assert (SHOWING.size(raw), SHOWING.tokens(raw)) == (shown, tokens)
    assert SHOWING.size(shown) == shown  # the processor leaves it


def test_a_page_that_is_too_narrow() -> None:
    with pytest.raises(RefusedBoxError, match="more than 200 times the other"):
        SHOWING.size((20, 5000))
    with pytest.raises(RefusedBoxError, match="more than 200 times the other"):
        SHOWING.size((7800, 40))  # 195 times, and 279 when both are rounded to multiples of 28


def crop(view: View, box: tuple[float, ...], showing: Showing = SHOWING) -> View:
    x1, y1, x2, y2 = map(Fraction, box)
    return showing.crop(view, (x1, y1, x2, y2))


@pytest.mark.parametrize(
    ("box", "pad", "rect", "shown", "tokens"),
    [
        ((100, 50, 300, 200), 0, (219, 112, 660, 452), (532, 420), 285),
        ((-20, -20, 5000, 5000), 0, (0, 0, 1600, 1200), (728, 532), 494),
        ((0, 0, 13, 13), 0, (0, 0, 29, 30), (448, 476), 272),
        ((100, 50, 300, 200), 28, (158, 49, 721, 515), (560, 476), 340),
    ],
)
def test_crops_of_a_page(box: tuple[int, ...], pad: int, rect: tuple[int, ...], shown: tuple[int, int], tokens: int) -> None:
    showing = Showing(200704, 401408, pad, 28)
    found = crop(PAGE, box, showing)
    assert (found.rect, showing.size(found.size), showing.tokens(found.size)) == (rect, shown, tokens)


def test_a_crop_of_a_crop() -> None:
    found = crop(crop(PAGE, (100, 50, 300, 200)), (100, 100, 400, 300))
    assert (found.rect, SHOWING.size(found.size), SHOWING.tokens(found.size)) == ((301, 192, 551, 355), (560, 364), 260)


@pytest.mark.parametrize("box", [(300, 200, 100, 50), (10, 10, 20, 20), (0, 0, 12, 13), (10, 10, 10, 90), (900, 0, 950, 90)])
def test_boxes_that_are_refused(box: tuple[int, ...]) -> None:
    with pytest.raises(RefusedBoxError):
        crop(PAGE, box)


NUMBERS = st.one_of(st.integers(-(10**40), 10**40), st.integers(-800, 1600), st.floats(-2000, 2000).map(Fraction))


@settings(max_examples=50)
@given(st.integers(28, 3000), st.integers(28, 3000), st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=4),
       st.integers(0, 60))  # fmt: skip
def test_crops_stay_within_the_view_before(width: int, height: int, boxes: list[tuple[Fraction, ...]], pad: int) -> None:
    showing = Showing(200704, 401408, pad, 28)
    view = View("page", (0, 0, width, height))
    for box in boxes:
        try:
            found = crop(view, box, showing)
        except RefusedBoxError:
            continue
        assert view.rect[0] <= found.rect[0] < found.rect[2] <= view.rect[2]
        assert view.rect[1] <= found.rect[1] < found.rect[3] <= view.rect[3]
        shown = showing.size(found.size)
        assert shown[0] % 28 == shown[1] % 28 == 0 and showing.size(shown) == shown
        view = found


@settings(max_examples=50)
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_shown_sizes_are_those_of_the_processor(width: int, height: int) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    def processors() -> tuple[int, int] | None:
        try:
            down, across = smart_resize(height, width, factor=28, min_pixels=200704, max_pixels=401408)
            again = smart_resize(down, across, factor=28, min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
        except ValueError:
            return None
        assert again == (down, across)  # its usual bounds contain ours
        return across, down

    try:
        ours = SHOWING.size((width, height))
    except RefusedBoxError:
        ours = None
    assert ours == processors()


def test_a_processor_that_would_change_what_is_shown() -> None:
    SHOWING.check_processor(56 * 56, 28 * 28 * 1280)
    for bounds in ((300_000, 500_000), (3136, 300_000)):
        with pytest.raises(ValueError, match=r"keeps images within .* set environment.min_pixels and environment.max_pixels"):
            SHOWING.check_processor(*bounds)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((100, 401408, 0, 28), "environment.min_pixels=100: give an integer of at least 784"),
        ((200704, 300000, 0, 28), "environment.max_pixels=300000 is less than twice environment.min_pixels"),
        ((200704, 401408, -1, 28), "environment.crop_pad_px=-1"),
        ((200704, 401408, 0, True), "environment.min_crop_px=True"),
    ],
)
def test_settings_that_are_refused(given: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Showing(*given)
