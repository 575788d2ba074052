"""Ray gives its own node 30 s to come up; a machine that is busy gets another chance, other errors do not."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from unify_posttrain.trainer import task_runner

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """Stands for `run_ppo`: raises the given errors in turn, then returns."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self, *_: object, **__: object) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)


def start(monkeypatch: pytest.MonkeyPatch, *errors: Exception, up: bool = False) -> Starts:
    starts = Starts(*errors)
    monkeypatch.setattr(task_runner, "run_ppo", starts)
    monkeypatch.setattr(task_runner.ray, "is_initialized", lambda: up)
    monkeypatch.setattr(task_runner.ray, "shutdown", lambda: None)
    return starts


def test_a_slow_start_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    starts = start(monkeypatch, *[Exception(TIMED_OUT)] * (task_runner.START_ATTEMPTS - 1))
    task_runner._run_when_ray_is_up(OmegaConf.create())
    assert starts.calls == task_runner.START_ATTEMPTS
    assert "Ray did not start in time" in caplog.text


def test_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = start(monkeypatch, *[Exception(TIMED_OUT)] * 99)
    with pytest.raises(Exception, match="timed out during startup"):
        task_runner._run_when_ray_is_up(OmegaConf.create())
    assert starts.calls == task_runner.START_ATTEMPTS


@pytest.mark.parametrize(("error", "up"), [(ValueError("training failed"), False), (Exception(TIMED_OUT), True)])
def test_what_happens_in_training_is_not_repeated(monkeypatch: pytest.MonkeyPatch, error: Exception, up: bool) -> None:
    starts = start(monkeypatch, error, up=up)
    with pytest.raises(type(error)):
        task_runner._run_when_ray_is_up(OmegaConf.create())
    assert starts.calls == 1
