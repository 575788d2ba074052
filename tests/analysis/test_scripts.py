"""exp_scripts/: they are valid bash, hand on what they are given, and their overrides compose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unify_posttrain.config import compose_config

SCRIPTS = Path(__file__).resolve().parents[2] / "exp_scripts"
EXPERIMENTS = sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem not in ("common", "cpu_study"))
FILES = {"TRAIN_FILES": "/data/train.parquet", "VAL_FILES": "/data/val.parquet", "REWARD_FILE": "/data/reward.py"}


def run(name: str, tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a script with an interpreter that prints its arguments, from another folder."""
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    path = {"PATH": os.environ["PATH"], "PYTHON": str(echo)}
    command = [str(SCRIPTS / f"{name}.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path | environment)


def test_every_algorithm_has_its_experiment() -> None:
    from unify_posttrain.algorithms import ALGORITHMS

    assert set(ALGORITHMS) <= set(EXPERIMENTS)


@pytest.mark.parametrize("name", [*EXPERIMENTS, "common", "cpu_study"])
def test_syntax(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(SCRIPTS / f"{name}.sh")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


def composed(done: subprocess.CompletedProcess) -> DictConfig:
    assert done.returncode == 0, done.stderr
    module, *overrides = done.stdout.splitlines()[1:]
    assert module == "unify_posttrain.train"
    return compose_config(overrides)


def own_files(tmp_path: Path) -> dict[str, str]:
    files = {key: str(tmp_path / Path(path).name) for key, path in FILES.items()}
    for path in files.values():
        Path(path).touch()
    return files


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_compose_and_pass_the_checks(name: str, tmp_path: Path) -> None:
    """With the task of the script: data where `prepare` writes it, and its reward. A dry run passes the checks without a GPU."""
    from unify_posttrain.trainer.checks import check_config

    files = own_files(tmp_path) if name == "uft" else {}  # the published countdown data is no task of this package
    done = run(name, tmp_path, "trainer.experiment_name=mine", "data.val_batch_size=7", "+dry_run=true", **files)
    config = composed(done)
    assert config.fusion.algorithm == name
    assert config.trainer.n_gpus_per_node == 8 and config.actor_rollout_ref.rollout.name == "vllm"
    assert config.trainer.experiment_name == "mine" and config.data.val_batch_size == 7
    for key in ("train_files", "val_files"):
        written = tmp_path / f"{key}.parquet"
        written.touch()
        assert name == "uft" or Path(config.data[key]).parent.name in ("openr1_math", "dapo_math")
        config.data[key] = str(written)
    check_config(config)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_take_files_of_your_own(name: str, tmp_path: Path) -> None:
    from unify_posttrain.trainer.checks import check_config

    files = own_files(tmp_path)
    config = composed(run(name, tmp_path, "+dry_run=true", **files))
    assert (config.data.train_files, config.data.val_files) == (files["TRAIN_FILES"], files["VAL_FILES"])
    assert config.reward.custom_reward_function.path == files["REWARD_FILE"]
    check_config(config)


@pytest.mark.parametrize("missing", sorted(FILES))
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    done = run("hpt", tmp_path, TASK="custom", **{key: value for key, value in FILES.items() if key != missing})
    assert done.returncode != 0
    assert f"{missing}: set {missing}" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("name", "version"), [("hpt", 6), ("luffy", 3), ("relift", 3)])
def test_published_reward_versions(name: str, version: int, tmp_path: Path) -> None:
    config = composed(run(name, tmp_path))
    assert config.data.reward_impl_version == config.reward.custom_reward_function.reward_kwargs.version == version


def test_another_model_and_hardware(tmp_path: Path) -> None:
    done = run("hpt", tmp_path, MODEL="llama3_1_8b", HARDWARE="gpu_1", **FILES)
    assert {"model=llama3_1_8b", "hardware=gpu_1"} <= set(done.stdout.splitlines())


def test_cpu_study_hands_its_arguments_on(tmp_path: Path) -> None:
    done = run("cpu_study", tmp_path, "algorithms=[hpt,grpo]", "seeds=[0]")
    assert done.stdout.splitlines() == ["-m", "unify_posttrain.study", "algorithms=[hpt,grpo]", "seeds=[0]"]
