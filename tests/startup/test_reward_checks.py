"""Start-up checks of the math reward: its version, its pool, and verl's graders that evaluate model text."""

from __future__ import annotations

import pytest
from omegaconf import DictConfig

from unify_posttrain.config import compose_config
from unify_posttrain.startup.reward_checks import PRIME_SOURCES, check_reward, check_sources

MATH = (
    "reward.custom_reward_function.path=pkg://unify_posttrain.rewards.math",
    "+reward.custom_reward_function.reward_kwargs={version:6,workers:2,timeout_seconds:5.0,memory_mb:1024}",
)
KWARGS = "reward.custom_reward_function.reward_kwargs"


def composed(*overrides: str) -> DictConfig:
    return compose_config(["algorithm=grpo", *overrides])


@pytest.mark.parametrize("version", range(8))
def test_every_version_is_accepted(version: int) -> None:
    check_reward(composed(*MATH, f"{KWARGS}.version={version}", f"data.reward_impl_version={version}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{KWARGS}.version=8", r"data\.reward_impl_version=8 is unknown; choose one of 0, 1, 2, 3, 4, 5, 6, 7"),
        (f"{KWARGS}.version=null", r"reward_kwargs\.version is not set: give version \(0 to 7\)"),
        (f"~{KWARGS}.memory_mb", r"reward_kwargs\.memory_mb is not set"),
        (f"{KWARGS}.workers=0", r"reward_kwargs\.workers=0 must be above 0"),
        (f"{KWARGS}.timeout_seconds=-1", r"timeout_seconds=-1 must be above 0"),
    ],
)
def test_mistakes_name_key_and_remedy(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward(composed(*MATH, override))


def test_a_version_without_a_reader_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward_impl_version=6.*\(compute_score\) has no versions"):
        check_reward(composed("data.reward_impl_version=6"))
    with pytest.raises(ValueError, match=r"reward_impl_version=6.*\(compute_dapo_score\) has no versions"):
        check_reward(composed("data.reward_impl_version=6", *MATH, "reward.custom_reward_function.name=compute_dapo_score"))


SHARED = ("task=tldr", "hardware=node_8gpu", "model=pythia_1b", "reward.reward_model.enable=true")


def test_a_reward_model_that_shares_the_accelerators_gives_its_memory_back() -> None:
    own_pool = ("reward.reward_model.enable_resource_pool=true", "reward.reward_model.n_gpus_per_node=1")
    check_reward(composed(*SHARED))
    with pytest.raises(ValueError, match=r"reward\.reward_model\.rollout\.name is not set; set it to vllm"):
        check_reward(composed(*MATH, "reward.reward_model.enable=true"))
    for key in ("reward.reward_model.rollout.free_cache_engine", "actor_rollout_ref.rollout.free_cache_engine"):
        with pytest.raises(ValueError, match=rf"{key}=false: .*take turns.*enable_resource_pool=true".replace(".f", r"\.f")):
            check_reward(composed(*SHARED, f"{key}=false"))
        check_reward(composed(*SHARED, f"{key}=false", *own_pool))
        check_reward(composed("task=tldr", "hardware=node_8gpu", "model=pythia_1b", f"{key}=false"))


@pytest.mark.parametrize("path", ["pkg://verl.utils.reward_score.prime_math", "/somewhere/reward_score/prime_math/__init__.py"])
def test_prime_math_is_never_reached_by_path(path: str) -> None:
    with pytest.raises(ValueError, match=r"evaluates model text.*unify_posttrain\.rewards\.math"):
        check_reward(composed(f"reward.custom_reward_function.path={path}"))


def test_nor_by_data_source() -> None:
    """verl's dispatcher sends these names there; ours are checked against its source, so that an update is noticed."""
    import inspect

    from verl.utils.reward_score import default_compute_score

    source = inspect.getsource(default_compute_score)
    before, _, _ = source.partition("prime_math")
    listed = before.rpartition("[")[2].partition("]")[0]
    assert {name.strip().strip('"') for name in listed.split(",") if name.strip()} == PRIME_SOURCES
    dispatcher = composed(
        "reward.custom_reward_function.path=pkg://verl.utils.reward_score",
        "reward.custom_reward_function.name=default_compute_score",
    )
    check_sources(dispatcher, ["openai/gsm8k"])
    with pytest.raises(ValueError, match=r"data_source='numina_cn_k12'.*CVE-2026-6878"):
        check_sources(dispatcher, ["openai/gsm8k", "numina_cn_k12"])
    check_sources(composed(*MATH), ["numina_cn_k12"])  # ours grades whatever its source is called
