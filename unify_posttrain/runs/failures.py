"""The last line of a run that failed: what went wrong, what is left, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import state
from unify_posttrain.runs.signals import StopRequest

RESUMES = "auto"  # the value of trainer.resume_mode with which the same command goes on


class RunEndedError(Exception):
    """The run was ended on purpose; the message says why and what to do."""


# Words in an error, or in the remote traceback that it carries -> what that means. The first that fits is told.
_CAUSES = (
    (
        ("CUDA out of memory", "OutOfMemoryError: CUDA"),
        "a GPU ran out of memory; lower actor_rollout_ref.rollout.gpu_memory_utilization, ppo_max_token_len_per_gpu or "
        "ppo_micro_batch_size_per_gpu, or set fsdp_config.param_offload=true",
    ),
    (
        ("ray.exceptions.OutOfMemoryError", "Task was killed due to the node running low on memory"),
        "the machine ran out of memory; lower data.train_batch_size or the number of workers",
    ),
    (
        ("NCCL", "ProcessGroupGloo", "Connection closed by peer", "gloo"),
        "ranks lost each other: one of them died or hangs; the first error above names it",
    ),
    (
        ("ActorDiedError", "ActorUnavailableError", "RayActorError", "The actor died", "WorkerCrashedError"),
        "a process of the run died (a rollout server, a rank or a reward worker): it was killed, ran out of memory or crashed; "
        "the lines above name it",
    ),
)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def cause(error: BaseException) -> str:
    """What happened, in a sentence."""
    errors = list(chain(error))
    ended = next((each for each in errors if isinstance(each, RunEndedError)), None)
    if ended is not None:
        return str(ended)
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in errors):
        return "the disk is full"
    text = "\n".join(f"{type(each).__name__}: {each}" for each in errors)
    for words, meaning in _CAUSES:
        if any(word in text for word in words):
            return meaning
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def explain(error: BaseException, config: DictConfig) -> str:
    """One line: the cause, the checkpoint that is left, and how to go on."""
    return f"{cause(error)}. {what_is_left(config)}."


def what_is_left(config: DictConfig, contents: bool = True) -> str:
    """The last checkpoint of the run and how to go on, without a full stop.

    Args:
        contents: read the checkpoint, to be sure of it; without, this takes no time.
    """
    left = state.newest_of(config, contents)
    if left is None:
        return f"No checkpoint had been written (trainer.save_freq={config.trainer.save_freq})"
    return f"The last complete checkpoint is {left}: {way_on(config)}"


def way_on(config: DictConfig) -> str:
    """Which command goes on from the last checkpoint. The same one does not, if it says where to begin."""
    mode = OmegaConf.select(config, "trainer.resume_mode", default=RESUMES)
    command = "the same command" if mode == RESUMES else f"the same command with trainer.resume_mode={RESUMES}"
    return f"{command} goes on from there"


def stop_request(config: DictConfig) -> StopRequest:
    """What listens to the signals of a run, able to say what is left of it."""
    return StopRequest(lambda: f"{what_is_left(config, contents=False)}.", lambda: way_on(config))
