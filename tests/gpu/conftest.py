"""Tests that have a body for a GPU and a small one for the CPU. `make test-gpu` runs the first kind, `make test` the second.

`make test-gpu` cuts pytest off above this folder: tests/conftest.py hides the GPUs and imports what a machine may lack. So nothing
here imports verl, ray, vllm or hydra while tests are collected; a test says by `needs` what it cannot do without, and is skipped
with that reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import pytest
import torch

MEASURED = "measured"
NO_CUDA = "a CUDA device (make test-gpu)"


def missing(packages: set[str], cuda: bool, gib: float) -> list[str]:
    """What this machine lacks of packages (names that Python imports), a GPU, and free memory on it."""
    lacking = sorted(name for name in packages if find_spec(name) is None)
    if not cuda:
        return lacking
    if not torch.cuda.is_available():
        return [NO_CUDA, *lacking]
    free = torch.cuda.mem_get_info()[0] / 2**30
    return lacking if free >= gib else [f"{gib:g} GiB of free memory on the GPU ({free:.0f} are)", *lacking]


def pytest_runtest_setup(item: pytest.Item) -> None:
    marks = list(item.iter_markers("needs"))
    packages = {name for mark in marks for name in mark.args}
    gib = max((mark.kwargs.get("gib", 0.0) for mark in marks), default=0.0)
    lacking = missing(packages, item.get_closest_marker("gpu") is not None, gib)
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")


@pytest.fixture(autouse=True)
def cleared() -> Iterator[None]:
    """Every test has the memory of the GPU for itself."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """measured("a figure"): shown at the end of `make test-gpu`, and kept in the report that pytest writes on demand."""
    return lambda text: record_property(MEASURED, text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured, and test by test what could not run here and why."""
    if terminalreporter.config.getoption("markexpr") != "gpu":
        return
    reports = [report for found in terminalreporter.stats.values() for report in found if isinstance(report, pytest.TestReport)]
    figures = [
        f"{report.nodeid.split('::')[-1]}: {value}"
        for report in reports
        if report.when == "call"
        for name, value in report.user_properties
        if name == MEASURED
    ]
    left_out = [f"{report.nodeid}: {report.longrepr[2]}" for report in reports if report.skipped]
    for title, lines in (("measured", figures), ("not run on this machine", left_out)):
        if lines:
            terminalreporter.section(title)
            for line in lines:
                terminalreporter.write_line(line)
