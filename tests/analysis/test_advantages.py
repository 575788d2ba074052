"""Moments against the vectors of the specification; what counts as a value; the dump of a run, read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.analysis.advantages import (
    NORMAL,
    Trajectory,
    analyse,
    moments,
    read_rows,
    rollout_files,
    step_entry,
    trajectory,
    without_spread,
)

MOMENTS = ("mean", "deviation", "skew", "excess_kurtosis")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1, -1, -1, 3], (0, 1.732051, 1.154701, -0.666667)),
        ([-2, -1, 0, 1, 2], (0, 1.414214, 0, -1.3)),
        ([0, 0, 0], (0, 0, 0, 0)),
    ],
)
def test_moments(values: list[float], expected: tuple[float, ...]) -> None:
    found = moments(values)
    assert [found[key] for key in MOMENTS] == pytest.approx(expected, abs=1e-6)


def test_entropies() -> None:
    # three of four values in one bin: -(0.75 ln 0.75 + 0.25 ln 0.25)
    assert moments([-1, -1, -1, 3])["entropy"] == pytest.approx(0.562335, abs=1e-6)
    assert moments(range(-10, 11))["entropy"] == pytest.approx(2.450396, abs=1e-6)
    assert moments([2, 2, 2, 2])["entropy"] == 0.0


def test_equal_values_have_no_spread_whatever_floats_make_of_it() -> None:
    found = moments([0.1] * 7)
    assert [found[key] for key in ("deviation", "skew", "excess_kurtosis", "entropy")] == [0, 0, 0, 0]
    tiny = moments([0.0, 5e-324])  # its deviation underflows
    assert all(math.isfinite(value) for value in tiny.values())


def test_shares() -> None:
    found = moments([-1, 0, 0, 2])
    assert (found["zero"], found["positive"]) == (0.5, 0.25)


def test_values_beyond_the_ends_are_in_the_last_bins() -> None:
    # 1 of 101 values stands 10 deviations out: two bins, the others share one
    assert moments([0.0] * 100 + [1.0])["entropy"] == pytest.approx(
        -(100 / 101 * math.log(100 / 101) + 1 / 101 * math.log(1 / 101))
    )


def test_no_value_is_an_error() -> None:
    with pytest.raises(ValueError, match="without values"):
        moments([])


def test_the_null_of_the_entropy_is_that_of_a_normal_distribution() -> None:
    # differential entropy ½ ln(2πe) minus the logarithm of the width of a bin, 0.3; the ends take a little
    assert pytest.approx(0.5 * math.log(2 * math.pi * math.e) - math.log(0.3), abs=0.01) == NORMAL


# What counts


def row(advantage: Any, *segments: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"uid": "a", "row_kind": "rollout", "segments": [list(each) for each in segments], "advantage": advantage, **more}


TURNS = (("on", "abc"), ("untrained", "no"), ("on", "d"))


@pytest.mark.parametrize(
    ("dumped", "credit", "expected"),
    [
        (row(0.5, ("on", "abc")), "trajectory", (0.5,)),
        (row(0.5, *TURNS), "trajectory", (0.5,)),
        (row(0.5, *TURNS), "turn", (0.5, 0.5)),
        (row([1.0, 0.0, -2.0], *TURNS), "turn", (1.0, -2.0)),
        (row([1.0, 0.0, -2.0], *TURNS), "trajectory", (0.25,)),  # (3 · 1 - 1 · 2) / 4 characters
        (row([9.0, 0.0, -2.0], ("hint", "abc"), *TURNS[1:]), "turn", (-2.0,)),
        ({**row(0.5, ("on", "a")), "row_kind": "demonstration"}, "trajectory", None),
        ({**row(0.5, ("on", "a")), "row_kind": "dropped"}, "trajectory", None),
        ({**row(None), "row_kind": "padding"}, "trajectory", None),
        (row(None, ("untrained", "a")), "trajectory", None),
        (row(float("nan"), ("on", "a")), "trajectory", None),
        (row([1.0], *TURNS), "turn", None),
    ],
)
def test_one_value_per_turn_or_per_trajectory(dumped: dict[str, Any], credit: str, expected: tuple[float, ...] | None) -> None:
    found = trajectory(dumped, credit)
    assert (None if found is None else found.values) == expected


def test_groups_without_spread_have_several_rollouts() -> None:
    rows = [
        Trajectory("a", (0.0,)),
        Trajectory("a", (0.0,)),
        Trajectory("b", (1.0,)),
        Trajectory("b", (-1.0,)),
        Trajectory("c", (2.0,)),
    ]
    assert without_spread(rows) == (1, 2)


def test_a_step() -> None:
    rows = [row(-1.0, ("on", "a")), row(1.0, ("on", "a")), {**row(0.0, ("demo", "a")), "row_kind": "demonstration"}]
    found = step_entry(3, rows, "trajectory")
    assert found is not None
    assert (found["rollouts"], found["deviation"], found["demonstrations"], found["groups"]) == (2, 1.0, 1, 1)
    assert sum(found["histogram"]) == 2
    assert step_entry(3, rows[2:], "trajectory") is None


# A run


def write_dump(folder: Path, steps: dict[int, list[dict[str, Any]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for step, rows in steps.items():
        (folder / f"{step}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


def test_a_run_is_read_in_order_of_steps(tmp_path: Path) -> None:
    rows = [row(-1.0, ("on", "a")), row(1.0, ("on", "b"))]
    write_dump(tmp_path / "run" / "rollouts", {10: rows, 2: rows[:1], 3: []})
    results = analyse(tmp_path / "run", None, "trajectory", tmp_path / "out", overwrite=False)
    assert [step["step"] for step in results["steps"]] == [2, 10]
    text = (tmp_path / "out" / "advantages.md").read_text()
    assert "A normal distribution has 2.6" in text and "| 10 |" in text
    assert json.loads((tmp_path / "out" / "advantages.json").read_text())["steps"][1]["deviation"] == 1.0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"advantages.png", "advantages_heat.png"}
    with pytest.raises(ValueError, match="overwrite=true"):
        analyse(tmp_path / "run", None, "turn", tmp_path / "out", overwrite=False)
    analyse(tmp_path / "run", None, "turn", tmp_path / "out", overwrite=True)


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "1.jsonl").write_text('{"uid": 1}\nnot json\n[1]\n' + "[" * 100_000 + "\n")
    with caplog.at_level("WARNING"):
        assert list(read_rows(tmp_path / "1.jsonl")) == [{"uid": 1}]
    assert "3 lines" in caplog.text


def test_runs_without_a_dump_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run=.* is no folder"):
        rollout_files(tmp_path / "none", None)
    with pytest.raises(ValueError, match=r"trainer\.rollout_data_dir="):
        rollout_files(tmp_path, None)
    write_dump(tmp_path / "rollouts", {1: [row(None)]})
    with pytest.raises(ValueError, match="no row of its 1 dumped steps"):
        analyse(tmp_path, None, "trajectory", tmp_path / "out", overwrite=False)
