"""The live display: what it says of a run's files, however they come about, and when it keeps quiet."""

from __future__ import annotations

import json
import logging
import os
import sys
import types
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from unify_posttrain.runs import progress
from unify_posttrain.runs.progress import Progress, ProgressDisplay, check_outputs, duration, show_progress
from unify_posttrain.runs.tail import JsonLines


def metrics(step: int, seconds: float | None = 2.0, **data: float) -> str:
    timing = {} if seconds is None else {"timing_s/step": seconds}
    return json.dumps({"step": step, "data": {**timing, **data}}) + "\n"


def gate(step: int, *zones: str) -> str:
    return json.dumps({"step": step, "groups": [[row, 0, zone] for row, zone in enumerate(zones)]}) + "\n"


def shown(display: ProgressDisplay) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(display)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def terminal() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=120)


# What is said


def test_a_run_from_its_start_to_its_end(tmp_path: Path, terminal: Console) -> None:
    run = tmp_path / "late"
    display = ProgressDisplay(run, "hpt", total=4, test_freq=2, console=terminal)
    assert "hpt starting Ray and verl (about a minute)" in shown(display)
    run.mkdir()
    (run / "metrics.jsonl").write_text(metrics(0, None, **{"val-core/easy/acc/mean@1": 1.0, "val-core/hard/acc/mean@1": 0.25}))
    text = shown(display)
    assert "step 0 of 4" in text and "accuracy 62.5 % (step 0)" in text and "left" not in text  # (1 + 0.25) / 2
    with open(run / "metrics.jsonl", "a") as file:
        file.write(metrics(1, 30.0, **{"fusion/rollout_score": 0.375, "fusion/tokens_generated": 900.0, "timing_s/testing": 10.0}))
    (run / "gate.jsonl").write_text(gate(1, "sft", "off", "rl", "rl", "rl", "rl", "rl", "rl"))
    text = shown(display)
    assert "step 1 of 4, about 2 min left" in text  # 3 steps of 30 s, validations after steps 2 and 4 of 10 s: 110 s
    assert "reward 0.375 · accuracy 62.5 % (step 0) · gate: 25 % demonstrations, 75 % rollouts" in text
    with open(run / "metrics.jsonl", "a") as file:
        file.write(metrics(4, 30.0))
    assert "step 4 of 4, finishing" in shown(display)


def test_time_left_is_the_median_of_recent_steps() -> None:
    state = Progress(total=100)
    for step, seconds in enumerate([500.0, 3.0, 1.0, 2.0], start=1):  # the first step of a run compiles, loads, warms up
        state.take_metrics(json.loads(metrics(step, seconds)))
    assert state.seconds_left == 96 * 2.5  # median of 1, 2, 3, 500
    for step in range(5, 30):
        state.take_metrics(json.loads(metrics(step, 4.0)))
    assert state.seconds_left == (100 - 29) * 4.0  # the early ones are forgotten


@pytest.mark.parametrize(
    ("total", "step", "test_freq", "validations"), [(10, 3, 5, 2), (10, 5, 5, 1), (12, 10, 5, 1), (10, 10, 5, 0), (10, 3, -1, 0)]
)
def test_time_left_counts_the_validations_to_come(total: int, step: int, test_freq: int, validations: int) -> None:
    state = Progress(total, test_freq)
    state.take_metrics(json.loads(metrics(step, 0.0, **{"timing_s/testing": 7.0})))
    assert state.seconds_left == 7.0 * validations


def test_a_step_without_rollouts_has_no_reward() -> None:
    state = Progress(total=5)
    state.take_metrics(
        json.loads(metrics(1, **{"fusion/rollout_score": 0.0, "fusion/tokens_generated": 0.0, "critic/score/mean": 1.0}))
    )
    assert state.reward is None and "reward" not in state.details()
    state.take_metrics(json.loads(metrics(2, **{"critic/score/mean": 0.5})))  # a trainer that does not count tokens
    assert state.reward == 0.5


def test_dropped_prompts_are_named() -> None:
    state = Progress(total=5)
    state.take_gate(json.loads(gate(1, "rl", "skipped", "skipped", "skipped")))
    assert state.details() == "gate: 0 % demonstrations, 25 % rollouts, 75 % skipped"


@pytest.mark.parametrize("entry", [{"step": 3}, {"step": 3, "data": None}, {"step": 3, "data": {"timing_s/step": None}}])
def test_missing_metrics_are_left_out(entry: dict[str, Any]) -> None:
    state = Progress(total=None)
    state.take_metrics(entry)
    state.take_gate({"step": 3})
    assert (state.headline(), state.details()) == ("step 3", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "about 2 min"), (3570, "about 1 h 0 min"), (9000, "about 2 h 30 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# What is read


def test_a_torn_line_waits_for_its_rest(tmp_path: Path) -> None:
    path, line = tmp_path / "metrics.jsonl", metrics(1)
    lines = JsonLines(path)
    assert lines.read() == (False, [])
    path.write_text(line[:9])
    assert lines.read() == (False, [])
    path.write_text(line)
    assert lines.read() == (False, [json.loads(line)])
    assert lines.read() == (False, [])


def test_what_is_no_line_of_a_run_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    path.write_bytes(b'{"step": 1, "da\n[1]\n\n\xff\xfe\n{"step": "x"}\n' + metrics(2).encode())
    assert [entry["step"] for entry in lines.read()[1]] == [2]


def write_later(path: Path, text: str) -> None:
    """As a run does some time after: with another time stamp, whatever the resolution of the file system."""
    path.write_text(text)
    later = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(later, later))


