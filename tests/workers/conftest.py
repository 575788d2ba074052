"""Fixtures of the tests of workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import flash_attn_stand_in


@pytest.fixture
def flash_attn() -> Iterator[None]:
    """verl's packed path finds its padding functions."""
    with flash_attn_stand_in.entered():
        yield
