"""The actor's gradient is a function of the batch: not of micro-batches, order, padding, dynamic batching or ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from verl import DataProto

from tests.ranks import run_ranks
from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.objective import MiniBatchUpdate

from .actor_kit import RESPONSE, gradient_distance, make_actor, make_batch, make_model, start_group

HPT = ("algorithm=hpt", "fusion.clip=ppo", "actor_rollout_ref.actor.use_kl_loss=true")
LUFFY = ("algorithm=luffy", "fusion.agg.rl=token-mean")
ALL_AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "sum-norm")
WEIGHTS = ("rl_weight", "off_weight", "sft_weight")
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
    for name in ("response_mask", "prefix_mask", *WEIGHTS):
        padded.batch[name][10:] = 0
    (with_padding,), _ = update(padded, *flags)
    assert gradient_distance(with_padding, reference) < TOLERANCE


ONE_PASS = "actor_rollout_ref.actor.ppo_epochs=1"  # what these tests are about; a second pass reads old log-probs


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_no_algorithm_depends_on_micro_batches_order_or_padding(name) -> None:
    """Two mini-batches of seven rows, each with rollouts, hints and demonstrations."""
    actor = make_actor(f"algorithm={name}", ONE_PASS)

    def gradients(rows: list[int], micro: int, silent: tuple[int, ...] = ()):
        batch = make_batch(rows=14, demonstrations=5, hints=4).select_idxs(np.array(rows))
        for stream in ("response_mask", "prefix_mask", *WEIGHTS):
            batch.batch[stream][list(silent)] = 0
        batch.meta_info["mini_batches"] = 2
        actor.gradients, actor.config.ppo_micro_batch_size_per_gpu = [], micro
        return actor, actor.update_policy(batch), actor.gradients

    first, second = [0, 1, 6, 10, 7, 11, 2], [3, 8, 4, 9, 12, 5, 13]
    _, metrics, reference = gradients([*first, *second], micro=7)
    assert len(reference) == 2 and all(sum(g.abs().sum() for g in step.values()) > 0 for step in reference)
    reordered = [*first[::-1], 6, *second[3:], *second[:3], 0]  # with a masked copy of a row at the end of each
    for rows, micro, silent in (([*first, *second], 1, ()), ([*first, *second], 3, ()), (reordered, 3, (7, 15))):
        _, found, mine = gradients(rows, micro, silent)
        for a, b in zip(mine, reference, strict=True):
            assert gradient_distance(a, b) < TOLERANCE
        for key, value in metrics.items():
            assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_old_log_probs_that_a_single_step_overwrites_are_read_by_nobody(name: str) -> None:
    """What `trainer.old_log_prob_freq` stands on: with one optimizer step per batch nothing, to the last bit, depends on those of
    sampled tokens. With two it does, if the algorithm reads any in its loss."""
    computed, absent = (make_batch(rows=12, demonstrations=4, hints=4, padding=1) for _ in range(2))
    absent.batch["old_log_probs"] = torch.where(absent.batch["prefix_mask"], absent.batch["old_log_probs"], 0.0)
    flags = (f"algorithm={name}", ONE_PASS, *(("actor_rollout_ref.actor.ppo_mini_batch_size=8",) if name == "online_sft" else ()))
    for mini_batches in (1, 2):
        for batch in (computed, absent):
            batch.meta_info["mini_batches"] = mini_batches
        (gradients, metrics), (others, other_metrics) = update(computed, *flags), update(absent, *flags)
        equal = metrics == other_metrics and all(
            torch.equal(mine[key], other[key]) for mine, other in zip(gradients, others, strict=True) for key in mine
        )
        sampled = (term for term in make_actor(*flags).terms if term.members.tokens != "demo")
        reads = any("old_log_probs" in term.loss.streams for term in sampled)
        assert equal if mini_batches == 1 else not (reads and equal)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_first_of_several_steps_may_take_its_own_for_old_ones(name: str) -> None:
    """`fusion.first_step_is_current`: nothing, to the last bit, depends on old log-probs of sampled tokens in the first mini-batch;
    its gradient is the one of old log-probs that were computed; the second mini-batch reads them as ever."""
    flags = (f"algorithm={name}", ONE_PASS, *(("actor_rollout_ref.actor.ppo_mini_batch_size=8",) if name == "online_sft" else ()))

    def batches(first: float, second: float) -> DataProto:
        batch = make_batch(rows=12, demonstrations=4, hints=4, padding=1)
        batch.meta_info["mini_batches"] = 2
        batch.batch["old_log_probs"] = torch.where(batch.batch["prefix_mask"], batch.batch["old_log_probs"], first)
        batch.batch["old_log_probs"][6:] = torch.where(batch.batch["prefix_mask"][6:], batch.batch["old_log_probs"][6:], second)
        return batch

    def equal(one: Any, other: Any) -> bool:
        return all(torch.equal(one[key], other[key]) for key in other)

    on = (*flags, "fusion.first_step_is_current=true")
    reference, other_first, other_second = (update(batches(*old), *on)[0] for old in ((0.0, -3.0), (-5.0, -3.0), (0.0, -4.0)))
    assert all(equal(one, other) for one, other in zip(other_first, reference, strict=True))
    reads = any("old_log_probs" in term.loss.streams for term in make_actor(*flags).terms if term.members.tokens != "demo")
    assert not reads or not equal(other_second[1], reference[1]), "the second step reads what was computed"
    computed = batches(0.0, -3.0)
    now = make_actor(*flags).compute_log_prob(
        DataProto(batch=computed.batch, meta_info={"micro_batch_size": 12, "use_dynamic_bsz": False, "temperature": 1.0})
    )["log_probs"]
    computed.batch["old_log_probs"][:6] = torch.where(computed.batch["prefix_mask"], computed.batch["old_log_probs"], now)[:6]
    off, _ = update(computed, *flags, "fusion.first_step_is_current=false")
    assert gradient_distance(off[0], reference[0]) < 1e-5


def test_a_second_pass_takes_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two epochs every row is met again after steps."""
    asked = []
    made = MiniBatchUpdate.__init__

    def listening(self: Any, *args: Any, old_is_current: bool, **options: Any) -> None:
        asked.append(old_is_current)
        made(self, *args, old_is_current=old_is_current, **options)

    monkeypatch.setattr(MiniBatchUpdate, "__init__", listening)
    for epochs, expected in ((1, [True, False]), (2, [False] * 4)):
        batch = make_batch(rows=8, demonstrations=0)
        batch.meta_info["mini_batches"] = 2
        asked.clear()
        update(batch, "algorithm=grpo", f"actor_rollout_ref.actor.ppo_epochs={epochs}")
        assert asked == expected


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


