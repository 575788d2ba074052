"""The last line of a failed run: what happened, what is left, what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unify_posttrain.runs import state
from unify_posttrain.runs.failures import RunEndedError, cause, explain


def raised(outer: Exception, inner: Exception) -> Exception:
    try:
        raise outer from inner
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (raised(RuntimeError("write failed"), OSError(errno.EDQUOT, "quota")), "the disk is full"),
        (
            RuntimeError("ray::FusionWorker.update_actor()\ntorch.OutOfMemoryError: CUDA out of memory."),
            "ppo_max_token_len_per_gpu",
        ),
        (raised(ValueError("x"), RuntimeError("ActorDiedError: The actor died unexpectedly")), "a process of the run died"),
        (ValueError("first line\nlast line"), "ValueError: last line"),
        (raised(ValueError("x"), RunEndedError("reward function f of m.py: NCCL, gloo")), "reward function f of m.py: NCCL, gloo"),
        (KeyError(), "KeyError: no message"),
    ],
)
def test_causes(error: Exception, words: str) -> None:
    assert words in cause(error)


def test_an_error_that_is_its_own_context_is_read_once() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert cause(first) == "ValueError: a"


def test_what_is_left_is_named(tmp_path: Path) -> None:
    config = OmegaConf.create({"trainer": {"default_local_dir": str(tmp_path), "save_freq": 50}})
    assert explain(ValueError("x"), config).endswith("No checkpoint had been written (trainer.save_freq=50).")
    folder = tmp_path / "global_step_4"
    folder.mkdir()
    (folder / "data.pt").write_bytes(b"1")
    state.mark_complete(folder)
    (tmp_path / "global_step_6").mkdir()
    assert explain(ValueError("x"), config).endswith(f"{folder}: the same command goes on from there.")
