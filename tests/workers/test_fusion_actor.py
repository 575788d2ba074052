"""The actor's gradient is a function of the batch: not of micro-batches, order, padding, dynamic batching or ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from .actor_kit import gradient_distance, make_actor, make_batch, make_model, start_group

HPT = ("algorithm=hpt", "fusion.clip=ppo", "actor_rollout_ref.actor.use_kl_loss=true")
LUFFY = ("algorithm=luffy", "fusion.agg.rl=token-mean")
ALL_AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum-norm")
TOLERANCE = 1e-6


def update(batch, *overrides):
    actor = make_actor(*overrides)
    metrics = actor.update_policy(batch)
    return actor.gradients, metrics


@pytest.fixture(scope="module")
def whole():
    """Gradient and metrics with a single micro-batch, per algorithm."""
    batch = make_batch(rows=12, demonstrations=5)
    batch.meta_info["mini_batches"] = 2  # so that old log-probabilities are read, not replaced by the current ones
    return {name: update(batch, *flags) for name, flags in (("hpt", HPT), ("luffy", LUFFY))}


def _batch(padding: int = 0):
    batch = make_batch(rows=12, demonstrations=5)
    batch.meta_info["mini_batches"] = 2
    return batch


@pytest.mark.parametrize("flags, name", [(HPT, "hpt"), (LUFFY, "luffy")])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batch_size_changes_nothing(whole, flags, name, micro) -> None:
    gradients, metrics = update(_batch(), *flags, f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}")
    for mine, reference in zip(gradients, whole[name][0], strict=True):
        assert gradient_distance(mine, reference) < TOLERANCE
    for key, value in whole[name][1].items():
        assert metrics[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("tokens", [16, 32, 48])
def test_dynamic_micro_batches_change_nothing(whole, tokens) -> None:
    flags = (
        f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
    )
    gradients, _ = update(_batch(), *HPT, *flags)
    for mine, reference in zip(gradients, whole["hpt"][0], strict=True):
        assert gradient_distance(mine, reference) < TOLERANCE


@pytest.mark.parametrize("mode", ALL_AGGREGATIONS)
def test_order_of_rows_and_padding_rows_change_nothing(mode) -> None:
    flags = ("algorithm=hpt", f"fusion.agg.rl={mode}", f"fusion.agg.sft={mode}", f"fusion.agg.entropy={mode}")
    batch = make_batch(rows=10, demonstrations=4)
    (reference,), _ = update(batch, *flags)
    shuffled = make_batch(rows=10, demonstrations=4).select_idxs(np.random.default_rng(3).permutation(10))
    (permuted,), _ = update(shuffled, *flags, "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3")
    assert gradient_distance(permuted, reference) < TOLERANCE
    # The same ten rows and two copies that are masked out: what the mixer appends to make the batch divisible.
    padded = batch.select_idxs(np.array([*range(10), 0, 1]))
    for name in ("response_mask", "prefix_mask", "rl_weight", "sft_weight"):
        padded.batch[name][10:] = 0
    (with_padding,), _ = update(padded, *flags)
    assert gradient_distance(with_padding, reference) < TOLERANCE


def test_likelihood_gradient_is_that_of_mean_nll() -> None:
    """sft on four demonstrations: the gradient of transformers' own cross entropy over the same tokens."""
    batch = make_batch(rows=4, demonstrations=4)
    batch.meta_info["term_scales"] = {}
    (mine,), metrics = update(batch, "algorithm=sft", "actor_rollout_ref.actor.entropy_coeff=0")
    model = make_model()
    labels = torch.where(batch.batch["attention_mask"].bool(), batch.batch["input_ids"], -100)
    labels[:, :-10] = -100
    logits = model(
        input_ids=batch.batch["input_ids"],
        attention_mask=batch.batch["attention_mask"],
        position_ids=batch.batch["position_ids"],
    ).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    reference = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradient_distance(mine, reference) < 1e-5
    assert metrics["fusion/sft_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["fusion/rl_loss"] == 0.0


def _unweighted(demonstrations: int):
    batch = make_batch(rows=4, demonstrations=demonstrations)
    batch.batch["rl_weight"][demonstrations:] = 1.0
    batch.meta_info["term_scales"] = {}
    return batch


def test_demonstrations_matter_if_and_only_if_they_are_there() -> None:
    (dr_grpo,), _ = update(_unweighted(0), "algorithm=dr_grpo")
    (hpt,), _ = update(_unweighted(0), "algorithm=hpt")
    assert all(torch.equal(hpt[name], dr_grpo[name]) for name in dr_grpo), "empty terms must not touch a bit of the gradient"
    (one,), _ = update(_unweighted(1), "algorithm=hpt")
    silent = _unweighted(1)
    silent.batch["sft_weight"][:] = 0.0
    (none,), _ = update(silent, "algorithm=hpt")
    assert gradient_distance(one, none) > 1e-2


def test_batch_without_members_takes_no_step() -> None:
    actor = make_actor("algorithm=hpt", recording=False)
    before = {name: p.clone() for name, p in actor.actor_module.named_parameters()}
    metrics = actor.update_policy(make_batch(rows=4, demonstrations=0, padding=4))
    assert metrics["fusion/empty_updates"] == 1 and metrics["fusion/optimizer_steps"] == 0
    assert all(torch.equal(before[name], p) for name, p in actor.actor_module.named_parameters())
    full = actor.update_policy(make_batch(rows=4, demonstrations=1))
    assert full["fusion/optimizer_steps"] == 1
    assert sorted(full) == sorted(metrics), "the same keys whatever the batch"


def test_a_step_over_the_norm_limit_is_skipped_and_counted() -> None:
    actor = make_actor("algorithm=hpt", "fusion.max_grad_norm=1e-4", recording=False)
    before = {name: p.clone() for name, p in actor.actor_module.named_parameters()}
    metrics = actor.update_policy(make_batch(rows=4, demonstrations=2))
    assert metrics["actor/grad_norm"] > 1e-4 and metrics["fusion/grad_skipped"] == 1
    assert all(torch.equal(before[name], p) for name, p in actor.actor_module.named_parameters())


def test_non_finite_gradient_is_skipped_and_its_groups_are_named(caplog) -> None:
    actor = make_actor("algorithm=hpt", "fusion.max_grad_norm=80", recording=False)
    with torch.no_grad():
        actor.actor_module.model.embed_tokens.weight[7] = float("nan")
    batch = make_batch(rows=4, demonstrations=1)
    batch.batch["input_ids"][2, -1] = batch.batch["responses"][2, -1] = 7
    batch.batch["input_ids"][2, 6] = 7
    metrics = actor.update_policy(batch)
    assert metrics["fusion/grad_skipped"] == 1
    assert "group-0" in caplog.text


def test_missing_stream_names_it_and_the_algorithm() -> None:
    batch = make_batch(rows=4, demonstrations=1)
    del batch.batch["sft_weight"]
    with pytest.raises(KeyError, match=r"hpt.*sft_weight"):
        make_actor("algorithm=hpt").update_policy(batch)


# Ranks


def _rank(rank: int, world: int, path: str, uneven: bool) -> None:
    """One of two FSDP2 ranks: its half of the rows, its full gradient written to a file."""
    torch.set_num_threads(1)
    start_group(rank, world, path + ".meeting")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = make_model()
    mesh = init_device_mesh("cpu", (world,))
    for layer in module.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    flags = ("actor_rollout_ref.actor.use_dynamic_bsz=true", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16")
    actor = make_actor(*HPT, *(flags if uneven else ()), module=module)
    # Demonstrations stand first: with five of twelve rows rank 1 has none at all.
    batch = _batch()
    halves = batch.select_idxs(np.arange(rank * 6, rank * 6 + 6))
    halves.meta_info = {**batch.meta_info, "mini_batches": 1}
    halves.batch["old_log_probs"] = batch.batch["old_log_probs"][rank * 6 : rank * 6 + 6]
    actor._old_is_current = lambda tensors: tensors["old_log_probs"]
    metrics = actor.update_policy(halves)
    if rank == 0:
        torch.save({"gradient": actor.gradients[0], "metrics": metrics, "steps": len(actor.gradients)}, path)
    else:
        torch.save({"metrics": metrics, "steps": len(actor.gradients)}, path + ".1")


@pytest.mark.e2e
@pytest.mark.parametrize("dynamic", [False, True])
def test_two_ranks_equal_one(tmp_path, dynamic) -> None:
    actor = make_actor(*HPT)
    actor._old_is_current = lambda tensors: tensors["old_log_probs"]
    batch = _batch()
    batch.meta_info["mini_batches"] = 1
    metrics = actor.update_policy(batch)
    path = str(tmp_path / "rank")
    mp.spawn(_rank, args=(2, path, dynamic), nprocs=2)
    first, second = torch.load(path), torch.load(path + ".1")
    reference = {name.replace("_fsdp_wrapped_module.", ""): g for name, g in first["gradient"].items()}
    assert gradient_distance(actor.gradients[0], reference) < TOLERANCE
    assert first["steps"] == second["steps"] == len(actor.gradients)
    assert sorted(first["metrics"]) == sorted(second["metrics"]) == sorted(metrics)
    for key, value in metrics.items():
        assert first["metrics"][key] == second["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
