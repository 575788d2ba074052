"""conf/algorithm/NAME_released.yaml has the balance of the published runs: their arithmetic, beside `compute_loss` of ours.

The released codes go through R ranks and, on each, through M micro-batches. They add up the gradients of the micro-batches, and
FSDP averages the ranks. A policy-gradient loss is a sum over 8192, all else is a token mean of its micro-batch. UFT divides by M
instead of adding up, and CHORD weights its micro-batches by their rows. Here all micro-batches have equally many tokens of each
class.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.algorithms import Algorithm, build_algorithm
from unify_posttrain.config import compose_config
from unify_posttrain.objective import compute_loss

R, M, LENGTH = 8, 4, 8192  # ranks, micro-batches per rank and optimizer step, the published response length
ROWS, WIDTH, TOKENS = 16, 6, 5  # rows of a micro-batch, padded width, tokens of a row: 8 x 4 x 16 = 512 rows, as published
DEMONSTRATIONS = 2  # rows of each micro-batch, the first ones: 1 of 8, as in groups of seven rollouts and a demonstration
Batch = dict[str, Tensor]


def batch(demonstrations: int, hints: bool = False) -> Batch:
    """All rows, micro-batch after micro-batch. With `hints` the first two tokens of every row are given and not trained by RL."""
    generator = torch.Generator().manual_seed(0)
    rows = R * M * ROWS

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    inside = (torch.arange(WIDTH) < TOKENS).expand(rows, WIDTH)
    given = (torch.arange(WIDTH) < 2).expand(rows, WIDTH) if hints else torch.zeros_like(inside)
    demo = (torch.arange(rows) % ROWS < demonstrations).unsqueeze(-1)
    solved = (random(rows) < 0.5).double()
    return {
        "log_probs": (0.05 + 0.9 * random(rows, WIDTH)).log(),
        "old_log_probs": (0.05 + 0.9 * random(rows, WIDTH)).log(),
        "ref_log_prob": (0.05 + 0.45 * random(rows, WIDTH)).log(),  # near enough that no code bounds k3, at 10
        "entropys": 3 * random(rows, WIDTH),
        "advantages": (2 * random(rows, 1) - 1).expand(rows, WIDTH),
        "response_mask": (inside & ~given).long(),
        "prefix_mask": (inside & demo) | given,
        **{f"{term}_weight": torch.full((rows,), float(term != "off"), dtype=torch.float64) for term in ("rl", "off", "sft")},
        "solved": solved,
        "unsolved": 1 - solved,
    }


def composed(name: str, *overrides: str) -> tuple[Algorithm, float]:
    """The algorithm as conf/ composes it with responses of 8192 tokens, and its coefficient of the entropy."""
    actor = compose_config([f"algorithm={name}", "task=openr1_math", *overrides]).actor_rollout_ref.actor
    return build_algorithm(actor), actor.entropy_coeff


def gradients(loss: Callable[[Batch], Tensor], tensors: Batch) -> tuple[Tensor, Tensor]:
    """With respect to log-probabilities and entropies, (B, T) each."""
    leaves = [tensors[name].clone().requires_grad_() for name in ("log_probs", "entropys")]
    value = loss({**tensors, "log_probs": leaves[0], "entropys": leaves[1]})
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if each is None else each for leaf, each in zip(leaves, found, strict=True))  # type: ignore


def ours(algorithm: Algorithm, tensors: Batch, terms: tuple | None = None, **scales: float) -> tuple[Tensor, Tensor]:
    chosen = algorithm.terms if terms is None else terms
    return gradients(lambda rows: compute_loss(chosen, rows, scales=scales)[0], tensors)


def theirs(part: Callable[[Batch], Tensor], tensors: Batch, added: bool = True) -> tuple[Tensor, Tensor]:
    """Σ over micro-batches, mean over ranks; `added=False`: also the mean over micro-batches (gradient accumulation)."""

    def loss(rows: Batch) -> Tensor:
        pieces = [{name: value[i : i + ROWS] for name, value in rows.items()} for i in range(0, R * M * ROWS, ROWS)]
        return torch.stack([part(piece) for piece in pieces]).sum() / R / (1 if added else M)

    return gradients(loss, tensors)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Token mean of a micro-batch; 0 without a token, where the released codes skip the term."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def masks(rows: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Trained, sampled and demonstration tokens."""
    trained = rows["response_mask"].bool()
    return trained, trained & ~rows["prefix_mask"], trained & rows["prefix_mask"]


