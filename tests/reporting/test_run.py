"""Reading runs: in progress, killed, resumed, damaged, or none at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from unify_posttrain.reporting.run import finite, read_run, read_runs, step_files


def test_a_whole_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(tmp_path / "mine"))
    assert (run.label, run.algorithm, run.model, run.task) == ("mine", "hpt", "tiny", "sums")
    assert (run.done, run.planned, run.damage, run.validated) == (10, 10, (), 8)
    assert run.gate[1] == [(10, 0, "sft"), (11, 0, "sft"), (12, 1, "rl"), (13, 2, "rl")]
    assert run.series("fusion/solve_rate")[1][0] == pytest.approx(3 / 16)  # step 1: 0 + 0 + 1 + 2 of 16
    assert run.total("fusion/optimizer_steps") == 20


def test_damage_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    lines = [
        '{"step": 0, "data": {"val-core/a/acc/mean@1": 0.5}}',
        '{"step": 1, "data": {"training/global_step": 1, "actor/grad_norm": null, "actor/entropy": NaN, "actor/lr": 1e-5}}',
        '{"step": 2, "data": {"training/global_step": 2, "actor/grad_norm": Infinity, "name": "x", "flag": true}}',
        '{"step": 2, "data": {"training/global_step": 2, "actor/grad_norm": 3}}',
        '[1, 2]', '"text"', '{"step": "two", "data": {}}', '{"step": 3}', '{"step": true, "data": {"x": 1}}', "",
        '{"step": 3, "data": {"training/glo',
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (tmp_path / "gate.jsonl").write_text('{"step": 1, "groups": [[5, 2, "rl"], [6], "x", [7, -1, "rl"]]}\n{"step": 2, "gro')
    (tmp_path / "config.yaml").write_text("a: [1\nb: }")
    run = read_run(tmp_path)
    assert run.label == tmp_path.name and run.done == 2 and run.config == {}
    assert run.metrics[2] == {"training/global_step": 2, "actor/grad_norm": 3}
    assert run.not_finite == {"actor/grad_norm": [1, 2], "actor/entropy": [1]}
    assert run.gate == {1: [(5, 2, "rl")]}
    told = "\n".join(run.damage)
    assert "metrics.jsonl: 3 lines cut short" in told and "gate.jsonl: 1 line cut short" in told
    assert "steps 2 to 2 were written more than once" in told and "config.yaml cannot be read" in told


def test_a_resumed_run_validates_its_step_once_more(tmp_path: Path) -> None:
    lines = [(5, {"training/global_step": 5, "val-core/a/acc/mean@1": 0.4}), (5, {"val-core/a/acc/mean@1": 0.5})]
    text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    run = read_run(tmp_path)
    assert run.damage == () and run.metrics == {5: {"training/global_step": 5, "val-core/a/acc/mean@1": 0.5}}


def test_what_there_is_nothing_of_is_not_measured(tmp_path: Path) -> None:
    """Fine-tuning generates nothing; its solve rate of 0 is no solve rate."""
    data = [
        (1, {"fusion/solve_rate": 0, "fusion/tokens_generated": 0}),
        (2, {"fusion/solve_rate": 0, "fusion/tokens_generated": 9}),
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "data": d}) + "\n" for s, d in data))
    assert read_run(tmp_path).series("fusion/solve_rate", "fusion/tokens_generated") == ([2], [0.0])
    assert read_run(tmp_path).series("fusion/solve_rate") == ([1, 2], [0.0, 0.0])


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is no run: it has neither config\.yaml nor metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(ValueError, match="is no run"):
        read_run(tmp_path / "absent")
    with pytest.raises(ValueError, match="no run given"):
        read_runs([])


def test_names_differ(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    folders = [make_run(tmp_path / parent / "hpt") for parent in ("a", "b")] + [make_run(tmp_path / "grpo")]
    assert [run.label for run in read_runs(folders)] == ["a/hpt", "b/hpt", "grpo"]
    with pytest.raises(ValueError, match="given twice"):
        read_runs([folders[0], tmp_path / "a" / ".." / "a" / "hpt"])


def test_what_the_study_recorded_serves_as_environment(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    assert read_run(tmp_path).environment is None
    (tmp_path / "record.json").write_text('{"versions": {"torch": "2.9"}, "command": ["secret"], "source": "abc"}')
    assert read_run(tmp_path).environment == {"versions": {"torch": "2.9"}, "source": "abc"}
    (tmp_path / "environment.json").write_text('{"python": "3.11"}')
    assert read_run(tmp_path).environment == {"python": "3.11"}


def test_only_files_of_steps_and_no_links(tmp_path: Path) -> None:
    for name in ("10.jsonl", "9.jsonl", "x.jsonl", "3.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "4.jsonl").symlink_to(tmp_path / "9.jsonl")
    (tmp_path / "5.jsonl").mkdir()
    assert list(step_files(tmp_path)) == [9, 10]
    assert step_files(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.5, 0.5),
        (math.nan, None),
        (-math.inf, None),
        (10**400, None),
        ("1", None),
        (None, None),
        ([1], None),
    ],
)
def test_finite(value: object, expected: float | None) -> None:
    assert finite(value) == expected
