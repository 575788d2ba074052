"""A miniature world for the end-to-end tests: sums of one to three digits and a base model that solves some of them.

Built once per session (about 10 s); every run is the real command in a process of its own, with Ray on CPU. Most are forked from a
process that has done their imports (tests/forks), some are not, so that the command is tested as users start it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from tests import forks
from tests.devices import NO_GPU
from tests.forks import client

ROOT = Path(__file__).resolve().parents[2]
TIMING = ("timing", "perf/")
SPLITS = {
    "easy": {"digits": [1], "train": 0, "test": 8},
    "hard": {"digits": [2], "train": 24, "test": 16},
    "ood": {"digits": [3], "train": 0, "test": 8},
}
# 24 prompts in batches of 8: an epoch is 3 steps. 8 prompts x 4 rollouts in 2 optimizer steps.
SMALL = (
    "data.train_batch_size=8",
    "data.max_prompt_length=12",
    "data.max_response_length=40",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16",
    "actor_rollout_ref.actor.optim.lr=1e-4",
    "actor_rollout_ref.rollout.n=4",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
)
# In every step the actor computes what the engine has said of its samples.
COMPARED = "trainer.old_log_prob_freq=1"


@dataclass(frozen=True)
class World:
    """Folder with data and base model, and how to run commands against them."""

    home: Path
    python: str = sys.executable  # another one: of another version of verl
    forks: bool = False  # commands share their imports (tests/forks)

    def command(self, name: str, *overrides: str) -> list[str]:
        return [
            self.python, "-m", "unify_posttrain.train", *SMALL, f"trainer.experiment_name={name}", *overrides,
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        settings = {"UNIFY_HOME": str(self.home), "HYDRA_FULL_ERROR": "1", "RAY_DEDUP_LOGS": "0"}
        return {**os.environ, **settings, "CUDA_VISIBLE_DEVICES": NO_GPU}  # benchmarks use this world without tests/conftest.py

    def train(
        self, name: str, *overrides: str, check: bool = True, timeout: int = 600, alone: bool = False
    ) -> subprocess.CompletedProcess:
        """Run to the end; `alone`: in a process that shares nothing with others, as a user starts it."""
        shares = self.forks and not alone and client.known_libraries()
        if shares:  # a run by itself takes three times as long
            assert not client.server().others(self.environment), "a test before this one has left variables behind"
        done = (forks.run if shares else subprocess.run)(
            self.command(name, *overrides), env=self.environment, capture_output=True, text=True, timeout=timeout, cwd=self.home
        )
        if check and done.returncode:
            raise AssertionError(f"{name} exited with {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
        return done

    def start(self, name: str, *overrides: str, alone: bool = False, **variables: str) -> subprocess.Popen:
        """Start a run and return at once; its output goes to `NAME.log`. Its processes form a group of their own."""
        with open(self.log(name), "w") as log:
            return (forks.Popen if self.forks and not alone else subprocess.Popen)(
                self.command(name, *overrides),
                env={**self.environment, **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.home,
                preexec_fn=forks.heed_ctrl_c,
            )

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def wait_for_step(self, process: subprocess.Popen, name: str, step: int, timeout: float = 400) -> None:
        """Wait until the metrics of a step have been written by a run that was started."""
        metrics = self.home / "runs" / name / "metrics.jsonl"
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            if any(line.startswith(f'{{"step":{step},') for line in lines):
                return
            assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.log(name).read_text()[-4000:]}"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"{name}: step {step} not reached\n{self.log(name).read_text()[-4000:]}")

    def metrics(self, name: str) -> dict[int, dict[str, float]]:
        """Step -> metrics of a run, from the file that users read."""
        lines = (self.home / "runs" / name / "metrics.jsonl").read_text().splitlines()
        return {entry["step"]: entry["data"] for entry in map(json.loads, lines)}

    def checkpoints(self, name: str) -> Path:
        return self.home / "runs" / name / "checkpoints"


def resumed(world: World, name: str, step: int, *overrides: str) -> tuple[dict, dict]:
    """The steps after a checkpoint, as run the first time and as repeated from it."""
    folder = world.checkpoints(name) / f"global_step_{step}"
    again = f"{name}-again"
    world.train(again, *overrides, "trainer.resume_mode=resume_path", f"trainer.resume_from_path={folder}")

    def after(run: str) -> dict:
        return {
            number: {key: value for key, value in entry.items() if not key.startswith(TIMING)}
            for number, entry in world.metrics(run).items()
            if number > step
        }

    return after(name), after(again)


def build_world(home: Path) -> World:
    """Write data and base model through the package's own functions."""
    from unify_posttrain.tasks.arithmetic import write_splits
    from unify_posttrain.tasks.tiny_model import build_base_model

    model = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2.yaml").read_text())["prepare"]["model"]
    model |= {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "intermediate_size": 128, "folder": None}
    model["pretraining"] |= {"steps": 500, "batch_size": 32, "digits": {1: 0.5, 2: 0.5}, "careless": {}}
    build_base_model(home / "models" / "tiny_qwen2", model)
    folder = home / "data" / "arithmetic"
    write_splits(folder, {"name": "arithmetic", "folder": str(folder), "seed": 0, "splits": SPLITS})
    return World(home)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return replace(build_world(tmp_path_factory.mktemp("world")), forks=True)
