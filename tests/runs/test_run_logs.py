"""Log files that survive a kill at any moment: between truncating and restoring them too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unify_posttrain.runs import run_logs


def lines(*steps: int) -> list[str]:
    return [json.dumps({"step": step}) for step in steps]


def test_lines_are_kept_while_the_file_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([*lines(1, 2), '{"step": 3, "da']) + "\n")
    assert run_logs.guarded_lines(path) == lines(1, 2)
    path.write_text("")  # verl's file logger starts; then the process is killed
    assert run_logs.guarded_lines(path) == lines(1, 2), "the next process finds them"
    path.write_text(lines(1)[0] + "\n")  # killed while they were put back
    assert run_logs.guarded_lines(path) == lines(1, 2)
    path.write_text("\n".join(lines(1, 2)) + "\n")
    run_logs.release(path)
    with open(path, "a") as file:
        file.write(lines(3)[0] + "\n")
    assert run_logs.guarded_lines(path) == lines(1, 2, 3), "from then on the file itself counts"


def test_nothing_to_keep_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert run_logs.guarded_lines(path) == []
    assert not list(tmp_path.iterdir())
    run_logs.release(path)


def test_a_kill_while_replacing_leaves_the_old_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gate.jsonl"
    run_logs.replace(path, lines(1, 2, 3))
    monkeypatch.setattr(run_logs.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_logs.replace(path, lines(1))
    assert run_logs.complete_lines(path) == lines(1, 2, 3)


def test_a_resume_keeps_the_steps_up_to_its_checkpoint() -> None:
    assert run_logs.up_to(lines(0, 1, 2, 3), 2) == lines(0, 1, 2)
    assert run_logs.up_to(lines(0, 1), 0) == []
