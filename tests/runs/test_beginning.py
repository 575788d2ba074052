"""Which run a start is, and what becomes of what lies in its folder. Every case starts from real files."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.evaluation.checkpoints import checkpoint as evaluated
from unify_posttrain.evaluation.checkpoints import usable_steps
from unify_posttrain.runs import beginning, state
from unify_posttrain.runs.beginning import TRACKER, begin, note_tracker
from unify_posttrain.runs.lineage import lineage_in, read_run
from unify_posttrain.runs.run_logs import ResumableLogs


class Folder:
    """A run folder and the processes that train in it, without any training."""

    def __init__(self, home: Path, checkpoints: Path | None = None) -> None:
        self.home, self.checkpoints = home, checkpoints or home / "checkpoints"

    def config(self, mode: str = "auto", path: Path | None = None) -> DictConfig:
        trainer = {"run_dir": str(self.home), "default_local_dir": str(self.checkpoints), "resume_mode": mode, "test_freq": -1}
        return OmegaConf.create({"trainer": {**trainer, "resume_from_path": path and str(path)}})

    def start(self, mode: str = "auto", path: Path | None = None) -> str:
        """As `launch.run` and the trainer do; returns the run's id."""
        config = self.config(mode, path)
        self.lineage = begin(config)
        OmegaConf.save(config, self.home / "config.yaml")
        logs = ResumableLogs(self.home)
        folder = state.resume_folder(config)
        step = 0 if folder is None else state.step_of(folder)
        with open(self.home / "metrics.jsonl", "wb") as file:
            logs.restore(step, logs.kept(step, None), file)
        assert self.lineage.run is not None
        return self.lineage.run

    def train(self, *steps: int, keep: int | None = None, ids: bool = True) -> None:
        """Checkpoint and log these steps; `ids` as this release does."""
        for step in steps:
            folder = self.checkpoints / f"global_step_{step}"
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "actor" / "huggingface").mkdir(parents=True)
            (folder / "actor" / "huggingface" / "config.json").write_text("{}")
            (folder / "actor" / "huggingface" / "model.safetensors").write_text(f"weights of {step}")
            own = {"run": self.lineage.run, "lineage": self.lineage.state} if ids else {}
            state.write_json(folder / state.STATE, {"format": state.FORMAT, "global_step": step, **own})
            state.mark_complete(folder)
            (self.checkpoints / TRACKER).write_text(str(step))
            state.keep_newest(self.checkpoints, keep, self.lineage if ids else None)
            for name in ("metrics.jsonl", "gate.jsonl"):
                with open(self.home / name, "a") as file:
                    file.write(json.dumps({"step": step, "by": own.get("run", "old")}) + "\n")

    @property
    def steps(self) -> list[int]:
        return [state.step_of(folder) for folder in state.step_folders(self.checkpoints)]

    def lines(self, where: Path | None = None) -> list[tuple[int, str]]:
        entries = map(json.loads, ((where or self.home) / "metrics.jsonl").read_text().splitlines())
        return [(entry["step"], entry["by"]) for entry in entries]

    @property
    def tracker(self) -> str | None:
        path = self.checkpoints / TRACKER
        return path.read_text() if path.exists() else None


def test_a_resume_goes_on_with_the_id(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2)
    assert run.start() == first and run.lines() == [(1, first), (2, first)]
    run.train(3)
    assert run.start("resume_path", run.checkpoints / "global_step_3") == first, "the newest one, by its name"
    assert not (run.home / "earlier").exists()
    assert read_run(run.home)["parent"] is None


