"""Ray gives its own node 30 s to come up; a machine that is busy gets another chance, other errors do not."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.trainer import task_runner

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """Stands for `ray.init`: raises the given errors in turn, then returns; remembers what it was given."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.given: list[dict[str, Any]] = []

    def __call__(self, **arguments: Any) -> None:
        self.given.append(arguments)
        if self.errors:
            raise self.errors.pop(0)


def config(**ray_init: Any) -> DictConfig:
    return OmegaConf.create({"ray_kwargs": {"ray_init": ray_init}})


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    found = Starts()
    monkeypatch.setattr(task_runner.ray, "init", found)
    monkeypatch.setattr(task_runner.ray, "shutdown", lambda: None)
    return found


def test_a_slow_start_is_tried_again(starts: Starts, caplog: pytest.LogCaptureFixture) -> None:
    starts.errors = [Exception(TIMED_OUT)] * (task_runner.START_ATTEMPTS - 1)
    task_runner.start_ray(config())
    assert len(starts.given) == task_runner.START_ATTEMPTS
    assert "Ray did not start in time" in caplog.text


def test_not_for_ever(starts: Starts) -> None:
    starts.errors = [Exception(TIMED_OUT)] * 99
    with pytest.raises(Exception, match="timed out during startup"):
        task_runner.start_ray(config())
    assert len(starts.given) == task_runner.START_ATTEMPTS


def test_another_error_is_not_tried_again(starts: Starts) -> None:
    starts.errors = [ValueError("no such address")]
    with pytest.raises(ValueError, match="no such address"):
        task_runner.start_ray(config(address="10.0.0.1:6379"))
    assert len(starts.given) == 1


def test_settings_reach_ray_and_none_of_them_the_output(
    starts: Starts, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    variables = {"WANDB_API_KEY": "hush", "NCCL_DEBUG": "INFO"}
    task_runner.start_ray(config(num_cpus=6, num_gpus=2, runtime_env={"env_vars": variables}))
    (given,) = starts.given
    assert given["num_cpus"] == 6 and given["num_gpus"] == 2
    environment = given["runtime_env"]["env_vars"]
    assert environment["WANDB_API_KEY"] == "hush" and environment["NCCL_DEBUG"] == "INFO", "the user's win over verl's"
    assert environment["TOKENIZERS_PARALLELISM"] == "true", "verl's own are kept"
    assert "hush" not in "".join(capsys.readouterr())
