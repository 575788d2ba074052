"""Workers look at what they loaded: weights and moments that are no numbers end a run before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unify_posttrain.workers.finite import check_resumed, check_weights
from unify_posttrain.workers.fusion_critic import FusionCriticWorker
from unify_posttrain.workers.fusion_worker import FusionWorker, PortableWorker

from .actor_kit import make_model, start_group

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model wrapped by FSDP2, with the moments of one step."""
    start_group()
    module = make_model()
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    module(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    return module, optimizer


def spoil(tensor: torch.Tensor, value: float = math.nan) -> None:
    with torch.no_grad():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        local.view(-1)[-1] = value


def test_finite_ones_pass(trained: tuple) -> None:
    check_weights(trained[0], "k")
    check_resumed(*trained, "global_step_1/actor")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_first_weight_that_is_none_is_named(trained: tuple, value: float) -> None:
    module, _ = trained
    parameters = dict(module.named_parameters())
    for name in ("lm_head.weight", NAME):
        spoil(parameters[name], value)
    with pytest.raises(
        ValueError, match=rf"actor_rollout_ref\.model\.path=x: the weights hold NaN or infinite numbers, first in {NAME}"
    ):
        check_weights(module, "actor_rollout_ref.model.path=x")


def test_a_resumed_checkpoint_is_named_with_the_one_before(trained: tuple, tmp_path: Path) -> None:
    module, optimizer = trained
    parameter = dict(module.named_parameters())[NAME]
    for step in (2, 4, 10):
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    spoil(optimizer.state[parameter]["exp_avg_sq"])
    folder = str(tmp_path / "global_step_10" / "actor")
    earlier = r"resume from the one before: trainer\.resume_mode=resume_path trainer\.resume_from_path=.*global_step_4$"
    with pytest.raises(ValueError, match=rf"optim_world_size_1_rank_0\.pt holds NaN .*exp_avg_sq of {NAME}; {earlier}"):
        check_resumed(module, optimizer, folder)
    with pytest.raises(ValueError, match=r"global_step_10/actor/mine\.safetensors holds NaN"):
        check_resumed(module, optimizer, folder, Path(folder) / "mine.safetensors")
    check_resumed(module, None, folder)
    spoil(parameter)
    with pytest.raises(ValueError, match=rf"model_world_size_1_rank_0\.pt holds NaN .*first in {NAME}"):
        check_resumed(module, optimizer, folder)
    with pytest.raises(ValueError, match=r"no earlier checkpoint: start afresh with trainer\.resume_mode=disable"):
        check_resumed(module, optimizer, str(tmp_path / "global_step_2" / "actor"))


@pytest.mark.parametrize("worker", [FusionWorker, FusionCriticWorker])
@pytest.mark.parametrize("what", ["weights", "moments"])
def test_workers_look_when_they_resume(trained: tuple, monkeypatch: pytest.MonkeyPatch, worker: type, what: str) -> None:
    module, optimizer = trained
    parameter = dict(module.named_parameters())[NAME]

    def load(self: object, local_path: str, *_: object, **__: object) -> None:
        spoil(parameter if what == "weights" else optimizer.state[parameter]["exp_avg"])

    base = PortableWorker if worker is FusionWorker else worker.__mro__[1]
    monkeypatch.setattr(base, "load_checkpoint", load, raising=False)
    role = "actor" if worker is FusionWorker else "critic"
    built = object.__new__(worker)
    modules = {"actor_module_fsdp": module, "actor_optimizer": optimizer, "critic_module": module, "critic_optimizer": optimizer}
    built.__dict__ |= {"actor_lr_scheduler": None, "critic_lr_scheduler": None}
    built.__dict__ |= {**modules, "_is_actor": True, "replay_optimizer": None}
    with pytest.raises(ValueError, match=r"global_step_3/.*holds NaN or infinite numbers"):
        built.load_checkpoint(f"global_step_3/{role}")


@pytest.mark.parametrize("role", ["actor", "ref"])
def test_workers_look_when_they_load(role: str, trained: tuple, monkeypatch: pytest.MonkeyPatch, composed: Callable) -> None:
    module, _ = trained
    spoil(dict(module.named_parameters())[NAME])
    monkeypatch.setattr(PortableWorker, "init_model", lambda self: None, raising=False)
    built = object.__new__(FusionWorker)
    config = composed("algorithm=grpo", "actor_rollout_ref.model.path=somewhere").actor_rollout_ref
    flags = {"_is_actor": role == "actor", "_is_ref": role == "ref"}
    built.__dict__ |= {"actor_module_fsdp": module, "ref_module_fsdp": module, "config": config, **flags}
    with pytest.raises(ValueError, match=rf"actor_rollout_ref\.model\.path=somewhere: the weights hold NaN .*{NAME}"):
        built.init_model()
