"""Schedules of phases, fresh optimizers, and the moments of the second optimizer on disk."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch.distributed.tensor import DTensor
from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

from unify_posttrain.algorithms import Algorithm, Phase
from unify_posttrain.workers.fusion_worker import FusionWorker
from unify_posttrain.workers.optimizers import (
    HeldRate,
    detach_settings,
    keeping_settings,
    load_moments,
    make_schedule,
    optim_of,
    restart,
    save_moments,
)

from .actor_kit import start_group

# What verl's optimizer node holds, with its own defaults.
OPTIM = {"lr": 1e-6, "lr_warmup_steps": -1, "lr_warmup_steps_ratio": 0.0, "lr_scheduler_type": "constant", "min_lr_ratio": 0.0}


def optim(**keys: object) -> SimpleNamespace:
    return SimpleNamespace(**{**OPTIM, "num_cycles": 0.5, "weight_decay": 0.01, "betas": (0.9, 0.999), **keys})


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """Learning rate of each of the first optimizer steps."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


# --- a resume ---------------------------------------------------------------------------------------------------------


def trained(
    settings: SimpleNamespace, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, list[float]]:
    """Adam with a schedule of 20 steps after some of them, and their rates."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=settings.lr, weight_decay=settings.weight_decay, betas=settings.betas)
    phase = SimpleNamespace(algorithm=SimpleNamespace(fusion=SimpleNamespace(lr_schedule=None)))
    schedule = make_schedule(optimizer, phase, settings, total=20)
    parameter.grad = torch.tensor([1.0, -2.0])
    return optimizer, schedule, rates(optimizer, schedule, steps)


def resumed(
    settings: SimpleNamespace, moments: dict, place: dict
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer, schedule, _ = trained(settings, 0)
    with keeping_settings(optimizer, schedule):  # in it, what verl's checkpoint manager does
        optimizer.load_state_dict(moments)
        schedule.load_state_dict(place)
    return optimizer, schedule


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_the_same_settings_go_on_to_the_last_bit(kind: str) -> None:
    settings = optim(lr=3e-4, lr_scheduler_type=kind, lr_warmup_steps=3)
    _, _, whole = trained(settings, 12)
    optimizer, schedule, before = trained(settings, 5)
    optimizer, schedule = resumed(settings, optimizer.state_dict(), schedule.state_dict())
    optimizer.param_groups[0]["params"][0].grad = torch.tensor([1.0, -2.0])
    assert before + rates(optimizer, schedule, 7) == whole


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_a_rate_that_was_changed_is_used_at_the_place_in_the_schedule(kind: str) -> None:
    """What follows is a tenth of what would have followed; the moments are those of the checkpoint."""
    settings = optim(lr=3e-4, lr_scheduler_type=kind, lr_warmup_steps=3)
    _, _, whole = trained(settings, 12)
    optimizer, schedule, _ = trained(settings, 5)
    moments = optimizer.state_dict()
    changed = optim(lr=3e-5, lr_scheduler_type=kind, lr_warmup_steps=3, weight_decay=0.5, betas=(0.8, 0.9))
    optimizer, schedule = resumed(changed, moments, schedule.state_dict())
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], tuple(group["betas"]), group["initial_lr"]) == (0.5, (0.8, 0.9), 3e-5)
    assert schedule.get_last_lr() == [group["lr"]]
    found = optimizer.state[group["params"][0]]
    assert torch.equal(found["exp_avg"], moments["state"][0]["exp_avg"]) and int(found["step"]) == 5
    group["params"][0].grad = torch.tensor([1.0, -2.0])
    assert rates(optimizer, schedule, 7) == pytest.approx([rate / 10 for rate in whole[5:]], rel=1e-12)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_online_sft_schedule(algorithm: Callable[..., Algorithm]) -> None:
    """Specification: base 1e-6, least 1e-8, T = 100, as conf/algorithm/online_sft.yaml has it; whatever was before."""
    built, optimizer = algorithm("algorithm=online_sft"), sgd(lr=0.5)
    found = rates(optimizer, make_schedule(optimizer, Phase(built), optim(lr=1e-6), total=100), steps=121)
    # from 5 % over int(.1*100) = 10 steps; halfway down at (10 + 100)/2
    expected = {0: 5e-8, 1: 1.45e-7, 10: 1e-6, 55: 5.05e-7, 100: 1e-8, 101: 1e-8, 120: 1e-8}
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=1e-6)


def test_a_phase_has_its_own_rate_and_length(algorithm: Callable[..., Algorithm]) -> None:
    """SFT, then GRPO: as conf/algorithm/sft.yaml has it, 5e-5 after a tenth of its steps, without decay; then GRPO's own rate."""
    first, second = algorithm("algorithm=sft_then_rl", "model=qwen2_5_math_7b").phases  # the tiny model brings a rate of its own
    run, optimizer = optim(lr=1e-6), sgd()
    found = rates(optimizer, make_schedule(optimizer, first, optim_of(first, run), total=20), steps=20)
    assert found[:3] == pytest.approx([0.0, 2.5e-5, 5e-5])  # warm-up over int(.1*20) = 2 steps
    assert found[3:] == pytest.approx([5e-5] * 17)
    its_own = optim_of(second, optim(lr=7.0))
    restart(optimizer, its_own)
    assert rates(optimizer, make_schedule(optimizer, second, its_own, total=5), steps=3) == pytest.approx([1e-6] * 3)


