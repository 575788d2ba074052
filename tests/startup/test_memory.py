"""What lies in a rank's memory, against arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.startup.disk import checkpoints_of
from unify_posttrain.startup.memory import RankPlan, parts_of, totals
from unify_posttrain.startup.memory_plan import rank_plan

ACTOR = "actor_rollout_ref.actor"
PUBLISHED = ("algorithm=hpt", "model=qwen2_5_math_7b", "task=openr1_math", "hardware=node_8gpu")
P, V, H, L, I = 7_615_616_512, 152_064, 3584, 28, 18_944  # noqa: E741 - the symbols of startup/memory.py
N = 2 * (1024 + 8192)  # tokens of a forward pass: two whole rows
GIB = 1 << 30
Plan = Callable[..., RankPlan]
Sizes = dict[str, tuple[float, float, float]]


@pytest.fixture
def plan(composed: Callable[..., DictConfig]) -> Plan:
    def build(*overrides: str, seen: int | None = None) -> RankPlan:
        config = composed(*overrides)
        return rank_plan(config, build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)), seen)

    return build


def sizes(plan: RankPlan) -> Sizes:
    """Bytes by the beginning of a part's name: (update, critic's update, generation)."""
    return {part.name: (part.update, part.critic, part.generation) for part in parts_of(plan)}


def of(plan: RankPlan, name: str) -> tuple[float, float, float]:
    (found,) = [values for key, values in sizes(plan).items() if key.startswith(name)]
    return found


def test_a_published_run_by_hand(plan: Plan) -> None:
    """HPT on Qwen2.5-Math-7B with eight GPUs of 79 GiB. In GB:

    weights        7.6156e9 x 4 bytes / 8                                   3.808      stay
    gradients      the same                                                 3.808      until the update's end
    Adam           twice that                                               7.616      stay
    gathered       2 matrices of 152,064 x 3584, 2 bytes                    2.180
    inputs         28 layers x 18,432 tokens x 3584 x 2 bytes               3.699
    logits         3 x 1152 tokens x 152,064 x 4, and 152,064 x 3584 x 4    4.282      ~
    a layer        18,432 x (4 x 18,944 + 6 x 3584) x 2 bytes               3.586      ~
    reduced        2 x 152,064 x 3584 x (2 + 4) bytes                       6.540      ~ the largest of the three
    context        1 GiB                                                    1.074      stays
    engine         4 GiB asleep; 0.7 x 79 GiB awake                         4.295, 59.378
    """
    run = plan(*PUBLISHED)
    share = P * 4 / 8
    assert list(sizes(run).values()) == [
        pytest.approx(expected)
        for expected in (
            (share, share, share),
            (share, 0, 0),
            (2 * share, 2 * share, 2 * share),
            (2 * V * H * 2, 0, 0),
            (L * N * H * 2, 0, 0),
            (3 * 1152 * V * 4 + V * H * 4, 0, 0),
            (N * (4 * I + 6 * H) * 2, 0, 0),
            (2 * V * H * (2 + 4), 0, 0),
            (GIB, GIB, GIB),
            (4 * GIB, 4 * GIB, 0.7 * 79 * GIB),
        )
    ]
    total = totals(parts_of(run))
    assert total["update"] == pytest.approx(4 * share + 2 * V * H * 2 + L * N * H * 2 + 2 * V * H * 6 + 5 * GIB)
    assert total["update"] / 1e9 == pytest.approx(33.0, abs=0.05)
    assert total["generation"] == pytest.approx(3 * share + GIB + 0.7 * 79 * GIB)
    assert total["generation"] / 1e9 == pytest.approx(71.9, abs=0.05)


def test_a_reward_model_scores_while_the_engine_sleeps(plan: Plan) -> None:
    served = ("reward.reward_model.enable=true", "reward.reward_model.rollout.gpu_memory_utilization=0.6")
    alone, run = plan(*PUBLISHED), plan(*PUBLISHED, *served)
    asleep, awake = 4 * GIB, 0.6 * 79 * GIB
    assert of(run, "reward model: 60%") == (asleep,) * 3
    before, after = totals(parts_of(alone)), totals(parts_of(run))
    assert all(after[moment] == pytest.approx(before[moment] + asleep) for moment in ("update", "generation"))
    assert after["scoring"] == pytest.approx(before["generation"] - 0.7 * 79 * GIB + asleep + awake)
    own_pool = plan(*PUBLISHED, *served, "reward.reward_model.enable_resource_pool=true")
    assert totals(parts_of(own_pool)) == before


@pytest.mark.parametrize(
    ("overrides", "copies"),
    [
        # 18,432 tokens x 152,064 words x 2 bytes = 5.6 GB
        (("fusion.logits_chunk=null",), 4),  # entropy bonus, compiled: verl's default
        (("fusion.logits_chunk=null", f"{ACTOR}.use_torch_compile=false"), 14),
        (("fusion.logits_chunk=null", f"{ACTOR}.entropy_coeff=0", f"{ACTOR}.use_torch_compile=false"), 4),
        (("fusion.logits_chunk=null", "actor_rollout_ref.model.use_remove_padding=false"), 14),  # padded rows: not compiled
        (("fusion.logits_chunk=null", f"{ACTOR}.entropy_coeff=0", "actor_rollout_ref.model.use_remove_padding=false"), 2),
    ],
)
def test_whole_logits(plan: Plan, overrides: tuple[str, ...], copies: int) -> None:
    assert of(plan(*PUBLISHED, *overrides), "logits")[0] == copies * N * V * 2


def test_float32_logits_have_fewer_copies_of_twice_the_size(plan: Plan) -> None:
    run = plan("model=qwen2_5_7b", "hardware=cpu", "algorithm=hpt", f"{ACTOR}.ppo_micro_batch_size_per_gpu=2")
    assert of(run, "logits")[0] == 7 * 2 * (16 + 64) * V * 4
    assert of(run, "28 layers")[0] == L * 2 * (16 + 64) * (4 * I + 6 * H) * 4  # without checkpointing everything is kept
    assert of(run, "engine (hf)") == (P * 4,) * 3


@pytest.mark.parametrize(
    ("overrides", "weights", "moments"),
    [
        ((f"{ACTOR}.fsdp_config.param_offload=true",), (1, 0), (2, 2)),
        ((f"{ACTOR}.fsdp_config.optimizer_offload=true",), (1, 1), (2, 0)),
        ((f"{ACTOR}.strategy=fsdp2", f"{ACTOR}.fsdp_config.offload_policy=true"), (0, 0), (0, 0)),
        ((f"{ACTOR}.fsdp_config.offload_policy=true",), (1, 1), (2, 2)),  # FSDP1 does not know it
        (("trainer.nnodes=2",), (0.5, 0.5), (1, 1)),
        (("trainer.nnodes=2", f"{ACTOR}.fsdp_config.fsdp_size=8"), (1, 1), (2, 2)),  # two copies
        ((f"{ACTOR}.fsdp_config.model_dtype=bf16",), (0.5, 0.5), (1, 1)),
    ],
)
def test_what_stays_on_the_gpu(plan: Plan, overrides: tuple[str, ...], weights: tuple, moments: tuple) -> None:
    """(update, generation), in shares of P x 4 bytes / 8."""
    run, share = plan(*PUBLISHED, *overrides), P * 4 / 8
    assert of(run, "weights")[::2] == pytest.approx(tuple(share * each for each in weights))
    assert of(run, "Adam")[::2] == pytest.approx(tuple(share * each for each in moments))


def test_adapters_train_nothing_of_the_base_model(plan: Plan) -> None:
    run = plan(*PUBLISHED, "actor_rollout_ref.model.lora_rank=8")
    assert of(run, "weights")[0] == P * 4 / 8
    assert not any(name.startswith(("gradients", "Adam")) for name in sizes(run))
    assert of(run, "whole gradients")[0] == 0


def test_a_frozen_tower_is_not_trained(plan: Plan) -> None:
    vl = ("algorithm=hpt", "model=qwen2_5_vl_7b", "hardware=node_8gpu")
    assert of(plan(*vl), "gradients")[0] == 8_292_166_656 * 4 / 8
    frozen = plan(*vl, f"{ACTOR}.freeze_vision_tower=true")
    assert of(frozen, "gradients")[0] == (8_292_166_656 - 676_550_144) * 4 / 8
    assert of(frozen, "weights")[0] == 8_292_166_656 * 4 / 8


def test_images_of_episodes_are_counted_before_the_data_is_there(plan: Plan) -> None:
    """The tower keeps, per layer, an input of 1280 numbers of each patch; a token is 2 x 2 patches.

    4 searches that show 512 tokens each, in 16,384 // (1024 + 4652) = 2 rows of a pass:
    32 layers x (2 x 2048 x 4) patches x 1280 x 2 bytes, 1.34 GB
    """
    vrag = ("algorithm=hpt", "model=qwen2_5_vl_7b", "task=vrag", "hardware=node_8gpu", f"{ACTOR}.ppo_max_token_len_per_gpu=16384")
    assert of(plan(*vrag), "vision tower")[0] == 32 * (2 * 2048 * 4) * 1280 * 2
    assert (
        of(plan(*vrag, seen=3072), "vision tower")[0] == 1.5 * of(plan(*vrag), "vision tower")[0]
    )  # prompts of the data show some
    single = plan(*vrag[:2], "task=openr1_math", *vrag[3:])
    assert not any(name.startswith("vision tower") for name in sizes(single))


def test_fsdp2_gathers_embedding_and_head_one_by_one(plan: Plan) -> None:
    run = plan(*PUBLISHED, f"{ACTOR}.strategy=fsdp2")
    assert of(run, "gathered")[0] == V * H * 2
    assert of(run, "whole gradients")[0] == V * H * 6


def test_second_moments_of_a_replayed_step(plan: Plan) -> None:
    relift = ("algorithm=relift", *PUBLISHED[1:])
    share = P * 4 / 8
    assert of(plan(*relift), "moments of the replayed step") == (2 * share,) * 3  # 7.6 GB
    assert "moments of the replayed step" not in sizes(plan(*relift, "fusion.relift.optimizer=shared"))
    offloaded = plan(*relift, f"{ACTOR}.fsdp_config.optimizer_offload=true")  # the two optimizers take turns
    assert of(offloaded, "moments of the replayed step") == (0, 0, 0)


def test_a_critic_has_a_state_of_its_own(plan: Plan) -> None:
    ppo = ("algorithm=ppo", *PUBLISHED[1:])
    critic = P - V * H + H + 1  # a row of values and a bias in place of the output head
    assert of(plan(*ppo), "critic") == pytest.approx((0, critic * 16 / 8, 0))  # offloaded while it does nothing
    stays = plan(*ppo, *(f"critic.model.fsdp_config.{key}_offload=false" for key in ("param", "optimizer")))
    assert of(stays, "critic") == pytest.approx((critic * 12 / 8, critic * 16 / 8, critic * 12 / 8))
    total = totals(parts_of(stays))
    share = P * 4 / 8
    # The actor rests: weights and moments. The critic's embedding is gathered, its gradient the largest that comes and goes but for
    # a layer: 152,064 x 3584 x 6 = 3.27 GB against 3.59 GB.
    passing = V * H * 2 + L * N * H * 2 + N * (4 * I + 6 * H) * 2
    assert total["critic"] == pytest.approx(3 * share + critic * 16 / 8 + passing + 5 * GIB)


def test_the_reference_is_in_main_memory_on_gpus(plan: Plan) -> None:
    kl = f"{ACTOR}.use_kl_loss=true"
    assert of(plan(*PUBLISHED, kl), "reference policy") == (0, 0, 0)
    assert not any(name.startswith("reference") for name in sizes(plan(*PUBLISHED)))
    ranks = "trainer.n_gpus_per_node=2"
    assert of(plan("algorithm=hpt", "model=qwen2_5_7b", "hardware=cpu", kl, ranks), "reference policy") == (P * 4 / 2,) * 3


def test_an_engine_that_does_not_sleep_keeps_its_share(plan: Plan) -> None:
    awake = 0.7 * 79 * GIB
    run = plan(*PUBLISHED, "actor_rollout_ref.rollout.free_cache_engine=false")
    assert of(run, "engine") == pytest.approx((awake,) * 3)


def test_nothing_is_estimated_from_nothing(plan: Plan) -> None:
    assert plan(*PUBLISHED, "actor_rollout_ref.model.path=nobody/nothing") is None


@pytest.mark.parametrize(
    ("overrides", "each", "written", "kept"),
    [
        ((), 12 * P, 10, 10),  # float32 weights and two moments, 91.4 GB, every 50 of 500 steps
        (("trainer.max_actor_ckpt_to_keep=2",), 12 * P, 10, 2),
        (("trainer.save_freq=200",), 12 * P, 3, 3),  # after steps 200, 400 and 500
        (("trainer.save_freq=-1",), 12 * P, 0, 0),
        ((f"{ACTOR}.checkpoint.save_contents=[model,hf_model,extra]",), 8 * P, 10, 10),
        (("algorithm=relift",), 20 * P, 10, 10),
        (("algorithm=ppo",), 12 * P + 12 * (P - V * H + H + 1), 10, 10),
    ],
)
def test_checkpoints(
    composed: Callable[..., DictConfig], plan: Plan, overrides: tuple[str, ...], each: int, written: int, kept: int
) -> None:
    overrides = tuple(dict.fromkeys((*PUBLISHED[1:], *overrides)))
    saved = checkpoints_of(composed(*overrides), plan(*overrides), steps=500)
    assert (saved.each, saved.written, saved.kept) == (pytest.approx(each), written, kept)
