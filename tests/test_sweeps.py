"""Sweeps: every job its own name and folder, the same ones when the sweep is started again."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import unify_posttrain
from tests import forks
from unify_posttrain.sweeps import check_sweep, current_job, job_label, sweep_job


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=4, unique=True))
def test_labels_are_file_names_whatever_the_values(values: list[str]) -> None:
    labels = [job_label([f"a.key={value}", "algorithm=hpt"]) for value in values]
    assert len(set(labels)) == len(values)
    for label in labels:
        assert re.fullmatch(r"[\w.+-]{1,100}", label) and label not in (".", "..")


def test_the_order_of_overrides_does_not_matter_and_how_it_is_run_neither() -> None:
    overrides = ["algorithm=hpt", "actor.optim.lr=1e-5", "+dry_run=true", "trainer.resume_mode=auto"]
    assert len({job_label(each) for each in permutations(overrides)}) == 1
    assert job_label(overrides) == job_label(overrides[:2])
    assert job_label(overrides).startswith("algorithm_hpt-lr_1e-5-")
    assert job_label(overrides[:2]) != job_label(["algorithm=hpt", "critic.optim.lr=1e-5"])  # equal but for the digest


def test_long_values_are_cut_but_stay_apart() -> None:
    labels = {job_label([f"a={'x' * 500}{number}"]) for number in range(3)}
    assert len(labels) == 3 and max(map(len, labels)) <= 80 + 1 + 8


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """job("a=1") -> this process runs the job of a sweep with these overrides."""

    def enter(*overrides: str, mode: str = "MULTIRUN") -> None:
        node = OmegaConf.structured({"mode": mode, "overrides": {"task": list(overrides)}})
        monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: True))
        monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: _with_mode(node, mode)))

    return enter


def _with_mode(node: object, mode: str) -> object:
    from types import SimpleNamespace

    from hydra.types import RunMode

    return SimpleNamespace(mode=RunMode[mode], overrides=node.overrides)  # type: ignore[attr-defined]


def test_outside_of_a_sweep_names_are_as_given(job: Callable[..., None]) -> None:
    assert (current_job(), sweep_job("hpt")) == (None, "hpt")
    job("a=1", mode="RUN")
    assert (current_job(), sweep_job("hpt")) == (None, "hpt")


def test_in_a_sweep_the_name_holds_the_job_once(job: Callable[..., None]) -> None:
    job("a=1")
    name = sweep_job("hpt")
    assert name == f"hpt-{job_label(['a=1'])}" == sweep_job(name)


def test_a_folder_that_all_jobs_would_share_is_refused(job: Callable[..., None]) -> None:
    config = OmegaConf.create({"trainer": {"run_dir": "outputs/mine", "default_local_dir": None}})
    check_sweep(config)  # no sweep
    job("a=1")
    with pytest.raises(
        ValueError, match=r"trainer\.run_dir=outputs/mine would be shared by all jobs .*\$\{sweep_job:outputs/mine\}"
    ):
        check_sweep(config)
    config.trainer.run_dir = sweep_job("outputs/mine")
    check_sweep(config)
    config.trainer.default_local_dir = "elsewhere"
    with pytest.raises(ValueError, match=r"trainer\.default_local_dir=elsewhere"):
        check_sweep(config)


@pytest.mark.e2e
def test_two_dry_runs_in_a_sweep(tmp_path: Path) -> None:
    """The real command. Nothing is prepared in the folder: a dry run plans without data and base model."""
    environment = {**os.environ, "UNIFY_HOME": str(tmp_path), "PYTHONPATH": str(Path(unify_posttrain.__file__).parents[1])}
    command = [sys.executable, "-m", "unify_posttrain.train", "-m", "algorithm=hpt,grpo", "+dry_run=true", "fusion.seed=3"]
    done = forks.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    folders = re.findall(r"^run folder\s+(\S+)", done.stdout, flags=re.MULTILINE)
    labels = [job_label([f"algorithm={name}", "fusion.seed=3"]) for name in ("hpt", "grpo")]
    assert folders == [f"{tmp_path}/runs/hpt-{labels[0]}", f"{tmp_path}/runs/grpo-{labels[1]}"]
    assert {path.name for path in (tmp_path / "sweeps").glob("*/*")} == {"multirun.yaml", f"0-{labels[0]}", f"1-{labels[1]}"}