def policy_gradient(rows: Batch, clip: bool = False) -> Tensor:
    """-Â r, token by token; with `clip` the larger of it and its version within 1 ± 0.2, and no dual clip."""
    ratio, advantage = (rows["log_probs"] - rows["old_log_probs"]).exp(), rows["advantages"]
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)) if clip else -advantage * ratio


# The scripts' own coefficients: entropy 0.001, likelihood 1, SRFT's weights 0.5 and 0.1.


def rollouts_only(rows: Batch, clip: bool = False) -> Tensor:
    trained, _, _ = masks(rows)
    return (policy_gradient(rows, clip) * trained).sum() / LENGTH - 0.001 * mean(rows["entropys"], trained)


def with_likelihood(rows: Batch) -> Tensor:
    """HPT, and RL with an SFT loss."""
    trained, on, demo = masks(rows)
    reinforced = (policy_gradient(rows) * on).sum() / LENGTH
    return reinforced + 1.0 * mean(-rows["log_probs"], demo) - 0.001 * mean(rows["entropys"], trained)


def shaped(rows: Batch) -> Tensor:
    """LUFFY: demonstrations by -Â p/(p + 0.1)."""
    trained, on, _ = masks(rows)
    p = rows["log_probs"].exp()
    losses = torch.where(on, policy_gradient(rows), -rows["advantages"] * p / (p + 0.1))
    return (losses * trained).sum() / LENGTH - 0.001 * mean(rows["entropys"], trained)


def entropy_weighted(rows: Batch) -> Tensor:
    """SRFT, as the HPT paper's code has it: weights from the mean entropy of a row, which carry no gradient."""
    trained, on, demo = masks(rows)
    log_probs = rows["log_probs"]
    h = ((rows["entropys"] * trained).sum(-1, keepdim=True) / trained.sum(-1, keepdim=True)).detach()
    p, signs = log_probs.exp(), torch.where(rows["solved"].bool().unsqueeze(-1), 0.1 * h.exp(), -1.0)
    losses = torch.where(on, -signs * log_probs, -rows["advantages"] * p / (p + 0.1))
    likelihood = mean(-0.5 * (-h).exp() * log_probs, demo)
    return likelihood + (losses * trained).sum() / LENGTH - 0.001 * mean(rows["entropys"], trained)


def after_hints(rows: Batch) -> Tensor:
    """UFT: all means, 0.001 each of entropy, KL (k3) and the hint's likelihood."""
    trained, hint = rows["response_mask"].bool(), rows["prefix_mask"] & ~rows["response_mask"].bool()
    difference = rows["ref_log_prob"] - rows["log_probs"]
    kl = difference.exp() - difference - 1
    extra = mean(kl, trained) - mean(rows["entropys"], trained) + mean(-rows["log_probs"], hint)
    return mean(policy_gradient(rows, clip=True), trained) + 0.001 * extra


RELEASED = {
    "hpt_released": (with_likelihood, DEMONSTRATIONS),
    "luffy_released": (shaped, DEMONSTRATIONS),
    "relift_released": (rollouts_only, 0),
    "srft_released": (entropy_weighted, DEMONSTRATIONS),
    "rl_with_sft_loss_released": (with_likelihood, DEMONSTRATIONS),
    "dr_grpo_released": (lambda rows: rollouts_only(rows, clip=True), 0),
}


