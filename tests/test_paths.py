"""Paths as users write them: `~`, slashes at the end, addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unify_posttrain import paths
from unify_posttrain.config import compose_config
from unify_posttrain.paths import expand_home, is_remote, tidy
from unify_posttrain.startup.place_checks import check_places


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("trainer.run_dir=~/runs/a", "trainer.run_dir=/home/me/runs/a"),
        ("+trainer.new=~", "+trainer.new=/home/me"),
        ("trainer.run_dir='~/a b'", "trainer.run_dir='/home/me/a b'"),
        ("data.val_files=[~/a.parquet, '~/b.parquet']", "data.val_files=[/home/me/a.parquet, '/home/me/b.parquet']"),
        ("actor_rollout_ref.model.path=~/a,~/b", "actor_rollout_ref.model.path=/home/me/a,/home/me/b"),  # a sweep
        ("~fusion.shaping", "~fusion.shaping"),  # Hydra's sign for a key that is deleted
        ("trainer.experiment_name=a~/b", "trainer.experiment_name=a~/b"),
        (
            "actor_rollout_ref.model.custom_chat_template='{{ a ~'/'~ b }}'",
            "actor_rollout_ref.model.custom_chat_template='{{ a ~'/'~ b }}'",
        ),
    ],
)
def test_the_home_folder_on_a_command_line(argument: str, expanded: str) -> None:
    assert expand_home([argument]) == [expanded]


def test_the_home_folder_reaches_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose_config(["trainer.run_dir=~/runs/a"]).trainer.default_local_dir == "/home/me/runs/a/checkpoints"
    monkeypatch.setenv("UNIFY_HOME", "~/unify")
    assert compose_config().data.train_files == "/home/me/unify/data/arithmetic/train.parquet"


def test_a_command_takes_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    command = [sys.executable, "-m", "unify_posttrain.train", "--cfg", "job", "trainer.run_dir=~/a"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert f"run_dir: {tmp_path}/a" in done.stdout, done.stderr[-2000:]


def test_models_lose_the_slash_at_their_end_and_lists_are_expanded() -> None:
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": "models/x//"}}, "data": {"val_files": ["~/a", "b/"]}})
    tidy(config)
    assert config.actor_rollout_ref.model.path == "models/x" and list(config.data.val_files) == ["/home/me/a", "b/"]
    config.actor_rollout_ref.model.path = "/"
    tidy(config)
    assert config.actor_rollout_ref.model.path == "/"


def test_addresses_and_paths() -> None:
    assert [is_remote(each) for each in ("s3://b/x", "hdfs://n/x", "gs://b", "HDFS://x")] == [True] * 4
    assert not any(is_remote(each) for each in ("/a//b", "a:b", "pkg://unify_posttrain.tasks", "Qwen/Qwen3", "", None, "file:///a"))


@pytest.mark.parametrize("key", paths.WRITTEN)
def test_what_a_run_writes_must_be_a_folder(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Hydra, which would make a folder `s3:`."""
    with pytest.raises(ValueError, match=rf"{key}=s3://bucket/x is an address"):
        paths.check_written([f"{key}=s3://bucket/x"])
    config = compose_config()
    OmegaConf.update(config, key, "hdfs://n/x")
    with pytest.raises(ValueError, match=rf"{key}=hdfs://n/x is an address"):
        check_places(config)
    monkeypatch.setenv("UNIFY_HOME", "s3://bucket")
    with pytest.raises(ValueError, match="UNIFY_HOME=s3://bucket is an address"):
        paths.check_written([])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("actor_rollout_ref.model.path=s3://b/m", r"model\.path=s3://b/m: verl reads folders and hdfs://, not s3://; download it"),
        ("data.train_files=[a.parquet,gs://b/t.parquet]", r"train_files=gs://b/t\.parquet: .* not gs://"),
        ("data.val_files=hdfs://n/v.parquet", r"val_files=hdfs://n/v\.parquet: verl fetches it by the program `hdfs`"),
        ("trainer.default_hdfs_dir=hdfs://n/c", r"trainer\.default_hdfs_dir=hdfs://n/c: verl cannot resume from there"),
        (
            "trainer.del_local_ckpt_after_load=true",
            r"del_local_ckpt_after_load=true deletes a checkpoint before there is a newer one",
        ),
    ],
)
def test_what_nothing_here_can_read_or_would_lose_is_refused(override: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=words):
        check_places(compose_config([override]))


def test_what_verl_fetches_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from unify_posttrain.runs import state
    from unify_posttrain.startup.inputs import missing_files

    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    files = "data.train_files=hdfs://n/t.parquet", "data.val_files=hdfs://n/v.parquet"
    config = compose_config([*files, "actor_rollout_ref.model.path=hdfs://n/model"])
    check_places(config)
    assert missing_files(config) == []
    assert state.identity(config)["data.train_files"] == ["hdfs://n/t.parquet"], "known by its address"
