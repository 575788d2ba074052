"""Our GRPO terms are verl's own loss to the last bit, value and gradient, float32. Importing verl takes ~10 s."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from verl.trainer.ppo import core_algos
from verl.utils.model import compute_position_id_with_mask

from unify_posttrain.experience import Demonstration, demonstration_tensors
from unify_posttrain.objective import (
    KL,
    Aggregation,
    Count,
    Entropy,
    Members,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Term,
    compute_loss,
)

HORIZON = 16
VERL_MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")


@dataclass
class ActorConfig:
    """What compute_policy_loss_vanilla reads of verl's actor configuration."""

    clip_ratio: float = 0.2
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.28
    clip_ratio_c: float = 3.0
    global_batch_info: dict[str, Any] = field(default_factory=lambda: {"loss_scale_factor": HORIZON})

    def get(self, key: str, default: Any = None) -> Any:
        return getattr(self, key, default)


def rollouts(seed: int) -> dict[str, Tensor]:
    """Float32 rows with ratios on both sides of every bound, an empty row and different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    old = -normal(8, 11).abs()
    lengths = torch.tensor([11, 7, 3, 1, 0, 9, 11, 5])
    return {
        "log_probs": (old + 0.8 * normal(8, 11)).requires_grad_(),
        "old_log_probs": old,
        "ref_log_prob": old + 0.5 * normal(8, 11),
        "entropys": normal(8, 11).abs().requires_grad_(),
        "advantages": normal(8, 1).expand(8, 11) * (torch.arange(11) < lengths[:, None]),
        "response_mask": (torch.arange(11) < lengths[:, None]).long(),
    }


def identical(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.item() == theirs.item() != 0.0
    mine, reference = (torch.autograd.grad(loss, leaf)[0] for loss in (ours, theirs))
    assert torch.equal(mine, reference)
    assert mine.abs().sum() > 0


def aggregate(loss: Tensor, mask: Tensor, mode: str) -> Tensor:
    return core_algos.agg_loss(loss, mask, mode, loss_scale_factor=HORIZON)


@pytest.mark.parametrize("mode", VERL_MODES)
@pytest.mark.parametrize("seed", [0, 1, 3])  # ratios beyond both bounds and the dual bound
def test_policy_loss(mode: str, seed: int) -> None:
    batch = rollouts(seed)
    loss = PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.28, dual=3.0))
    term = Term("rl", loss, Members("on"), Aggregation(mode, HORIZON))
    ours, metrics = compute_loss([term], batch)
    theirs, reference = core_algos.compute_policy_loss_vanilla(
        batch["old_log_probs"], batch["log_probs"], batch["advantages"], batch["response_mask"], mode, ActorConfig()
    )
    identical(ours, theirs, batch["log_probs"])
    for own, name in [("rl_clipfrac", "pg_clipfrac"), ("rl_clipfrac_lower", "pg_clipfrac_lower"), ("ppo_kl", "ppo_kl")]:
        assert metrics[own].item() == pytest.approx(reference[f"actor/{name}"], abs=1e-6)
    assert reference["actor/pg_clipfrac"] > 0
    assert reference["actor/pg_clipfrac_lower"] > 0


@pytest.mark.parametrize("mode", VERL_MODES)
def test_a_micro_batch_under_global_counts_is_verls(mode: str) -> None:
    """verl accepts global counts for a part of a mini-batch; the part's loss and gradient are the same."""
    whole = rollouts(5)
    mask = whole["response_mask"]
    part = {name: value[:3].detach() for name, value in whole.items()}
    part["log_probs"].requires_grad_()
    info = {
        "batch_num_tokens": int(mask.sum()),
        "global_batch_size": int(mask.any(dim=-1).sum()),
        "loss_scale_factor": HORIZON,
    }
    loss = PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.28, dual=3.0))
    ours, _ = compute_loss([Term("rl", loss, Members("on"), Aggregation(mode, HORIZON))], part, _counts(info))
    theirs, _ = core_algos.compute_policy_loss_vanilla(
        part["old_log_probs"],
        part["log_probs"],
        part["advantages"],
        part["response_mask"],
        mode,
        ActorConfig(global_batch_info=info),
    )
    identical(ours, theirs, part["log_probs"])


def _counts(info: dict[str, int]) -> dict:
    return {key: Count(info["batch_num_tokens"], info["global_batch_size"]) for key in ("on", "demo")}


@pytest.mark.parametrize("mode", VERL_MODES)
@pytest.mark.parametrize("kind", ["low_var_kl", "kl", "mse"])
def test_kl(mode: str, kind: str) -> None:
    batch = rollouts(7)
    ours, _ = compute_loss([Term("kl", KL(kind), Members("on"), Aggregation(mode, HORIZON))], batch)
    penalty = core_algos.kl_penalty(batch["log_probs"], batch["ref_log_prob"], kind)
    identical(ours, aggregate(penalty, batch["response_mask"], mode), batch["log_probs"])


@pytest.mark.parametrize("mode", VERL_MODES)
def test_entropy(mode: str) -> None:
    batch = rollouts(9)
    ours, _ = compute_loss([Term("entropy", Entropy(), Members("on"), Aggregation(mode, HORIZON))], batch)
    identical(ours, aggregate(batch["entropys"], batch["response_mask"], mode), batch["entropys"])


@pytest.mark.parametrize(
    ("k", "with_std", "demo", "wrong"),
    [  # 1 demonstration and 7 rollouts, k of them correct; unbiased deviation + 1e-6
        (2, False, 0.625, -0.375),  # 1 - 3/8, -3/8
        (2, True, 1.207612, -0.724567),  # / (sqrt(15/56) + 1e-6), 8 scores with 3 ones: variance (3 - 9/8)/7 = 15/56
        (0, False, 0.875, -0.125),
        (0, True, 2.474867, -0.353552),  # variance (1 - 1/8)/7 = 1/8
        (7, False, 0.0, 0.0),
        (7, True, 0.0, 0.0),
    ],
)
def test_verls_estimator_gives_the_mixed_group_of_the_specification(k: int, with_std: bool, demo: float, wrong: float) -> None:
    scores = torch.tensor([1.0] * (1 + k) + [0.0] * (7 - k), dtype=torch.float64).unsqueeze(-1)
    advantages, _ = core_algos.compute_grpo_outcome_advantage(
        scores, torch.ones(8, 1), np.array(["u"] * 8, dtype=object), norm_adv_by_std_in_grpo=with_std
    )
    assert advantages[0, 0].item() == pytest.approx(demo, abs=1e-6)
    assert advantages[-1, 0].item() == pytest.approx(wrong, abs=1e-6)


def test_positions_of_demonstrations_are_verls() -> None:
    demonstrations = [Demonstration(0, 0, (1, 2, 3), (4, 5)), Demonstration(1, 0, (1,), (4, 5, 6, 2))]
    packed = demonstration_tensors(demonstrations, prompt_length=4, response_length=6, pad_id=0)
    assert torch.equal(packed["position_ids"], compute_position_id_with_mask(packed["attention_mask"]))
