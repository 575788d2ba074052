"""Loggers: a missing package or key is said before Ray starts, and all write into the folder of the run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import loggers
from unify_posttrain.runs.loggers import LOGGERS, check_loggers, logger_folders

EMPTY = {"NETRC": "/does/not/exist"}


def config(*names: str, run_dir: str = "run") -> DictConfig:
    return OmegaConf.create({"trainer": {"logger": list(names), "run_dir": run_dir}})


def test_verl_and_we_know_the_same_loggers() -> None:
    source = (Path(loggers.find_spec("verl").submodule_search_locations[0]) / "utils" / "tracking.py").read_text()
    listed = source.split("supported_backend = [")[1].split("]")[0]
    assert {name.strip().strip('"') for name in listed.split(",") if name.strip()} == set(LOGGERS)


def test_what_is_installed_and_needs_no_key_passes() -> None:
    check_loggers(config("console", "file", "tensorboard"), EMPTY)
    check_loggers(OmegaConf.create({"trainer": {"logger": "console"}}), EMPTY)


def test_an_unknown_logger_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"trainer\.logger: 'tensorbord' is unknown; choose among console, file, tensorboard, wandb"
    ):
        check_loggers(config("tensorbord"), EMPTY)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "mlflow" else object())
    with pytest.raises(ValueError, match=r"mlflow is not installed: pip install mlflow, or leave it out: trainer\.logger=\[file\]"):
        check_loggers(config("file", "mlflow"), EMPTY)


def test_every_variable_that_a_logger_reads_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="VOLC_SECRET_ACCESS_KEY and MLP_TRACKING_REGION is not in the environment"):
        check_loggers(config("vemlp_wandb"), {"VOLC_ACCESS_KEY_ID": "x"})


def test_wandb_needs_a_key_unless_it_stays_offline(tmp_path: Path) -> None:
    asked = config("console", "wandb")
    with pytest.raises(
        ValueError, match=r"WANDB_API_KEY is not in the environment; .*WANDB_MODE=offline.*trainer\.logger=\[console\]"
    ):
        check_loggers(asked, EMPTY)
    check_loggers(asked, {**EMPTY, "WANDB_API_KEY": "x"})
    check_loggers(asked, {**EMPTY, "WANDB_MODE": "offline"})
    file = tmp_path / "netrc"
    file.write_text("machine api.wandb.ai login user password x\n")
    check_loggers(asked, {"NETRC": str(file)})  # after `wandb login`
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        check_loggers(
            asked, {"NETRC": str(file), "WANDB_BASE_URL": "https://wandb.example.org"}
        )  # another server, not logged in to
    file.write_text("machine")
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        check_loggers(asked, {"NETRC": str(file)})


def test_all_write_into_the_run_and_the_next_run_into_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VERL_FILE_LOGGER_PATH", "WANDB_DIR", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TENSORBOARD_DIR", "elsewhere")
    for run in (tmp_path / "a", tmp_path / "b"):  # a sweep runs them one after the other in one process
        with logger_folders(config(run_dir=str(run))):
            assert os.environ["VERL_FILE_LOGGER_PATH"] == f"{run}/metrics.jsonl"
            assert os.environ["WANDB_DIR"] == str(run)
            assert os.environ["TENSORBOARD_DIR"] == "elsewhere"  # what the user says wins
            assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{run}/mlflow.db"
        assert "VERL_FILE_LOGGER_PATH" not in os.environ and os.environ["TENSORBOARD_DIR"] == "elsewhere"
