"""Graders compute and do nothing else: real processes that try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unify_posttrain.rewards import confinement, math
from unify_posttrain.rewards.confinement import sparse_environment
from unify_posttrain.rewards.pool import KillablePool

pytestmark = pytest.mark.slow

ESCAPES = "tests.rewards.escapes:attempt"
SETTINGS = {"workers": 1, "timeout_seconds": 10.0, "memory_mb": 512}
LANDLOCK = confinement.landlock_version()


@pytest.fixture(scope="module")
def secret() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_not_a_real_one")
        yield "HF_TOKEN"


@pytest.fixture(scope="module")
def confined(secret: str) -> Iterator[KillablePool]:
    with KillablePool(ESCAPES, **SETTINGS, confined=True) as pool:
        assert pool.run(["add", [1, 2]]).value == 3
        yield pool


@pytest.fixture(scope="module")
def free(secret: str) -> Iterator[KillablePool]:
    with KillablePool(ESCAPES, **SETTINGS) as pool:
        assert pool.run(["add", [1, 2]]).value == 3
        yield pool


@pytest.mark.parametrize(
    ("what", "argument"),
    [
        ("environment", "HF_TOKEN"),
        ("environment_of_c", "HF_TOKEN"),
        ("environment_of_supervisor", "HF_TOKEN"),
        ("environment_of_caller", "{pid}"),  # workers of pytest have to collect the same names
        ("read", "{file}"),
        ("write", "{folder}/new"),
        ("append", "{folder}/there"),
        ("temporary", None),
        ("tcp", None),
        ("unix", None),
        ("pipe", None),
        ("program", None),
    ],
)
def test_no_secret_no_file_no_socket(
    confined: KillablePool, free: KillablePool, tmp_path: Path, what: str, argument: str | None
) -> None:
    (tmp_path / "there").write_text("as it was")
    item = [what, argument and argument.format(folder=tmp_path, pid=os.getpid(), file=__file__)]
    outcome = confined.run(item)
    assert outcome.fault == "error", outcome
    assert [each.name for each in tmp_path.iterdir()] == ["there"] and (tmp_path / "there").read_text() == "as it was"
    assert free.run(item).fault is None, "the attempt itself works: a function of a user may"


def test_limits_are_not_raised_again(confined: KillablePool) -> None:
    """Not by root either, which may raise them as long as it has its capabilities."""
    outcome = confined.run(["raise_limits", __file__])
    assert (outcome.fault == "error" and "PermissionError" in outcome.detail) or "ValueError" in outcome.detail, outcome


@pytest.mark.skipif(LANDLOCK < 1, reason="this kernel does not use Landlock")
@pytest.mark.parametrize("what", ["make_folder", "remove"])
def test_folders_stay_as_they_are(confined: KillablePool, tmp_path: Path, what: str) -> None:
    (tmp_path / "there").write_text("x")
    outcome = confined.run([what, str(tmp_path / ("there" if what == "remove" else "new"))])
    assert outcome.fault == "error" and [each.name for each in tmp_path.iterdir()] == ["there"]


@pytest.mark.skipif(LANDLOCK < 6, reason="Landlock of this kernel says nothing about signals")
def test_no_signal_reaches_the_caller(confined: KillablePool) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        assert confined.run(["end_caller", os.getpid()]).fault == "error"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == []


def test_memory_and_arithmetic_are_free(confined: KillablePool) -> None:
    assert confined.run(["anonymous", None]).value == 1000


def test_nothing_is_written_into_files_that_were_open(tmp_path: Path) -> None:
    """Standard error of a run is often a file: a grader cannot fill the disk with it."""
    script = (
        "from unify_posttrain.rewards.pool import KillablePool\n"
        "with KillablePool('tests.rewards.mischief:act', workers=1, timeout_seconds=5.0, memory_mb=400, confined=True) as pool:\n"
        "    print(pool.run(['print', 'filling'] ).fault, pool.run(['echo', 3]).value)\n"
    )
    root = Path(__file__).parents[2]
    with (tmp_path / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
    assert done.stdout.split() == [b"error", b"3"]
    assert (tmp_path / "log").read_bytes() == b""


# --- modules that are imported late -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wave", "json.tool"])
def test_late_modules_are_imported_by_the_supervisor(confined: KillablePool, name: str) -> None:
    outcomes = confined.send([["add", [1, 2]], ["late", name], ["add", [3, 4]]])
    assert [outcome.value for outcome in outcomes] == [3, True, 7] and not any(outcome.fault for outcome in outcomes)


def test_a_module_that_is_absent_is_absent(confined: KillablePool) -> None:
    """Also one that is installed, but belongs to nothing that the function uses."""
    outcomes = confined.send([["guarded_late", name] for name in ("no_such_module", "torch", "json.absent", "add")])
    assert [outcome.value for outcome in outcomes] == ["ModuleNotFoundError"] * 4


def test_late_modules_end_after_a_while(confined: KillablePool) -> None:
    """An answer that made the grader ask for ever new modules would never be done."""
    outcomes = confined.send([["guarded_late", f"json.absent{number}"] for number in range(confinement.MOST_LATE + 10)])
    assert {outcome.value for outcome in outcomes} == {"ModuleNotFoundError"}
    assert confined.run(["add", [1, 2]]).value == 3


# --- the graders of mathematics ---------------------------------------------------------------------------------------


def test_variables_that_could_be_secrets_are_left_behind() -> None:
    given = {
        "PATH": "/bin",
        "PYTHONPATH": "x",
        "LC_ALL": "C",
        "HF_TOKEN": "1",
        "WANDB_API_KEY": "2",
        "RAY_AUTH_TOKEN": "3",
        "MY": "4",
    }
    assert sparse_environment(given) == {"PATH": "/bin", "PYTHONPATH": "x", "LC_ALL": "C"}


def test_the_pools_of_mathematics_are_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their target is: here one that tries to read its own source."""
    for name in ("GRADE", "GRADE_DAPO"):
        monkeypatch.setattr(math, name, "tests.rewards.escapes:attempt")
        with math.pool(getattr(math, name), **SETTINGS) as pool:
            assert pool.run(["read", __file__]).fault == "error"


def test_confined_graders_say_what_free_ones_say() -> None:
    """No verdict depends on a file that a library reads, and no module is missing."""
    from tests.rewards.answer_pairs import ALL

    target, settings = "unify_posttrain.rewards.grading:compare_item", {"workers": 1, "timeout_seconds": 60.0, "memory_mb": 2048}
    items = [{"answer": answer, "gold": gold} for _, answer, gold, _ in ALL]
    with KillablePool(target, **settings) as free, KillablePool(target, **settings, confined=True) as confined:
        expected, got = free.map(items), confined.map(items)
    assert [(each.value, each.fault) for each in got] == [(each.value, each.fault) for each in expected]
