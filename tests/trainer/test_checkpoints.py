"""Checkpoints without workers: what is written and when, what a resume finds, and validations that are made up for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import Phase
from unify_posttrain.experience.replay import ReplayBuffer, ReplayEntry
from unify_posttrain.runs import state
from unify_posttrain.runs.lineage import Lineage, Segment, write_run
from unify_posttrain.runs.run_logs import ResumableLogs
from unify_posttrain.trainer.checkpoints import CheckpointError, Checkpoints
from unify_posttrain.trainer.phases import PhaseClock
from unify_posttrain.trainer.replayer import Replayer

VALIDATED = {"val-core/sums/acc/mean@1": 0.5}
STEPS = 8
# What a checkpoint remembers of the configuration below, beside what the test names.
LIKEWISE = {
    "actor_rollout_ref.rollout.n": 4, "fusion.algorithm": "hpt", "fusion.seed": 0, "trainer.val_before_train": True,
}  # fmt: skip


class Loader:
    """Counts batches, as the training loader does."""

    def __init__(self) -> None:
        self.batches = 0

    def restore(self, batches: int) -> None:
        self.batches = batches


class Run:
    """One process of a run: a clock of two phases, a replay buffer, scores of demonstrations, a log."""

    def __init__(self, home: Path, **trainer: Any) -> None:
        self.config = config(home, **trainer)
        self.clock = PhaseClock([Phase("a", stall=2), Phase("b")])
        self.replayer = Replayer(ReplayBuffer(9, "newest", True, None, seed=0), None, 2, 2, 0, 1.0)
        self.demonstrator, self.loader = SimpleNamespace(state={"scores": []}), Loader()
        self.told: list[str] = []
        self.logs = ResumableLogs(self.config.trainer.run_dir)
        self.log = SimpleNamespace(fp=io.BytesIO())
        self.it = Checkpoints(self.config, self.clock, self.demonstrator, self.replayer, self.loader, self.logs)

    def folder(self, step: int) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{step}"

    def save(self, step: int, write: Callable[[], None] = lambda: None) -> None:
        def writes() -> None:
            (self.folder(step) / "actor").mkdir(parents=True)
            (self.folder(step) / "actor" / "model.pt").write_text(f"weights of {step}")
            self.told.append(f"kept: {self.config.trainer.max_actor_ckpt_to_keep}")
            write()

        self.it.save(step, writes, lambda: {"critic/score/mean": float(step)})

    def load(self) -> int:
        port = SimpleNamespace(start_phase=lambda index, steps: self.told.append(f"phase {index} of {steps} steps"))

        def read() -> None:
            self.told.append("verl loads")
            assert self.config.trainer.resume_mode == "resume_path"
            self.loaded = Path(self.config.trainer.resume_from_path)

        return self.it.load(port, STEPS, read, self.log)

    @property
    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.fp.getvalue().splitlines()]


def config(home: Path, **trainer: Any) -> DictConfig:
    data = home / "train.parquet"
    home.mkdir(exist_ok=True)
    data.write_text("rows")
    settings = {
        "run_dir": str(home), "default_local_dir": str(home / "checkpoints"), "resume_mode": "auto", "resume_from_path": None,
        "val_only": False, "val_before_train": True, "test_freq": 2, "max_actor_ckpt_to_keep": None,
        "max_critic_ckpt_to_keep": None, "nnodes": 1, "n_gpus_per_node": 1, "backend": "legacy", **trainer,
    }  # fmt: skip
    return OmegaConf.create(
        {
            "trainer": settings,
            "fusion": {"algorithm": "hpt", "seed": 0},
            "data": {"train_files": str(data), "train_batch_size": 8},
            "actor_rollout_ref": {"rollout": {"n": 4}, "model": {"path": "model"}},
        }
    )


def write_log(home: Path, *steps: int) -> None:
    lines = [json.dumps({"step": step, "data": {"critic/score/mean": float(step)}}) for step in steps]
    (home / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_a_run_that_begins_tells_its_workers_the_phase(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.load() == 0
    assert run.told == [f"phase 0 of {STEPS} steps"] and run.config.trainer.val_before_train is True
    one = Run(tmp_path / "one")
    one.clock.phases = one.clock.phases[:1]
    one.load()
    assert one.told == [], "a run of one phase begins as verl began it"


def test_everything_is_found_again(tmp_path: Path) -> None:
    before = Run(tmp_path)
    before.replayer.buffer.add([ReplayEntry(3, (1,), (2,), 4)])
    before.demonstrator.state, before.loader.batches = {"scores": [[3, 0, {"reward": 1.0}]], "reward_keys": []}, 7
    before.clock.state = {"index": 1, "started": 2, "best": 0.5, "waited": 1}
    before.it.note_validation(3, {})  # a step that was not validated
    before.save(3)
    after = Run(tmp_path, val_only=False)
    assert after.load() == 3 and after.it.holds(3) and not after.it.holds(2)
    assert after.told == ["phase 1 of 6 steps", "verl loads"], "a phase begins with fresh moments, so before they are loaded"
    assert after.loaded == after.folder(3)
    assert (after.config.trainer.resume_mode, after.config.trainer.resume_from_path) == ("auto", None), "what the user has said"
    for one, other in ((before.replayer, after.replayer), (before.demonstrator, after.demonstrator), (before.clock, after.clock)):
        assert one.state == other.state
    assert after.loader.batches == 7


def test_old_checkpoints_go_once_the_new_one_is_complete(tmp_path: Path) -> None:
    run = Run(tmp_path, max_actor_ckpt_to_keep=1)
    run.save(1)
    run.save(2, lambda: run.told.append(f"there: {run.folder(1).exists()}"))
    assert run.told == ["kept: None", "kept: None", "there: True"], "verl is told to delete nothing"
    assert not run.folder(1).exists() and state.is_complete(run.folder(2))
    assert run.config.trainer.max_actor_ckpt_to_keep == 1


def test_a_checkpoint_says_whose_it_is_and_with_which_settings(tmp_path: Path) -> None:
    way = Lineage((Segment("a", 1), Segment("b")))
    write_run(tmp_path, {"run": "b", "lineage": way.state})
    run = Run(tmp_path, max_actor_ckpt_to_keep=1)
    stranger = run.folder(9)  # of another run that keeps its checkpoints here
    stranger.mkdir(parents=True)
    state.write_json(stranger / state.STATE, {"format": state.FORMAT, "run": "c"})
    state.mark_complete(stranger)
    run.save(2)
    run.save(3)
    assert [state.step_of(folder) for folder in state.step_folders(tmp_path / "checkpoints")] == [3, 9], "its own 3 is the one kept"
    own = state.read_state(run.folder(3))
    assert own is not None and own["run"] == "b" and Lineage.from_state(own["lineage"]) == way
    assert own["settings"] == {"data.train_batch_size": 8, "trainer.test_freq": 2, **LIKEWISE}
    after = Run(tmp_path)
    assert after.load() == 3


def test_a_resume_says_what_was_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run(tmp_path).save(2)
    with caplog.at_level(logging.WARNING):
        Run(tmp_path, test_freq=4, val_before_train=False).load()
    assert "used from the next step on: trainer.test_freq 2 -> 4" in caplog.text
    assert "without effect on a run that is resumed: trainer.val_before_train True -> False" in caplog.text
    caplog.clear()
    Run(tmp_path).load()
    assert "changed since" not in caplog.text, "what a resume itself has set is no change"


def test_a_checkpoint_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    run = Run(tmp_path, max_actor_ckpt_to_keep=1)
    run.save(1)

    def fails() -> None:
        raise OSError("no space")

    with pytest.raises(CheckpointError, match=r"global_step_2 could not be written; .* GB were free"):
        run.save(2, fails)
    assert state.is_complete(run.folder(1)) and not run.folder(2).exists()
    assert run.it.holds(1) and run.config.trainer.max_actor_ckpt_to_keep == 1


def test_what_is_no_matter_of_the_disk_does_not_speak_of_it(tmp_path: Path) -> None:
    """A value that JSON cannot say in our state: the place and the type are named, and nothing of a disk that has room."""
    run = Run(tmp_path)
    run.demonstrator.state = {"scores": [[3, 0, {"reward": 1.0, "parts": {1, 2}}]]}
    with pytest.raises(CheckpointError) as error:
        run.save(1)
    assert "free" not in str(error.value) and not run.folder(1).exists()
    assert "TypeError: unify_state.json: demonstrations.scores[0][2].parts is set, which JSON cannot say" in str(error.value)


def test_another_runs_checkpoint_is_never_written_to(tmp_path: Path) -> None:
    first = Run(tmp_path / "first")
    first.save(2)
    phase = (first.folder(2) / state.PHASE).read_text()
    second = Run(tmp_path / "second", resume_mode="resume_path", resume_from_path=str(first.folder(2)))
    second.config.data = first.config.data
    assert second.load() == 2 and not second.it.holds(2)
    second.it.note_validation(2, VALIDATED)
    assert (first.folder(2) / state.PHASE).read_text() == phase


# Validation follows the checkpoint of its step.


def test_a_validation_is_noted_in_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(2)
    assert state.awaits_validation(run.folder(2), run.config, STEPS)
    run.it.note_validation(2, VALIDATED)
    assert not state.awaits_validation(run.folder(2), run.config, STEPS) and run.clock.best == 0.5
    assert state.damage(run.folder(2)) is None, "the marker does not cover what is rewritten"


@pytest.mark.parametrize(("logged", "step", "only"), [((1, 2), 2, False), ((1,), 2, False), (range(1, 9), 8, True)])
def test_a_validation_that_was_due_is_made_up_for(tmp_path: Path, logged: tuple[int, ...], step: int, only: bool) -> None:
    """The process before ended after the step's checkpoint; whether or not its line was logged, it comes with the validation."""
    write_log(tmp_path, *logged)
    Run(tmp_path).save(step)
    write_log(tmp_path, *logged)
    run = Run(tmp_path, val_before_train=False)
    run.load()
    assert run.config.trainer.val_before_train is True and run.config.trainer.val_only is only
    assert [entry["step"] for entry in run.logged] == list(range(1, step)), "the line of the step waits"
    metrics = run.it.with_line_held_back(step, dict(VALIDATED))
    assert metrics == {"critic/score/mean": float(step), **VALIDATED}
    assert run.it.with_line_held_back(step, dict(VALIDATED)) == VALIDATED, "once"
    assert run.clock.best == 0.5 and not state.awaits_validation(run.folder(step), run.config, STEPS)


def test_a_step_that_was_validated_is_not_validated_again(tmp_path: Path) -> None:
    write_log(tmp_path, 1, 2, 3)
    first = Run(tmp_path)
    first.save(2)
    first.it.note_validation(2, VALIDATED)
    first.logs.append_gate({"step": 2, "groups": []})
    first.logs.append_gate({"step": 3, "groups": []})
    run = Run(tmp_path)
    run.load()
    assert run.config.trainer.val_before_train is False
    assert [entry["step"] for entry in run.logged] == [1, 2], "step 3 is trained again"
    assert (tmp_path / "gate.jsonl").read_text() == '{"step": 2, "groups": []}\n'
    assert run.it.with_line_held_back(2, dict(VALIDATED)) == VALIDATED
