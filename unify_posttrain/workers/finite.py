"""Weights and optimizer states that are no numbers, found where they are loaded: a pass over what each rank holds, no memory.

NaN spreads to every token of the first forward pass, and from moments to every weight of the first step. Afterwards nobody can say
where it came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from unify_posttrain.untrusted.weights import first_not_finite


def check_weights(module: nn.Module, setting: str) -> None:
    """ValueError, naming the first weight of this rank's shard that holds NaN or an infinity.

    Args:
        module: as wrapped by FSDP.
        setting: where the weights come from, as `key=value`.
    """
    bad = first_not_finite(module.named_parameters())
    if bad is not None:
        raise ValueError(f"{setting}: the weights hold NaN or infinite numbers, first in {_plain(bad)}; use another model folder")


def check_resumed(module: nn.Module, optimizer: Optimizer | None, folder: str, optimizer_file: Path | None = None) -> None:
    """The same for what a checkpoint gave back: weights first, then moments.

    Args:
        module: whose weights were loaded.
        optimizer: whose moments were loaded; None: there is none.
        folder: of the checkpoint that verl read, `global_step_N/actor` or `critic`.
        optimizer_file: that holds the moments; None: verl's file of this rank.

    Raises:
        ValueError: names the file, the first tensor, and an earlier checkpoint.
    """
    rank = f"world_size_{dist.get_world_size()}_rank_{dist.get_rank()}"
    bad, file = first_not_finite(module.named_parameters()), Path(folder) / f"model_{rank}.pt"
    if bad is None and optimizer is not None:
        bad, file = first_not_finite(_states(module, optimizer)), optimizer_file or Path(folder) / f"optim_{rank}.pt"
    if bad is not None:
        raise ValueError(f"{file} holds NaN or infinite numbers, first in {_plain(bad)}; {_earlier(Path(folder))}")


def _states(module: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for state, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    yield f"{state} of {names.get(parameter, 'a parameter')}", value


def _earlier(folder: Path) -> str:
    """The remedy: the checkpoint before this one, where there is one."""
    checkpoint = folder.parent
    steps = {path: int(path.name[12:]) for path in checkpoint.parent.glob("global_step_*") if path.name[12:].isdigit()}
    before = [path for path, step in steps.items() if step < steps.get(checkpoint, 0)]
    if not before:
        return "there is no earlier checkpoint: start afresh with trainer.resume_mode=disable"
    path = max(before, key=lambda each: steps[each])
    return f"resume from the one before: trainer.resume_mode=resume_path trainer.resume_from_path={path}"


def _plain(name: str) -> str:
    """Without what FSDP puts into names."""
    return name.replace("_fsdp_wrapped_module.", "")
