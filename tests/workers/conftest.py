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


@pytest.fixture(scope="module", autouse=True)
def models_are_as_transformers_has_them() -> Iterator[None]:
    """verl puts other functions into the classes of models that see; later tests of this process use these classes, too."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

    classes = [value for value in vars(module).values() if isinstance(value, type) and "forward" in vars(value)]
    before = {each: each.forward for each in classes}
    yield
    for each, forward in before.items():
        each.forward = forward