def test_a_phase_begins_with_its_own_optimizer_and_the_runs_for_the_rest(algorithm: Callable[..., Algorithm]) -> None:
    phase, _ = algorithm("algorithm=sft_then_rl", "fusion.phases=[{algorithm: sft, steps: 3, lr: 2e-5}, {algorithm: grpo}]").phases
    run = optim(lr=1e-6, num_cycles=0.75, min_lr_ratio=0.3, weight_decay=0.4)
    assert phase.optim["lr"] == 2e-5  # its own key goes before its file's
    found = optim_of(phase, run)
    for name, value in vars(run).items():
        assert getattr(found, name) == phase.optim.get(name, value), name
    whole = optim_of(Phase(phase.algorithm), run)  # of a run that has no phases
    assert vars(whole) == vars(run)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [  # T = 8, lr 1
        ({}, [1.0] * 9),
        ({"lr_warmup_steps_ratio": 0.25}, [0.0, 0.5, *[1.0] * 7]),  # int(.25*8) = 2
        ({"lr_warmup_steps": 4, "lr_warmup_steps_ratio": 0.25}, [0, 0.25, 0.5, 0.75, *[1.0] * 5]),  # steps go before the ratio
        ({"lr_warmup_steps": 0, "lr_warmup_steps_ratio": 0.25}, [1.0] * 9),  # also when there are none
        ({"lr_warmup_steps": None, "lr_warmup_steps_ratio": None}, [1.0] * 9),
        # (1 + cos(pi k/8))/2 for k = 0, 4 and 8
        ({"lr_scheduler_type": "cosine"}, {0: 1.0, 4: 0.5, 8: 0.0}),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1}, {0: 1.0, 4: 0.55, 8: 0.1}),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": None, "lr_warmup_steps": 4}, {0: 0.0, 2: 0.5, 4: 1.0, 6: 0.5, 8: 0.0}),
    ],
)  # fmt: skip
def test_verls_schedules(algorithm: Callable[..., Algorithm], keys: dict, expected: list | dict) -> None:
    optimizer = sgd()
    found = rates(optimizer, make_schedule(optimizer, Phase(algorithm("algorithm=grpo")), optim(lr=1.0, **keys), total=8), steps=9)
    wanted = dict(enumerate(expected)) if isinstance(expected, list) else expected
    assert {step: found[step] for step in wanted} == pytest.approx(wanted, abs=1e-9)


def test_a_schedule_continues_from_its_state(algorithm: Callable[..., Algorithm]) -> None:
    phase = Phase(algorithm("algorithm=online_sft"))
    optimizer = sgd()
    schedule = make_schedule(optimizer, phase, optim(), total=50)
    rates(optimizer, schedule, steps=13)
    resumed = sgd()
    again = make_schedule(resumed, phase, optim(), total=50)
    resumed.load_state_dict(optimizer.state_dict())
    again.load_state_dict(schedule.state_dict())
    assert rates(resumed, again, steps=20) == rates(optimizer, schedule, steps=20)


def test_a_held_rate_stands_still() -> None:
    rate = HeldRate(3e-6)
    rate.step()
    assert rate.get_last_lr() == [3e-6]


# --- a fresh optimizer in place --------------------------------------------------------------------------------------


def adam(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    return module, torch.optim.AdamW(module.parameters(), lr=0.01)


def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[torch.Tensor]:
    """Steps on given batches; the parameters afterwards."""
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
    return [p.full_tensor().detach().clone() if isinstance(p, DTensor) else p.detach().clone() for p in module.parameters()]


def test_a_saved_optimizer_does_not_hold_the_configuration() -> None:
    """verl's own builder gives the optimizer a list that knows its parents; a pickle of it holds them all."""
    config = OmegaConf.create({"optim": {"betas": [0.9, 0.99], "lr": 0.5, "weight_decay": 0.1}, "env": {"MY_PASSWORD": "hunter2"}})
    built = build_optimizer([torch.nn.Parameter(torch.zeros(1))], FSDPOptimizerConfig(**config.optim))

    def saved() -> bytes:
        file = io.BytesIO()
        torch.save(built.state_dict(), file)
        return file.getvalue()

    assert b"hunter2" in saved(), "else there is nothing to mend any more"
    detach_settings(built)
    assert b"hunter2" not in saved() and b"omegaconf" not in saved()
    (group,) = built.param_groups
    assert group["betas"] == (0.9, 0.99) == built.defaults["betas"] and group["lr"] == 0.5


def test_restart_forgets_the_moments_and_keeps_the_object() -> None:
    module, optimizer = adam()
    train(module, optimizer, 3)
    state = optimizer.state
    assert len(state) == 4
    restart(optimizer, optim(lr=0.02, weight_decay=0.3, betas=[0.8, 0.95]))  # betas come as a list from a configuration
    assert optimizer.state is state and not state
    (group,) = optimizer.param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"], group["betas"]) == (0.02, 0.02, 0.3, (0.8, 0.95))
    # it goes on exactly as a new optimizer on the same weights would
    other, _ = adam()
    other.load_state_dict(module.state_dict())
    fresh = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=0.3, betas=(0.8, 0.95))
    for mine, theirs in zip(train(module, optimizer, 2), train(other, fresh, 2), strict=True):
        assert torch.equal(mine, theirs)


