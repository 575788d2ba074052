"""Settings and learning-rate schedules of optimizers, phase by phase, and the second optimizer of replayed fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from verl.utils.torch_functional import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from unify_posttrain.algorithms import Phase
from unify_posttrain.algorithms.schedules import warmup_cosine
from unify_posttrain.phase_files import OPTIM
from unify_posttrain.untrusted.weights import header


def optim_of(phase: Phase, run: Any) -> SimpleNamespace:
    """`actor.optim` of a phase: what its algorithm's file says, the run's for the rest."""
    return SimpleNamespace(**{name: phase.optim.get(name, getattr(run, name)) for name in OPTIM})


def detach_settings(optimizer: Optimizer) -> None:
    """Make the settings of an optimizer plain data, in place.

    verl hands it `betas` as a list of the configuration, which knows the tree that it is part of: `torch.save` would pickle the
    whole configuration, secrets included, into every checkpoint.
    """
    for settings in (optimizer.defaults, *optimizer.param_groups):
        for name, value in settings.items():
            if OmegaConf.is_config(value):
                plain = OmegaConf.to_container(value, resolve=True)
                settings[name] = tuple(plain) if isinstance(plain, list) else plain


def restart(optimizer: Optimizer, optim: Any) -> None:
    """A fresh optimizer in place, so that whoever holds it (actor, checkpoint manager) holds the fresh one."""
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = optim.lr
        group["weight_decay"], group["betas"] = optim.weight_decay, tuple(optim.betas)


def make_schedule(optimizer: Optimizer, phase: Phase, optim: Any, total: int) -> Any:
    """The scheduler of a phase of `total` training steps: `fusion.lr_schedule`, or what `optim` says, as verl builds it."""
    lr = optim.lr
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = lr
    own = phase.algorithm.fusion.lr_schedule
    if own is not None:
        return LambdaLR(
            optimizer,
            partial(warmup_cosine, total=total, start=own.start, warmup_ratio=own.warmup_ratio, floor=own.min_lr / lr),
        )
    return plain_schedule(optimizer, optim, total)


def plain_schedule(optimizer: Optimizer, optim: Any, total: int) -> Any:
    """The scheduler that `optim` says, as verl's FSDP workers build it: a warm-up of 0 steps is one, whatever its ratio says."""
    given = -1 if optim.lr_warmup_steps is None else optim.lr_warmup_steps
    warm = given if given >= 0 else int((optim.lr_warmup_steps_ratio or 0.0) * total)
    if optim.lr_scheduler_type == "cosine":
        return get_cosine_schedule_with_warmup(
            optimizer=optimizer,
            num_warmup_steps=warm,
            num_training_steps=total,
            min_lr_ratio=optim.min_lr_ratio or 0.0,
            num_cycles=optim.num_cycles,
        )
    return get_constant_schedule_with_warmup(optimizer=optimizer, num_warmup_steps=warm)


@contextmanager
def keeping_settings(optimizer: Optimizer, schedule: Any) -> Iterator[None]:
    """Around the loading of a checkpoint, which brings moments and the place in the schedule: rate, decay and betas stay those that
    the run was started with. torch's `load_state_dict` would bring back the old ones, and a changed setting would do nothing."""
    kept = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in optimizer.param_groups]
    rates = list(getattr(schedule, "base_lrs", ()))
    yield
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        group.update(own)
    if rates and rates != schedule.base_lrs:
        schedule.base_lrs = rates
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        schedule._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        for group, rate in zip(optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate


class HeldRate:
    """Stands in for a scheduler during an update that is not a step of the schedule."""

    def __init__(self, lr: float) -> None:
        self.lr = lr

    def get_last_lr(self) -> list[float]:
        return [self.lr]

    def step(self) -> None:
        return None


def _local(value: torch.Tensor) -> torch.Tensor:
    return (value.to_local() if isinstance(value, DTensor) else value).detach().cpu().contiguous()


def save_moments(optimizer: Optimizer, path: Path) -> None:
    """This rank's optimizer state as safetensors: `number of the parameter`.`name of the state`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tensors = {}
    for number, parameter in enumerate(parameters):
        for name, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{number}.{name}"] = _local(value if isinstance(value, torch.Tensor) else torch.tensor(value))
    save_file(tensors, path)


def load_moments(optimizer: Optimizer, path: Path) -> None:
    """Inverse of `save_moments`, into an optimizer of the same parameters.

    Raises:
        ValueError: the file is damaged, or of another model or another number of ranks.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.state.clear()
    header(path)  # a file that is cut short is named
    for key, value in load_file(path).items():
        number, name = key.split(".", 1)
        if int(number) >= len(parameters):
            raise ValueError(f"{path}: holds parameter {number}, the model has {len(parameters)}; it was written by another model")
        parameter = parameters[int(number)]
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if value.ndim == 0 and name == "step":
            optimizer.state[parameter][name] = value
            continue
        if value.shape != local.shape:
            raise ValueError(f"{path}: {key} has shape {tuple(value.shape)}, this rank holds {tuple(local.shape)}")
        value = value.to(local.device)
        if isinstance(parameter, DTensor):
            value = DTensor.from_local(
                value, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
            )
        optimizer.state[parameter][name] = value
