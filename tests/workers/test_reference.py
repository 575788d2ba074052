"""The reference policy computes its log-probs by chunks, too. verl gives it a worker of its own, which has no actor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf, open_dict
from verl.workers.actor import DataParallelPPOActor
from verl.workers.fsdp_workers import AsyncActorRolloutRefWorker

from unify_posttrain.config import compose_config
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.fusion_worker import FusionWorker

from .actor_kit import BASE, PROMPT, make_batch, make_model, start_group


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """worker(overrides): of the role `ref`, as verl's init_model leaves it, on a model in this process."""
    start_group()

    def build(*overrides: str) -> FusionWorker:
        config = OmegaConf.create(OmegaConf.to_container(compose_config([*BASE, *overrides]).actor_rollout_ref, resolve=True))
        with open_dict(config.ref):
            config.ref.update({"use_remove_padding": False, "use_fused_kernels": False})

        def init_model(self: Any) -> None:
            self.ref_module_fsdp = make_model()
            self.ref_policy = DataParallelPPOActor(config=config.ref, actor_module=self.ref_module_fsdp)

        monkeypatch.setattr(AsyncActorRolloutRefWorker, "init_model", init_model)
        built = object.__new__(FusionWorker)
        built.config, built._is_actor, built._is_ref = config, False, True
        built.init_model()
        return built

    return build


def test_chunks_reach_the_reference(worker: Any) -> None:
    batch = make_batch(rows=6, demonstrations=2)
    batch.meta_info = {"micro_batch_size": 3, "use_dynamic_bsz": False, "temperature": 1.0}
    mine, plain = (
        worker("fusion.logits_chunk=4").ref_policy,
        worker("fusion.trim_padding=false", "fusion.share_prompts=false").ref_policy,
    )
    assert isinstance(mine, ChunkedForward) and mine.logits_chunk == 4
    assert not isinstance(plain, ChunkedForward) and worker().ref_policy.trim_padding and worker().ref_policy.shares
    attended = batch.batch["attention_mask"][:, PROMPT:].bool()
    one, other = (each.compute_log_prob(batch)["log_probs"] for each in (mine, plain))
    torch.testing.assert_close(one[attended], other[attended], rtol=1e-5, atol=1e-6)


def test_a_worker_without_a_reference_makes_none(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = object.__new__(FusionWorker)
    built.config, built._is_actor, built._is_ref = worker("fusion.logits_chunk=4").config, False, False
    monkeypatch.setattr(AsyncActorRolloutRefWorker, "init_model", lambda self: None)
    built.init_model()
    assert not hasattr(built, "ref_policy")
