"""A resumed run goes on in its trackers: through verl's own Tracking, with W&B's real files and a stand-in of MLflow."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unify_posttrain.runs.beginning import note_tracker
from unify_posttrain.runs.lineage import Lineage, read_run, write_run
from unify_posttrain.runs.trackers import tracker_runs

VARIABLES = ("WANDB_RUN_ID", "WANDB_RESUME", "SWANLAB_RUN_ID", "SWANLAB_RESUME", "MLFLOW_RUN_ID")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def recorded(run_dir: Path) -> str:
    lineage = Lineage.beginning()
    run_dir.mkdir(exist_ok=True)
    write_run(run_dir, {"run": lineage.run, "lineage": lineage.state, "trackers": {}})
    assert lineage.run is not None
    return lineage.run


def test_trackers_that_take_an_id_get_the_runs(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    with tracker_runs(tmp_path, run):
        assert {name: os.environ.get(name) for name in VARIABLES} == {
            "WANDB_RUN_ID": run, "WANDB_RESUME": "allow", "SWANLAB_RUN_ID": run, "SWANLAB_RESUME": "allow", "MLFLOW_RUN_ID": None,
        }  # fmt: skip
    assert not set(VARIABLES) & set(os.environ), "a sweep goes on in this process"


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    monkeypatch.setenv("SWANLAB_RESUME", "must")
    with tracker_runs(tmp_path, recorded(tmp_path)):
        assert os.environ["WANDB_RUN_ID"] == "mine" and "WANDB_RESUME" not in os.environ
        assert os.environ["SWANLAB_RESUME"] == "must"
    assert os.environ["WANDB_RUN_ID"] == "mine"


def test_without_a_record_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with tracker_runs(tmp_path, None):
        assert not set(VARIABLES) & set(os.environ)


def config(run_dir: Path, **more: Any) -> dict[str, Any]:
    return {"trainer": {"run_dir": str(run_dir), **more}}


@pytest.mark.slow
def test_wandb_goes_on_with_one_run_over_two_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unify_posttrain.trainer.launch import RunTracking

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = recorded(tmp_path)
    started = []
    for step in (1, 2):
        with tracker_runs(tmp_path, run):
            started.append(RunTracking("p", "e", ["wandb"], config(tmp_path)))
            started[-1].log({"loss": 1.0 / step}, step)
            ids = [started[-1].logger["wandb"].run.id]
        assert ids == [run]
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files and {path.name for path in files} == {f"run-{run}.wandb"}
    with tracker_runs(tmp_path, recorded(tmp_path)):
        started.append(RunTracking("p", "e", ["wandb"], config(tmp_path)))
        ids = [started[-1].logger["wandb"].run.id]
    assert ids != [run], "a new run in the folder is another one, and so is the next job of a sweep"
    started.clear()  # verl ends W&B's run once more when it lets go of a logger


class StandIn(ModuleType):
    """MLflow as far as verl calls it: gives ids, takes them back, and refuses parameters that change."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.runs: dict[str, dict[str, Any]] = {}
        self.started: list[str] = []

    def set_tracking_uri(self, uri: str) -> None:
        self.uri = uri

    def set_experiment(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id=name)

    def start_run(self, run_id: str | None = None, **_: Any) -> None:
        assert run_id is None or run_id in self.runs, "verl attaches to runs that exist"
        self.started.append(run_id or f"run-{len(self.runs)}")
        self.runs.setdefault(self.started[-1], {})

    def active_run(self) -> SimpleNamespace:
        return SimpleNamespace(info=SimpleNamespace(run_id=self.started[-1]))

    def log_params(self, params: dict[str, Any]) -> None:
        known = self.runs[self.started[-1]]
        changed = {name for name in params if name in known and known[name] != params[name]}
        if changed:
            raise ValueError(f"Changing param values is not allowed: {changed}")
        known.update(params)


def test_mlflow_goes_on_with_the_run_that_it_gave_even_if_settings_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unify_posttrain.trainer.launch import RunTracking

    mlflow = StandIn()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    run = recorded(tmp_path)
    for steps in (4, 8):
        with tracker_runs(tmp_path, run):
            tracking = RunTracking("p", "e", ["console", "mlflow"], config(tmp_path, total_training_steps=steps))
            assert set(tracking.logger) == {"console", "mlflow"}
    assert mlflow.started == ["run-0", "run-0"]
    assert read_run(tmp_path)["trackers"] == {"mlflow": "run-0"}
    assert mlflow.runs["run-0"]["trainer/total_training_steps"] == 4, "those of the first start"


def test_an_id_is_noted_only_where_there_is_a_run(tmp_path: Path) -> None:
    note_tracker(tmp_path, "mlflow", "x")
    assert read_run(tmp_path) is None
