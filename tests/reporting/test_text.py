"""The examples in docstrings."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from unify_posttrain.reporting import charts, samples, text


@pytest.mark.parametrize("module", [charts, samples, text])
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