@pytest.mark.parametrize("name", RELEASED)
def test_sums_over_the_length_and_means_of_micro_batches(name: str) -> None:
    """Ratio 1.00, element by element, so for every part of the loss.

    Policy gradient: theirs Σ S / 8192 / R, ours Σ S / (8192 K) with K = 8 = R.
    Means: theirs Σ_rm (Σ_t x / n) / R with n tokens per micro-batch = Σ x / (n R), ours c Σ x / (n R M), so c is M times theirs.
    """
    part, demonstrations = RELEASED[name]
    tensors = batch(demonstrations)
    algorithm, _ = composed(name)
    for found, expected in zip(ours(algorithm, tensors), theirs(part, tensors), strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_fine_tuning_of_relift() -> None:
    """8 ranks have 16 demonstrations each, in 4 micro-batches; the loss of each is divided by 128 / 4 = 32 where 4 were right.

    So their gradient is 4/32 = 1/8 of the mean. Ours is the mean: 8 times theirs, and the bound of its norm is 0.7 x 8 = 5.6.
    """
    tensors = batch(ROWS)

    def part(rows: Batch) -> Tensor:
        _, _, demo = masks(rows)
        return (mean(-rows["log_probs"], demo) - 0.001 * mean(rows["entropys"], demo)) / (128 / 4)

    algorithm, _ = composed("relift_released")
    for found, expected in zip(ours(algorithm, tensors, algorithm.replay_terms), theirs(part, tensors), strict=True):
        torch.testing.assert_close(found, 8 * expected, rtol=1e-9, atol=0)
    assert algorithm.replay_step is not None and algorithm.replay_step.grad_clip == pytest.approx(0.7 * 8)


def test_uft_divides_by_the_number_of_micro_batches() -> None:
    """Σ_m (Σ x / n) / M / R = Σ x / (n M R): our global mean, with the script's own coefficients."""
    tensors = batch(0, hints=True)
    algorithm, entropy = composed("uft_released", "data.max_response_length=2048")
    for found, expected in zip(ours(algorithm, tensors), theirs(after_hints, tensors, added=False), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    rule = algorithm.experience
    assert (entropy, rule.max_new_tokens, algorithm.fusion.horizon) == (0.001, 1024, 2048)


def test_chord_weights_micro_batches_by_their_rows() -> None:
    """Trinity: mean x rows of the kind / (rows of the kind per rank), so each is a mean over the whole batch; μ(100) = 0.25."""
    tensors = batch(DEMONSTRATIONS)
    per_rank = M * ROWS

    def part(rows: Batch) -> Tensor:
        _, on, demo = masks(rows)
        ratio, advantage = (rows["log_probs"] - rows["old_log_probs"]).exp(), rows["advantages"]
        clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        reinforced = torch.where(advantage < 0, torch.minimum(clipped, -3 * advantage), clipped)  # dual clip 3
        p = rows["log_probs"].exp().detach()
        share = DEMONSTRATIONS / ROWS
        grpo = mean(reinforced, on) * (ROWS - DEMONSTRATIONS) / (per_rank * (1 - share))
        return 0.75 * grpo + 0.25 * mean(-p * (1 - p) * rows["log_probs"], demo) * DEMONSTRATIONS / (per_rank * share)

    algorithm, entropy = composed("chord_released")
    found, expected = ours(algorithm, tensors, rl=0.75, sft=0.25)[0], theirs(part, tensors)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert entropy == 0 and algorithm.scales(None, step=100) == {"rl": 0.75, "sft": 0.25}  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["relift", "dr_grpo"])
def test_what_the_papers_equation_rescales(name: str) -> None:
    """Default conf: policy gradient 1/64 of the released one, Σ S / (512 x 8192) against Σ S / (8 x 8192); entropy 1/M."""
    tensors = batch(0)
    algorithm, _ = composed(name)
    (ours_p, ours_h), (theirs_p, theirs_h) = ours(algorithm, tensors), theirs(rollouts_only, tensors)
    torch.testing.assert_close(ours_p, theirs_p / 64, rtol=1e-9, atol=0)
    torch.testing.assert_close(ours_h, theirs_h / M, rtol=1e-9, atol=0)


def test_what_luffys_equation_rescales() -> None:
    """The same 1/64 of all rows; the entropy counts sampled tokens alone, 14 of 16 rows, so each of them has 16/14/M."""
    tensors = batch(DEMONSTRATIONS)
    algorithm, _ = composed("luffy")
    (ours_p, ours_h), (theirs_p, theirs_h) = ours(algorithm, tensors), theirs(shaped, tensors)
    torch.testing.assert_close(ours_p, theirs_p / 64, rtol=1e-9, atol=0)
    _, on, _ = masks(tensors)
    torch.testing.assert_close(ours_h, torch.where(on, theirs_h, 0.0) * 16 / 14 / M, rtol=1e-9, atol=0)


def test_what_the_published_batches_are() -> None:
    """96 prompts, a third with 8 rollouts, the rest one demonstration each: 32 x 8 + 64 = 320 rows, a fifth of them expert data."""
    config = compose_config(["algorithm=chord_released", "task=openr1_math", "model=qwen2_5_7b"])
    rule = build_algorithm(config.actor_rollout_ref.actor).experience
    assert rule.expert_probability == pytest.approx(2 / 3)  # type: ignore[attr-defined]
    assert config.data.train_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size == 96
    relift = compose_config(["algorithm=relift_released", "task=openr1_math", "model=qwen2_5_7b"]).trainer
    assert (relift.total_epochs, relift.total_training_steps) == (3, None)
