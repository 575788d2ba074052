"""A study whose runs are a stub: the machinery is real, a training takes a tenth of a second."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config
from unify_posttrain.study.conduct import Commands, conduct
from unify_posttrain.study.grid import Grid

STUB = (sys.executable, str(Path(__file__).with_name("fake_command.py")))
COMMANDS = Commands(train=(*STUB, "train"), prepare=(*STUB, "prepare"))


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., Grid]:
    """grid(seeds=[0], …) -> conf/study.yaml with two stub tasks, five stub algorithms, and the values given."""

    def build(**values: Any) -> Grid:
        config = compose_config(config_name="study")
        OmegaConf.set_struct(config, False)
        config.define = {
            "tasks": {"sums": ["task=sums"], "unprepared": ["task=unprepared"]},
            "algorithms": {name: [f"label={name}"] for name in ("good", "base", "nan", "broken", "slow")}
            | {"bold": ["label=good", "bold=1"]},
        }
        settings = {
            "folder": str(tmp_path / "study"),
            "tasks": ["sums"],
            "algorithms": ["good", "base"],
            "baseline": "base",
            "common": {"trainer": {"total_training_steps": 2}},
            "learning_rates": [0.01],
            "equal": ["rate", "label"],
            "notes": {"sums": "Sums are easy."},
            "poll_seconds": 0.02,
            "grace_seconds": 1,
        }
        for key, value in (settings | values).items():
            config[key] = value
        return Grid.from_config(config)

    return build


@pytest.fixture
def study() -> Callable[[Grid], int]:
    """Conduct a study with the stub; returns its exit code."""

    def run(grid: Grid) -> int:
        grid.folder.mkdir(parents=True, exist_ok=True)
        return conduct(
            grid, "python -m unify_posttrain.study", COMMANDS, lambda run, keys: {"rate": run.learning_rate, "label": run.algorithm}
        )

    return run


@pytest.fixture
def calls() -> Callable[[Grid], list[str]]:
    """What the stub has been asked to do, in order."""

    def read(grid: Grid) -> list[str]:
        file = grid.folder / "calls.txt"
        return file.read_text().splitlines() if file.exists() else []

    return read
