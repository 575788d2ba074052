"""The critic's gradient is a function of the batch, and its model is the one that the configuration describes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import verl.utils.model
from verl.workers.critic import DataParallelPPOCritic

from tests.ranks import run_ranks
from unify_posttrain.workers.fusion_critic import FusionCriticWorker
from unify_posttrain.workers.value_model import load_value_model

from .actor_kit import gradient_distance, make_model, start_group
from .critic_kit import critic_config, make_critic, make_value_batch, make_value_model

TOLERANCE = 1e-6
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum")
MICRO = "critic.ppo_micro_batch_size_per_gpu"


def update(batch, *overrides, **kwargs):
    critic = make_critic(*overrides, **kwargs)
    metrics = critic.update_critic(batch)
    return critic.gradients, metrics


@pytest.mark.parametrize("mode", MODES)
def test_with_one_micro_batch_it_is_verls_critic(mode) -> None:
    """verl's own update in full precision: its autocast to bfloat16 is overruled in the reference, as the adapter does it."""
    module = make_value_model()
    module.forward = torch.autocast("cpu", enabled=False)(module.forward)
    overrides = (f"critic.loss_agg_mode={mode}", "critic.cliprange_value=0.2")
    (theirs,), reference = update(make_value_batch(12), *overrides, critic_class=DataParallelPPOCritic, module=module)
    (mine,), metrics = update(make_value_batch(12), *overrides)
    assert gradient_distance(mine, theirs) < TOLERANCE
    assert sorted(metrics) == sorted(reference)
    for key, value in metrics.items():
        assert value == pytest.approx(np.mean(reference[key]), rel=1e-5), key
    assert 0.1 < metrics["critic/vf_clipfrac"] < 0.9, "the batch exercises the clip"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_micro_batch_size_changes_nothing(mode, micro) -> None:
    flags = (f"critic.loss_agg_mode={mode}", "critic.ppo_mini_batch_size=8")
    whole, metrics = update(make_value_batch(16), *flags, f"{MICRO}=8")
    split, split_metrics = update(make_value_batch(16), *flags, f"{MICRO}={micro}")
    assert len(whole) == len(split) == 2
    for mine, reference in zip(split, whole, strict=True):
        assert gradient_distance(mine, reference) < TOLERANCE
    assert split_metrics == pytest.approx(metrics, rel=1e-5)


def test_verls_critic_depends_on_the_micro_batch_size() -> None:
    """What the subclass is for; if this fails, verl has mended it and `update_critic` can go."""
    (whole,), _ = update(make_value_batch(12), critic_class=DataParallelPPOCritic)
    (split,), _ = update(make_value_batch(12), f"{MICRO}=2", critic_class=DataParallelPPOCritic)
    assert gradient_distance(split, whole) > 1e-2


@pytest.mark.parametrize("tokens", [16, 32, 48])
def test_dynamic_micro_batches_order_and_silent_rows_change_nothing(tokens) -> None:
    (reference,), metrics = update(make_value_batch(12))
    batch = make_value_batch(12).select_idxs(np.array([*np.random.default_rng(tokens).permutation(12), 0, 1]))
    batch.batch["response_mask"][12:] = 0
    dynamic = ("critic.use_dynamic_bsz=true", f"critic.ppo_max_token_len_per_gpu={tokens}", "critic.ppo_mini_batch_size=14")
    (mine,), mine_metrics = update(batch, *dynamic)
    assert gradient_distance(mine, reference) < TOLERANCE
    assert mine_metrics == pytest.approx(metrics, rel=1e-5)


def test_values_do_not_depend_on_micro_batches_and_are_zero_outside_the_response() -> None:
    batch = make_value_batch(12)
    critic = make_critic()
    values = []
    for meta in ({"micro_batch_size": 12, "use_dynamic_bsz": False}, {"micro_batch_size": 5, "use_dynamic_bsz": False},
                 {"micro_batch_size": 1, "use_dynamic_bsz": True, "max_token_len": 32}):  # fmt: skip
        batch.meta_info.update(meta)
        values.append(critic.compute_values(batch))
    assert values[0].shape == batch.batch["responses"].shape and values[0].dtype == torch.float32
    assert all(torch.allclose(values[0], other, atol=1e-6) for other in values[1:])
    assert (values[0] != 0).eq(batch.batch["response_mask"].bool()).all()


def test_a_mini_batch_without_tokens_takes_no_step() -> None:
    batch = make_value_batch(12)
    batch.batch["response_mask"][6:] = 0
    critic = make_critic("critic.ppo_mini_batch_size=6", f"{MICRO}=6", record=False)
    before = {name: p.clone() for name, p in critic.critic_module.named_parameters()}
    metrics = critic.update_critic(batch.select_idxs(np.arange(6, 12)))
    assert set(metrics.values()) == {0.0}
    assert all(torch.equal(before[name], p) for name, p in critic.critic_module.named_parameters())
    both = make_critic("critic.ppo_mini_batch_size=6", f"{MICRO}=6")
    alone = make_critic("critic.ppo_mini_batch_size=6", f"{MICRO}=6")
    assert both.update_critic(batch) == alone.update_critic(batch.select_idxs(np.arange(6)))
    assert len(both.gradients) == 1