# --- moments on disk -------------------------------------------------------------------------------------------------


def sharded(seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The same module under FSDP2 on one process: parameters and moments are DTensors."""
    start_group()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module, _ = adam(seed)
    mesh = init_device_mesh("cpu", (1,))
    for layer in module:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module, torch.optim.AdamW(module.parameters(), lr=0.01)


@pytest.mark.parametrize("make", [adam, sharded])
def test_moments_survive_a_restart(make: Callable, tmp_path: Path) -> None:
    module, optimizer = make()
    train(module, optimizer, 3)
    path = tmp_path / "moments.safetensors"
    save_moments(optimizer, path)
    resumed, again = make(seed=1)
    resumed.load_state_dict(module.state_dict())
    train(resumed, again, 1)  # something to be replaced
    resumed.load_state_dict(module.state_dict())
    load_moments(again, path)
    for mine, theirs in zip(resumed.parameters(), module.parameters(), strict=True):
        assert set(again.state[mine]) == set(optimizer.state[theirs]) == {"step", "exp_avg", "exp_avg_sq"}
        assert isinstance(again.state[mine]["exp_avg"], DTensor) == (make is sharded)
    for mine, theirs in zip(train(resumed, again, 2, first=3), train(module, optimizer, 2, first=3), strict=True):
        assert torch.equal(mine, theirs)


def test_an_optimizer_that_has_not_stepped_has_nothing_to_save(tmp_path: Path) -> None:
    module, optimizer = adam()
    path = tmp_path / "moments.safetensors"
    save_moments(optimizer, path)
    train(module, optimizer, 2)
    load_moments(optimizer, path)
    assert not optimizer.state


@pytest.mark.parametrize("make", [adam, sharded])
def test_moments_of_another_model_are_refused(make: Callable, tmp_path: Path) -> None:
    _, optimizer = make()
    path = tmp_path / "moments.safetensors"
    module = torch.nn.Linear(3, 5)
    wide = torch.optim.AdamW([*module.parameters(), *torch.nn.Linear(4, 2).parameters()], lr=0.01)
    module(torch.ones(1, 3)).sum().backward()
    wide.step()
    save_moments(wide, path)
    with pytest.raises(ValueError, match=r"moments\.safetensors: 0\.exp_avg has shape \(5, 3\), this rank holds \(4, 3\)"):
        load_moments(optimizer, path)
    # one parameter only: the file knows more
    with pytest.raises(ValueError, match=r"holds parameter 1, the model has 1; it was written by another model"):
        load_moments(torch.optim.AdamW([module.weight]), path)


def test_moments_that_are_cut_short_are_named(tmp_path: Path) -> None:
    module, optimizer = adam()
    train(module, optimizer, 1)
    path = tmp_path / "moments.safetensors"
    save_moments(optimizer, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"moments\.safetensors is no complete safetensors file"):
        load_moments(optimizer, path)


# --- whose optimizer steps -------------------------------------------------------------------------------------------


def worker(replay: torch.optim.Optimizer | None) -> SimpleNamespace:
    """The attributes of a FusionWorker that a replayed update exchanges."""
    optimizer = sgd(lr=0.5)
    actor = SimpleNamespace(actor_optimizer=optimizer)
    return SimpleNamespace(actor=actor, actor_optimizer=optimizer, actor_lr_scheduler="schedule", replay_optimizer=replay)


def test_a_separate_optimizer_takes_the_step_and_gives_the_place_back() -> None:
    replay = sgd(lr=1e-6)
    it = worker(replay)
    rl = it.actor_optimizer
    with pytest.raises(RuntimeError, match="in between"), FusionWorker._at_replay_rate(it, 1e-6):
        assert it.actor_optimizer is it.actor.actor_optimizer is replay
        assert it.actor_lr_scheduler.get_last_lr() == [1e-6]
        raise RuntimeError("in between")
    assert it.actor_optimizer is it.actor.actor_optimizer is rl
    assert it.actor_lr_scheduler == "schedule" and rl.param_groups[0]["lr"] == 0.5


def test_a_shared_optimizer_swaps_its_rate_for_one_update() -> None:
    it = worker(None)
    with FusionWorker._at_replay_rate(it, 1e-6):
        assert it.actor_optimizer is it.actor.actor_optimizer
        assert it.actor_optimizer.param_groups[0]["lr"] == 1e-6
        assert it.actor_lr_scheduler.get_last_lr() == [1e-6]
    assert it.actor_optimizer.param_groups[0]["lr"] == 0.5 and it.actor_lr_scheduler == "schedule"
