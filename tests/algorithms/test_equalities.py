"""Algorithms that must coincide: invariant 2 of the specification, float32, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience import BatchPlan
from unify_posttrain.experience.rules import Group
from unify_posttrain.objective import compute_loss


def rollout_batch(seed: int, demonstrations: bool = False) -> dict[str, Tensor]:
    """A float32 batch of 9 rows that all are rollouts, or all demonstrations, with the weights of their plan."""
    generator = torch.Generator().manual_seed(seed)
    shape = (9, 13)
    mask = torch.arange(13) < torch.randint(1, 14, (9, 1), generator=generator)
    return {
        "log_probs": -torch.rand(shape, generator=generator).mul(3).requires_grad_(),
        "old_log_probs": -torch.rand(shape, generator=generator).mul(3),
        "entropys": torch.rand(shape, generator=generator).requires_grad_(),
        "advantages": torch.randn((9, 1), generator=generator).expand(shape) * mask,
        "response_mask": mask.long(),
        "prefix_mask": mask & demonstrations,
        "rl_weight": torch.full((9,), float(not demonstrations)),
        "off_weight": torch.zeros(9),
        "sft_weight": torch.full((9,), float(demonstrations)),
    }


def outcome(built: Algorithm, batch: dict[str, Tensor], plan: BatchPlan) -> list[Tensor]:
    """Loss, and its gradients on log-probabilities and entropies."""
    loss, _ = compute_loss(built.terms, batch, scales=built.scales(plan))
    leaves = (batch["log_probs"], batch["entropys"])
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [loss, *(torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True))]


@pytest.mark.parametrize("scale", ["share", "own"])
@pytest.mark.parametrize("seed", range(3))
def test_gate_minus_one_is_dr_grpo_to_the_last_bit(algorithm: Callable[..., Algorithm], scale: str, seed: int) -> None:
    hpt, reference = (
        algorithm("algorithm=hpt", "trainer.switch_gate=-1", f"fusion.hpt.term_scale={scale}"),
        algorithm("algorithm=dr_grpo"),
    )
    plan = hpt.experience.plan([Group(str(i), i, 8, True, True) for i in range(9)])
    assert plan.zones()["rl"] == 9
    batch = rollout_batch(seed)
    plain = {name: value for name, value in batch.items() if name != "prefix_mask" and not name.endswith("_weight")}
    for mine, theirs in zip(outcome(hpt, batch, plan), outcome(reference, plain, plan), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.abs().sum() > 0


def test_strategy_no_is_dr_grpo_on_the_same_plain_batch(algorithm: Callable[..., Algorithm]) -> None:
    """Without demonstrations the trainer ships no weight streams (DESIGN 3): the terms must not ask for them."""
    hpt, reference = algorithm("algorithm=hpt", "trainer.unify_strategy=no"), algorithm("algorithm=dr_grpo")
    assert not hpt.experience.needs_target
    plan = hpt.experience.plan([Group("a", 0, 8), Group("b", 3, 8)])
    batch = rollout_batch(1)
    plain = {name: value for name, value in batch.items() if name != "prefix_mask" and not name.endswith("_weight")}
    for mine, theirs in zip(outcome(hpt, plain, plan), outcome(reference, plain, plan), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("gate", [8, 7])
def test_gate_of_n_is_supervised_fine_tuning(algorithm: Callable[..., Algorithm], gate: int) -> None:
    """Every prompt that the gate closes for is NLL; s = 8 stays in RL under gate 7."""
    hpt, sft = algorithm("algorithm=hpt", f"trainer.switch_gate={gate}"), algorithm("algorithm=sft")
    plan = hpt.experience.plan([Group(str(i), i, 8, True, True) for i in range(9)])
    assert plan.zones() == {"rl": 8 - gate, "sft": gate + 1, "off": 0, "skipped": 0}
    if gate == 8:
        batch = rollout_batch(4, demonstrations=True)
        for mine, theirs in zip(outcome(hpt, batch, plan), outcome(sft, batch, plan), strict=True):
            assert torch.equal(mine, theirs)
        mask = batch["response_mask"].bool()
        nll = -batch["log_probs"][mask].mean()
        assert outcome(hpt, batch, plan)[0].item() == pytest.approx(nll.item(), rel=1e-6)