def test_regression_learns_its_returns() -> None:
    critic = make_critic("critic.cliprange_value=100", record=False)
    batch = make_value_batch(12)
    losses = [critic.update_critic(batch)["critic/vf_loss"] for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


def test_precision_is_the_configured_one() -> None:
    """In bfloat16 values have 8 bits of mantissa; in fp32 they do not, although verl's forward pass asks for bfloat16."""
    batch = make_value_batch(12)
    batch.meta_info.update(micro_batch_size=12, use_dynamic_bsz=False)
    full = make_critic().compute_values(batch)
    half = make_critic("critic.model.fsdp_config.mixed_precision.param_dtype=bf16").compute_values(batch).float()
    assert torch.equal(half, half.bfloat16().float()) and not torch.equal(full, full.bfloat16().float())
    assert torch.allclose(full, half, atol=0.1)


# The model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(path)
    return path


def test_value_model_keeps_the_weights_and_the_attention_of_the_configuration(folder) -> None:
    from transformers import AutoConfig

    def load(seed):
        config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
        config.num_labels = 1
        return load_value_model(str(folder), torch.float32, config, False, seed=seed)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = load(0), load(0), load(1)
    assert torch.equal(torch.rand(3), expected), "other draws of the process do not notice"
    assert first.config._attn_implementation == "sdpa"
    assert torch.equal(first.model.embed_tokens.weight, make_model().model.embed_tokens.weight)
    assert first.score.out_features == 1
    assert torch.equal(first.score.weight, again.score.weight) and not torch.equal(first.score.weight, other.score.weight)


def test_worker_builds_the_critic_on_cpu_and_restores_verls_loader(folder, monkeypatch) -> None:
    from unify_posttrain.tasks.tiny_model import build_tokenizer
    from unify_posttrain.workers.fusion_critic import FusionCritic

    build_tokenizer(64).save_pretrained(folder)
    start_group()
    of_one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # read, never connected to
    for name, value in of_one.items():
        monkeypatch.setenv(name, value)
    theirs = verl.utils.model.load_valuehead_model
    config = critic_config(f"critic.model.path={folder}", f"critic.model.tokenizer_path={folder}")
    worker = FusionCriticWorker(config)
    worker.init_model()
    assert verl.utils.model.load_valuehead_model is theirs
    assert type(worker.critic) is FusionCritic and worker.critic.critic_module is worker.checkpoint_manager.model
    batch = make_value_batch(12)
    batch.meta_info["global_token_num"] = batch.batch["attention_mask"].sum(-1).tolist()
    values = worker.compute_values(batch).batch["values"]
    batch.batch["values"] = values
    metrics = worker.update_critic(batch).meta_info["metrics"]
    assert metrics["critic/vf_loss"] > 0 and metrics["critic/grad_norm"] > 0 and metrics["critic/lr"] == 1e-5
    assert not torch.equal(worker.compute_values(batch).batch["values"], values)


# Ranks


def _rank(rank: int, world: int, path: str, flags: tuple[str, ...]) -> None:
    """One of two FSDP2 ranks: its half of the rows, its full gradient written to a file."""
    torch.set_num_threads(1)
    start_group(rank, world, path + ".meeting")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = make_value_model()
    mesh = init_device_mesh("cpu", (world,))
    for layer in module.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    critic = make_critic("critic.ppo_mini_batch_size=6", f"{MICRO}=3", *flags, module=module)
    half = make_value_batch(12).select_idxs(np.arange(rank * 6, rank * 6 + 6))
    half.meta_info.update(micro_batch_size=6, use_dynamic_bsz="critic.use_dynamic_bsz=true" in flags, max_token_len=16)
    metrics = critic.update_critic(half)
    stepping = make_critic("critic.ppo_mini_batch_size=6", f"{MICRO}=3", "critic.grad_clip=0.5", module=module, record=False)
    clipped = stepping.update_critic(half)
    torch.save(
        {"gradients": critic.gradients, "metrics": metrics, "clipped": clipped, "values": critic.compute_values(half)},
        f"{path}.{rank}",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("flags", [(), ("critic.use_dynamic_bsz=true", "critic.ppo_max_token_len_per_gpu=16")])
def test_two_ranks_equal_one(tmp_path, flags) -> None:
    critic = make_critic()
    batch = make_value_batch(12)
    metrics = critic.update_critic(batch)
    path = str(tmp_path / "rank")
    run_ranks(_rank, 2, path, flags)
    first, second = (torch.load(f"{path}.{rank}") for rank in range(2))
    assert len(first["gradients"]) == len(second["gradients"]) == 1
    assert gradient_distance(critic.gradients[0], first["gradients"][0]) < TOLERANCE
    assert first["metrics"] == second["metrics"] == pytest.approx(metrics, rel=1e-5)
    stepping = make_critic("critic.grad_clip=0.5", record=False)
    assert first["clipped"] == second["clipped"] == pytest.approx(stepping.update_critic(batch), rel=1e-5)
    batch.meta_info.update(micro_batch_size=12, use_dynamic_bsz=False)
    values = stepping.compute_values(batch)  # after the step: both took the same one
    assert torch.allclose(torch.cat([first["values"], second["values"]]), values, atol=1e-6)
