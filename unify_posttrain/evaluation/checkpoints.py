"""What a run left behind: its settings, and which of its checkpoints can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import state
from unify_posttrain.runs.lineage import lineage_in
from unify_posttrain.untrusted.documents import read_object
from unify_posttrain.untrusted.folders import leads_out

CONFIG = "config.yaml"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
HF = "actor/huggingface"


def load_run_config(run: Path) -> DictConfig:
    """The settings that a run was started with.

    Raises:
        ValueError: no folder of a run.
    """
    path = run / CONFIG
    if not path.is_file():
        raise ValueError(
            f"run={run} holds no {CONFIG}: not the folder of a run; give trainer.run_dir of one, e.g. outputs/runs/hpt"
        )
    return OmegaConf.load(path)  # type: ignore[return-value]


def checkpoints_folder(run: Path) -> Path:
    """Where a run's checkpoints are: in its folder, or where its settings put them (trainer.default_local_dir)."""
    own = run / "checkpoints"
    if own.is_dir():
        return own
    elsewhere = OmegaConf.select(load_run_config(run), "trainer.default_local_dir")
    return own if elsewhere is None else Path(elsewhere)


def usable_steps(run: Path) -> list[int]:
    """Steps of the run's complete checkpoints, ascending; those that another run has left in the folder do not count."""
    lineage = lineage_in(run)
    own = [path for path in state.step_folders(checkpoints_folder(run)) if lineage is None or lineage.holds_folder(path)]
    return [state.step_of(path) for path in own if flaw(path) is None]


def checkpoint(run: Path, step: int | str) -> Path:
    """The folder of a checkpoint; `latest` is the complete one with the highest step.

    Raises:
        ValueError: there is none, or it is incomplete.
    """
    steps = usable_steps(run)
    known = f"complete ones: {', '.join(map(str, steps))}" if steps else "there is no complete one"
    if step == "latest":
        if not steps:
            raise ValueError(
                f"step=latest: no complete checkpoint in {checkpoints_folder(run)}; train with trainer.save_freq above 0"
            )
        step = steps[-1]
    if isinstance(step, bool) or not isinstance(step, int):
        raise ValueError(f"step={step!r}: give latest or the step of a checkpoint ({known})")
    folder = checkpoints_folder(run) / f"global_step_{step}"
    if not folder.is_dir():
        raise ValueError(f"step={step}: {folder} does not exist; {known}")
    lineage = lineage_in(run)
    if lineage is not None and not lineage.holds_folder(folder):
        raise ValueError(f"step={step}: {folder} is not this run's, another one wrote it; {known}")
    reason = flaw(folder)
    if reason is not None:
        raise ValueError(f"step={step}: {folder} is incomplete ({reason}); choose another step; {known}")
    return folder


def flaw(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if it can.

    One of ours has a marker that names all its files (unify_posttrain.runs.state). One of plain verl has none; it must have the
    shards of all ranks, or weights in actor/huggingface.
    """
    if any(leads_out(name) for name in _marked(folder)):
        return f"its {state.MARKER} names files outside of it"
    ours = (folder / state.STATE).exists() or (folder / state.MARKER).exists()
    if ours and not state.is_complete(folder):
        return "the run was stopped while writing it, or files were removed since"
    if has_hf_weights(folder):
        return None
    if not (folder / HF / "config.json").is_file():
        return f"{HF}/config.json is missing"
    try:
        ranks = int(read_object(folder / "actor" / "fsdp_config.json")["world_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return "neither weights in actor/huggingface nor actor/fsdp_config.json"
    missing = [rank for rank in range(ranks) if not shard(folder, ranks, rank).is_file()]
    return f"{shard(folder, ranks, missing[0]).name} is missing" if missing else None


def _marked(folder: Path) -> list[str]:
    """Names in a checkpoint's list of its own files; none if there is no list that can be read."""
    try:
        return list(read_object(folder / state.MARKER)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return []  # `state.is_complete` says what is wrong with it


def shard(folder: Path, ranks: int, rank: int) -> Path:
    """verl's file of one rank's weights."""
    return folder / "actor" / f"model_world_size_{ranks}_rank_{rank}.pt"


def has_hf_weights(folder: Path) -> bool:
    """Whether the checkpoint holds full weights in transformers' format (actor.checkpoint.save_contents with hf_model)."""
    return (folder / HF / "config.json").is_file() and any(any((folder / HF).glob(pattern)) for pattern in WEIGHTS)


def chosen_steps(run: Path, steps: Any) -> list[int]:
    """Steps of the key `steps`: all, latest, one step or a list; 0 is the model that the run began with.

    Raises:
        ValueError: something else, no checkpoint, or one that cannot be used.
    """
    if steps == "all":
        found = usable_steps(run)
        if not found:
            raise ValueError(
                f"steps=all: no complete checkpoint in {checkpoints_folder(run)}; train with trainer.save_freq above 0"
            )
        return found
    wanted = list(steps) if isinstance(steps, list | tuple) else [steps]
    if not wanted:
        raise ValueError("steps=[]: give all, latest or the steps of checkpoints")
    return sorted({0 if step == 0 else state.step_of(checkpoint(run, step)) for step in wanted})