def test_a_resumed_run_begins_at_its_checkpoint(tmp_path: Path, terminal: Console) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(metrics(step) for step in range(1, 8)))  # killed at step 7
    display = ProgressDisplay(tmp_path, "hpt", total=10, console=terminal)
    assert "starting Ray" in shown(display)  # what an earlier process wrote is not this one's progress
    write_later(file, "".join(metrics(step) for step in range(1, 6)))  # the lines up to the checkpoint are kept
    assert "step 5 of 10, 10 s left" in shown(display)
    with open(file, "a") as opened:
        opened.write(metrics(6))
    assert "step 6 of 10, 8 s left" in shown(display)


@pytest.mark.parametrize("kept", [5, 9])
def test_a_file_that_begins_anew_is_read_anew(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = JsonLines(file)
    file.write_text("".join(metrics(step, 2.0) for step in range(1, 8)))
    lines.read()
    write_later(file, "".join(metrics(step, 33.25) for step in range(1, kept + 1)))  # shorter, or longer but another
    fresh, entries = lines.read()
    assert fresh and [entry["step"] for entry in entries] == list(range(1, kept + 1))


# When it is shown


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stands for verl's module with its progress bar, which takes long to import."""
    module = types.SimpleNamespace(tqdm=lambda **options: options)
    monkeypatch.setitem(sys.modules, "fake_bars", module)
    monkeypatch.setattr(progress, "BARS", "fake_bars")
    return module


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    def build(**trainer: Any) -> DictConfig:
        settings = {
            "run_dir": str(tmp_path), "experiment_name": "hpt", "total_training_steps": 3, "test_freq": -1, "progress": "auto",
            "logger": ["console", "file"],
        }  # fmt: skip
        return OmegaConf.create({"trainer": {**settings, **trainer}})

    return build


def test_on_a_terminal_the_display_takes_the_place_of_the_lines(
    config: Callable[..., DictConfig],
    terminal: Console,
    bars: types.SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    given, bar, outputs = config(), bars.tqdm, (sys.stdout, sys.stderr)
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger("test_progress").addHandler(handler)
    with show_progress(given, terminal) as quiet:
        assert list(quiet.trainer.logger) == ["file"]
        assert bars.tqdm(total=3) == {"total": 3, "disable": True}
        assert os.environ["TQDM_DISABLE"] == "1"
        assert handler.stream is sys.stdout is not outputs[0]  # logs are written above the display, as prints are
        sys.stdout.write("a line of verl's\n")
        (tmp_path / "metrics.jsonl").write_text(metrics(3))
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("trainer.progress=plain") < text.index("a line of verl's") < text.rindex("step 3 of 3")
    assert list(given.trainer.logger) == ["console", "file"]
    assert (sys.stdout, sys.stderr) == outputs and handler.stream is outputs[0] and bars.tqdm is bar
    assert "TQDM_DISABLE" not in os.environ


@pytest.mark.parametrize(
    ("tty", "trainer"),
    [
        (False, {}),
        (True, {"progress": "plain"}),
        (True, {"logger": ["console"]}),
        (False, {"progress": "plain", "logger": "console"}),
    ],
)
def test_elsewhere_nothing_changes(
    config: Callable[..., DictConfig], terminal: Console, monkeypatch: pytest.MonkeyPatch, tty: bool, trainer: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    given = config(**trainer)
    with show_progress(given, terminal) as same:
        assert same is given
    assert terminal.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_stderr_that_is_no_terminal_is_not_drawn_into(config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    file = Console(file=StringIO(), force_terminal=False)
    with show_progress(config(), file) as same:
        assert list(same.trainer.logger) == ["console", "file"]
    assert file.file.getvalue() == ""  # type: ignore[attr-defined]


def test_none_is_neither(config: Callable[..., DictConfig], terminal: Console, bars: types.SimpleNamespace) -> None:
    with show_progress(config(progress="none"), terminal) as quiet:
        assert list(quiet.trainer.logger) == ["file"] and bars.tqdm()["disable"]
    assert terminal.file.getvalue() == ""  # type: ignore[attr-defined]


def test_an_error_of_the_run_passes_and_the_terminal_is_put_right(
    config: Callable[..., DictConfig], terminal: Console, bars: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    before = sys.stdout
    with pytest.raises(RuntimeError, match="training failed"), show_progress(config(), terminal):
        raise RuntimeError("training failed")
    assert sys.stdout is before
    assert terminal.file.getvalue().endswith("\x1b[?25h")  # type: ignore[attr-defined]  # the cursor is shown again


def test_an_unknown_way_of_showing_is_refused(config: Callable[..., DictConfig]) -> None:
    check_outputs(config())
    with pytest.raises(ValueError, match=r"trainer\.progress='live' is unknown; choose one of auto, plain, none"):
        check_outputs(config(progress="live"))
