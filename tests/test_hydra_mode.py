"""A command's configuration is composed once; runs and sweeps are what Hydra makes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.hydra_mode import composed_once

Outcome = tuple[list[tuple[int, str, list[str]]], int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    (tmp_path / "conf.yaml").write_text("a: 1\nhydra: {output_subdir: null}\n")
    composing = Hydra.compose_config
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, once: bool = True) -> Outcome:
        """Jobs of a command: (a, mode, overrides of Hydra's); and how often something was composed before the first of them."""
        jobs: list[tuple[int, str, list[str]]] = []
        composed, before = [], []

        def counted(self: Hydra, *given: Any, **more: Any) -> DictConfig:
            composed.append(given)
            return composing(self, *given, **more)

        @hydra.main(config_path=str(tmp_path), config_name="conf", version_base=None)
        def main(config: DictConfig) -> None:
            before.append(len(composed))
            own = HydraConfig.get()
            jobs.append((config.a, own.mode.name, OmegaConf.to_container(own.overrides.hydra)))

        monkeypatch.setattr(sys, "argv", ["command", *arguments])
        monkeypatch.setattr(Hydra, "compose_config", counted)
        with composed_once(arguments) if once else nullcontext():
            main()
        return jobs, before[0]

    return run


@pytest.mark.parametrize("arguments", [(), ("a=2",), ("-m", "a=2,3"), ("--multirun", "a=2,3"), ("a=2", "hydra.mode=RUN")])
def test_jobs_are_those_of_hydra(run: Callable[..., Outcome], arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == run(*arguments, once=False)[0]


def test_a_run_is_composed_once(run: Callable[..., Outcome]) -> None:
    assert run("a=2") == ([(2, "RUN", ["hydra.mode=RUN"])], 1)
    assert run("a=2", once=False)[1] == 2


def test_a_mode_that_is_set_is_looked_up(run: Callable[..., Outcome]) -> None:
    jobs, composed = run("hydra.mode=MULTIRUN", "a=4,5")
    assert [(a, mode) for a, mode, _ in jobs] == [(4, "MULTIRUN"), (5, "MULTIRUN")] and composed > 1


def test_hydra_is_as_before_afterwards() -> None:
    before = Hydra.get_mode
    with pytest.raises(ZeroDivisionError), composed_once(["a=1"]):
        assert Hydra.get_mode is not before
        raise ZeroDivisionError
    assert Hydra.get_mode is before