@pytest.mark.parametrize("ids", [True, False], ids=["of this release", "of before there were ids"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_fresh_run_in_a_used_folder_keeps_its_own(
    tmp_path: Path, elsewhere: bool, ids: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The fault: with one to be kept, steps 1 to 3 were deleted as soon as they were written, in favour of the old run's 4."""
    run = Folder(tmp_path / "run", tmp_path / "disk" if elsewhere else None)
    old = run.start()
    if not ids:
        (run.home / "unify_run.json").unlink()
    run.train(2, 4, ids=ids)
    (run.home / "samples").mkdir()
    (run.home / "samples" / "4.jsonl").write_text("old")
    with caplog.at_level(logging.WARNING):
        new = run.start("disable")
    assert new != old
    label = old if ids else "unnamed"
    aside = tmp_path / "disk" / "earlier" / label if elsewhere else run.home / "earlier" / label / "checkpoints"
    assert str(aside) in caplog.text and "global_step_4" in caplog.text
    assert (run.steps, run.lines(), run.tracker) == ([], [], None)
    for step in (1, 2, 3):
        run.train(step, keep=1)
        assert run.steps == [step]
    assert run.start() == new and run.lines() == [(step, new) for step in (1, 2, 3)], "a resume goes on with the new run"
    assert not (run.home / "samples").exists()

    # What was set aside is a run folder: its lines, samples and settings, checkpoints that are sound and can be gone on from.
    earlier = run.home / "earlier" / label
    by = old if ids else "old"
    assert run.lines(earlier) == [(2, by), (4, by)] and (earlier / "samples" / "4.jsonl").read_text() == "old"
    assert usable_steps(earlier) == [2, 4]
    assert state.damage(aside / "global_step_4") is None
    third = run.start("resume_path", aside / "global_step_4")
    assert third not in (old, new)
    record = read_run(run.home)
    assert record["parent"] == {"run": old if ids else None, "step": 4, "checkpoint": str(aside / "global_step_4")}
    assert run.steps == [] and run.lines() == [], "what the second run trained is set aside in its turn"
    assert sorted(path.name for path in (run.home / "earlier").iterdir()) == sorted([label, new])


def test_an_earlier_step_branches_off(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2, 3, 4)
    (run.home / "samples").mkdir()
    for step in (2, 4):
        (run.home / "samples" / f"{step}.jsonl").write_text("a sample")
    second = run.start("resume_path", run.checkpoints / "global_step_2")
    assert [path.name for path in (run.home / "samples").iterdir()] == ["2.jsonl"]
    assert [path.name for path in (run.home / "earlier" / first / "samples").iterdir()] == ["4.jsonl"]
    assert second != first
    assert run.steps == [1, 2] and run.tracker == "2"
    assert run.lines() == [(1, first), (2, first)], "the way up to the branch is its own"
    earlier = run.home / "earlier" / first
    assert run.lines(earlier) == [(step, first) for step in (1, 2, 3, 4)] and usable_steps(earlier) == [3, 4]
    run.train(3, keep=2)
    assert run.steps == [2, 3], "steps of before the branch count like others"
    assert run.start() == second
    again = run.start("resume_path", run.checkpoints / "global_step_2")
    run.train(3)
    assert run.start("resume_path", run.checkpoints / "global_step_2") not in (first, second, again)
    assert {path.name for path in (run.home / "earlier").iterdir()} == {first, second, again}


def test_the_same_run_set_aside_twice_has_two_places(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2, 3)
    run.start("resume_path", run.checkpoints / "global_step_1")
    run.train(2)
    run.start("disable")  # step 1 is the first run's
    names = {path.name: usable_steps(path) for path in (run.home / "earlier").iterdir()}
    assert names[first] == [2, 3] and sorted(names.values()) == [[1, 2], [2, 3]]


def test_old_folders_go_on_and_get_an_id(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    run.start()
    run.train(1, 2, ids=False)
    (run.home / "unify_run.json").unlink()
    new = run.start()
    assert run.steps == [1, 2] and run.lines() == [(1, "old"), (2, "old")]
    run.train(3, keep=2)
    assert run.steps == [2, 3], "its old checkpoints count"
    assert run.start() == new
    assert read_run(run.home)["parent"] == {"run": None, "step": 2, "checkpoint": str(run.checkpoints / "global_step_2")}


def test_another_folders_checkpoint_begins_a_run(tmp_path: Path) -> None:
    one, other = Folder(tmp_path / "one"), Folder(tmp_path / "other")
    first = one.start()
    one.train(1, 2)
    used = other.start()
    other.train(1, 2, 3)
    new = other.start("resume_path", one.checkpoints / "global_step_2")
    assert new not in (first, used)
    assert other.steps == [] and other.lines() == [], "no line of the run that was there, nor of the one that it comes from"
    assert read_run(other.home)["parent"]["run"] == first
    other.train(3)
    assert other.start() == new and other.steps == [3]
    assert one.steps == [1, 2] and one.start() == first, "it is read, not moved"


def test_a_copy_of_a_folder_is_another_run_and_a_moved_folder_is_the_same(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2)
    shutil.copytree(run.home, tmp_path / "copy")
    copy = Folder(tmp_path / "copy")
    second = copy.start()
    assert second != first and copy.steps == [1, 2] and copy.lines() == [(1, first), (2, first)]
    assert run.start() == first and copy.start() == second
    shutil.move(run.home, tmp_path / "moved")
    moved = Folder(tmp_path / "moved")
    assert moved.start() == first and read_run(moved.home)["folder"] == str(moved.home)


def test_checkpoints_that_another_run_left_behind_are_nobodys_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two run folders that share the folder of checkpoints, one after the other."""
    one, other = Folder(tmp_path / "one", tmp_path / "disk"), Folder(tmp_path / "other", tmp_path / "disk")
    first = one.start()
    one.train(1)
    other.start("disable")
    other.train(2, 3)
    with caplog.at_level(logging.WARNING):
        assert state.newest_of(one.config()) is None
    assert "global_step_3 is not usable (another run wrote it)" in caplog.text
    assert usable_steps(one.home) == []
    with pytest.raises(ValueError, match="is not this run's, another one wrote it"):
        evaluated(one.home, 3)
    assert one.start() != first and one.steps == []
    assert sorted(path.name for path in (tmp_path / "disk" / "earlier").iterdir()) == sorted([first, other.lineage.run])


def test_a_run_folder_that_was_lost_is_known_by_its_checkpoints(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run", tmp_path / "disk")
    first = run.start()
    run.train(1, 2)
    shutil.rmtree(run.home)
    assert run.start() == first and lineage_in(run.home) == run.lineage


def test_nothing_to_go_on_from_begins_a_run_and_loses_no_sound_checkpoint(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    assert run.start() != first, "nothing had been saved"
    run.train(1)
    file = next((run.checkpoints / "global_step_1").rglob("*.safetensors"))
    file.write_bytes(b"x" * file.stat().st_size)
    run.start()  # the same size, another content
    assert run.steps == [] and len(list((run.home / "earlier").rglob("global_step_1"))) == 1


def test_lines_that_a_killed_process_had_not_put_back_go_with_the_run(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2)
    ResumableLogs(run.home)
    (run.home / "metrics.jsonl").write_text("")  # verl's logger starts; then the process is killed
    run.start("disable")
    assert run.lines() == [] and run.lines(run.home / "earlier" / first) == [(1, first), (2, first)]


def test_a_start_that_is_killed_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Folder(tmp_path / "run")
    first = run.start()
    run.train(1, 2, 3)
    real, moved = beginning.os.rename, []

    def rename(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(source)
        real(source, target)

    monkeypatch.setattr(beginning.os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        begin(run.config("disable"))
    monkeypatch.undo()
    assert lineage_in(run.home).run == first, "what remains is still the first run's"
    run.start("disable")
    found = sorted(state.step_of(path) for path in (run.home / "earlier").rglob("global_step_*"))
    assert found == [1, 2, 3] and all(path.name.startswith(first) for path in (run.home / "earlier").iterdir())


def test_what_a_tracker_gave_stays_with_the_run_and_not_with_the_next(tmp_path: Path) -> None:
    run = Folder(tmp_path / "run")
    run.start()
    run.train(1)
    note_tracker(run.home, "mlflow", "theirs")
    run.start()
    assert read_run(run.home)["trackers"] == {"mlflow": "theirs"}
    run.start("disable")
    assert read_run(run.home)["trackers"] == {}