# Replay: the second objective of an algorithm


def demonstrations_only(rows: int, **meta):
    """What the trainer's replayer sends: model inputs and masks, nothing of rollouts."""
    batch = make_batch(rows=rows, demonstrations=rows).select(
        batch_keys=["input_ids", "responses", "attention_mask", "position_ids", "response_mask", "prefix_mask"]
    )
    batch.meta_info = {"objective": "replay", "temperature": 1.0, "mini_batches": 1, "epochs": 1, "grad_clip": 1e9, **meta}
    return batch


def test_replayed_demonstrations_are_trained_by_the_replay_terms() -> None:
    """NLL - α H over the demonstration tokens, from transformers' own logits."""
    actor = make_actor("algorithm=relift", "fusion.relift.entropy_coeff=0.05")
    batch = demonstrations_only(4, epochs=3, grad_clip=0.7)
    metrics = actor.update_policy(batch)
    assert len(actor.gradients) == 3 and actor.clips == [0.7] * 3
    model, t = make_model(), batch.batch
    logits = model(input_ids=t["input_ids"], attention_mask=t["attention_mask"], position_ids=t["position_ids"]).logits
    log_probs = logits[:, -RESPONSE - 1 : -1].log_softmax(dim=-1)
    mask = t["response_mask"].bool()
    nll = -log_probs.gather(-1, t["responses"].unsqueeze(-1)).squeeze(-1)[mask].mean()
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1)[mask].mean()
    (nll - 0.05 * entropy).backward()
    reference = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for gradient in actor.gradients:  # nothing is stepped here, so that every epoch sees the same model
        assert gradient_distance(gradient, reference) < 1e-5
    assert metrics["fusion/sft_nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert metrics["fusion/total_loss"] == pytest.approx((nll - 0.05 * entropy).item(), rel=1e-5)
    # without the mark in meta_info the same batch lacks what reinforcement learning reads
    del batch.meta_info["objective"]
    with pytest.raises(KeyError, match=r"relift.*old_log_probs"):
        actor.update_policy(batch)


def test_replay_steps_through_its_mini_batches_at_its_own_clip() -> None:
    actor = make_actor("algorithm=relift", recording=False)  # SGD at 0.1: a step as long as 0.1 x the clipped norm
    before = {name: p.clone() for name, p in actor.actor_module.named_parameters()}
    metrics = actor.update_policy(demonstrations_only(6, mini_batches=1, grad_clip=0.01))
    assert metrics["actor/grad_norm"] > 0.01 and metrics["fusion/optimizer_steps"] == 1
    moved = torch.sqrt(sum((p - before[name]).double().square().sum() for name, p in actor.actor_module.named_parameters()))
    assert moved.item() == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert actor.update_policy(demonstrations_only(6, mini_batches=3, epochs=2))["fusion/optimizer_steps"] == 6


# Phases


def test_phases_have_terms_of_their_own() -> None:
    """SFT first, then GRPO, as if each were the algorithm of the run."""
    actor = make_actor("algorithm=sft_then_rl")
    assert not actor.needs_entropy
    for phase, (name, demonstrations) in enumerate((("sft", 4), ("grpo", 0))):
        actor.start_phase(phase)
        actor.gradients = []
        batch = make_batch(rows=4, demonstrations=demonstrations)
        metrics = actor.update_policy(batch)
        (reference,), expected = update(batch, f"algorithm={name}")
        assert gradient_distance(actor.gradients[0], reference) == 0.0
        assert metrics == expected
    assert actor.needs_entropy  # GRPO's bonus
    actor.start_phase(0)
    assert not actor.needs_entropy and [term.name for term in actor.terms] == ["sft"]


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
    for name in ("off_weight", "sft_weight"):  # the terms of a demonstration
        silent.batch[name][:] = 0.0
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


@pytest.mark.parametrize("limit", ["80", "null"])
def test_non_finite_gradient_is_skipped_and_its_groups_are_named(caplog, limit) -> None:
    actor = make_actor("algorithm=hpt", f"fusion.max_grad_norm={limit}", recording=False)
    with torch.no_grad():
        actor.actor_module.model.embed_tokens.weight[7] = float("nan")
    batch = make_batch(rows=4, demonstrations=1)
    batch.batch["input_ids"][2, -1] = batch.batch["responses"][2, -1] = 7
    batch.batch["input_ids"][2, 6] = 7
    before = {name: p.clone() for name, p in actor.actor_module.named_parameters()}
    metrics = actor.update_policy(batch)
    assert metrics["fusion/grad_skipped"] == 1 and metrics["fusion/optimizer_steps"] == 0
    assert all(torch.equal(before[name], p) for name, p in actor.actor_module.named_parameters() if "embed" not in name)
    assert "group-0" in caplog.text


def test_missing_stream_names_it_and_the_algorithm() -> None:
    for name in WEIGHTS:
        batch = make_batch(rows=4, demonstrations=1)
        del batch.batch[name]
        with pytest.raises(KeyError, match=rf"hpt needs \['{name}'\]"):
            make_actor("algorithm=hpt").update_policy(batch)


@pytest.mark.parametrize("name, tokens", [("hpt", "demo"), ("uft", "hint")])
def test_target_tokens_without_their_mask_name_it_and_the_algorithm(name: str, tokens: str) -> None:
    """A batch without `prefix_mask` would train demonstrations as if the policy had sampled them."""
    actor = make_actor(f"algorithm={name}")
    actor.terms = tuple(replace(term, members=replace(term.members, may_be_absent=False)) for term in actor.terms)
    assert tokens in {term.members.tokens for term in actor.terms}
    batch = make_batch(rows=4, demonstrations=0)
    del batch.batch["prefix_mask"]
    with pytest.raises(KeyError, match=rf"algorithm={name} needs \['prefix_mask'\].*response_mask"):
        actor.update_policy(batch)
    # a term that says that its batches may hold none trains the rest
    actor.terms = tuple(replace(term, members=replace(term.members, may_be_absent=True)) for term in actor.terms)
    assert actor.update_policy(batch)["fusion/optimizer_steps"] == 1


@dataclass(frozen=True)
class Teacher:
    """u = π_θ/π_teacher, of a stream that nothing in the package knows."""

    streams: ClassVar[tuple[str, ...]] = ("teacher_log_probs",)

    def surrogate(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.exp(tensors["log_probs"] - tensors["teacher_log_probs"])

    def ratio(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.surrogate(tensors).detach()

    def describe(self) -> str:
        return "π_teacher"


def test_a_new_reference_gets_the_stream_it_declares() -> None:
    actor = make_actor("algorithm=dr_grpo", "fusion.first_step_is_current=false")
    (term,) = (term for term in actor.terms if term.name == "rl")
    batch = make_batch(rows=4, demonstrations=0)
    batch.meta_info["mini_batches"] = 2  # so that old log-probabilities are read, not replaced by the current ones
    actor.terms = (term,)
    expected, gradients = actor.update_policy(batch), actor.gradients
    actor.terms, actor.gradients = (replace(term, loss=replace(term.loss, reference=Teacher())),), []
    with pytest.raises(KeyError, match=r"dr_grpo needs \['teacher_log_probs'\]"):
        actor.update_policy(batch)
    batch.batch["teacher_log_probs"] = batch.batch.pop("old_log_probs")
    found = actor.update_policy(batch)
    assert found["fusion/rl_loss"] == expected["fusion/rl_loss"] != 0.0
    for mine, reference in zip(actor.gradients, gradients, strict=True):
        assert gradient_distance(mine, reference) == 0.0


# Ranks


RANKED = {  # name -> overrides; one start of two processes serves all
    "hpt": HPT,
    "hpt dynamic": (*HPT, "actor_rollout_ref.actor.use_dynamic_bsz=true", "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16"),
    "srft": ("algorithm=srft",),
    "uft": ("algorithm=uft",),
    "psft": ("algorithm=psft",),
    "online_sft pseudo": ("algorithm=online_sft", "fusion.online_sft.form=pseudo"),
}


OFF_POLICY = ("actor_rollout_ref.actor.ppo_epochs=2",)  # with a second step old log-probabilities are read, not replaced


def _ranked_batch():
    """Demonstrations stand first: with five of twelve rows rank 1 has none at all."""
    batch = make_batch(rows=12, demonstrations=5, hints=3)
    batch.meta_info["mini_batches"] = 1
    return batch


def _rank(rank: int, world: int, path: str) -> None:
    """One of two FSDP2 ranks: its half of the rows; what every algorithm makes of them, written to a file."""
    torch.set_num_threads(1)
    start_group(rank, world, path + ".meeting")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    results = {}
    for name, flags in RANKED.items():
        module = make_model()
        for layer in module.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        actor = make_actor(*flags, *OFF_POLICY, module=module)
        metrics = actor.update_policy(_ranked_batch().select_idxs(np.arange(rank * 6, rank * 6 + 6)))
        results[name] = {"gradient": actor.gradients[0], "metrics": metrics, "steps": len(actor.gradients)}
    torch.save(results, f"{path}.{rank}")


@pytest.mark.e2e
def test_two_ranks_equal_one(tmp_path) -> None:
    path = str(tmp_path / "rank")
    run_ranks(_rank, 2, path)
    found = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for name, flags in RANKED.items():
        actor = make_actor(*flags, *OFF_POLICY)
        metrics = actor.update_policy(_ranked_batch())
        for result in (each[name] for each in found):
            gradient = {key.replace("_fsdp_wrapped_module.", ""): g for key, g in result["gradient"].items()}
            assert gradient_distance(actor.gradients[0], gradient) < TOLERANCE, name
            assert result["steps"] == len(actor.gradients)
            assert sorted(result["metrics"]) == sorted(metrics)
            for key, value in metrics.items():
                assert result["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, key)
