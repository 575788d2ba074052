"""Start-up checks of the math reward: its version, its pool, and verl's graders that evaluate model text."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from omegaconf import DictConfig
from verl.utils import reward_score

from unify_posttrain.config import compose_config
from unify_posttrain.rewards.loading import FORBIDDEN, FORBIDDEN_SOURCES, VERL_GRADERS
from unify_posttrain.startup.reward_checks import check_reward, check_sources

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


GRADERS = Path(inspect.getfile(reward_score)).parent
# What hands text to an evaluator: Python's own, sympy's parser (which evaluates), and the libraries that use it unasked.
EVALUATES = re.compile(r"\beval\(|\bexec\(|parse_expr|mathruler|ExprExtractionConfig|testing_util")


def test_every_grader_of_verl_that_evaluates_is_forbidden() -> None:
    """Read off verl's source, so that an update that brings another one is noticed."""
    found = set()
    for file in GRADERS.rglob("*.py"):
        module = file.relative_to(GRADERS).with_suffix("").parts[0]
        if EVALUATES.search(file.read_text(encoding="utf-8")):
            found.add(f"{VERL_GRADERS}.{module}")
    assert found == set(FORBIDDEN)


def test_so_is_every_data_source_that_verl_sends_there() -> None:
    branches: dict[str, set[str]] = {}
    (function,) = ast.parse(inspect.getsource(reward_score.default_compute_score)).body
    for branch in ast.walk(function):
        if isinstance(branch, ast.If):
            sources = [each.value for each in ast.walk(branch.test) if isinstance(each, ast.Constant)]
            inside = [node for each in branch.body for node in ast.walk(each) if isinstance(node, ast.ImportFrom)]
            for source in sources:
                for node in inside:
                    for alias in node.names:
                        branches.setdefault(source, set()).add(f"{VERL_GRADERS}.{alias.name}")
    assert len(branches) > 15
    assert {source: modules & FORBIDDEN.keys() for source, modules in branches.items() if modules & FORBIDDEN.keys()} == {
        source: {module} for source, module in FORBIDDEN_SOURCES.items()
    }


@pytest.mark.parametrize("module", sorted(FORBIDDEN))
@pytest.mark.parametrize("form", ["pkg://{}", "/somewhere/{}.py", "file:///somewhere/{}/__init__.py"])
def test_forbidden_graders_are_never_reached_by_path(module: str, form: str) -> None:
    path = form.format(module if form.startswith("pkg") else module.replace(".", "/"))
    with pytest.raises(ValueError, match=r"custom_reward_function\.path=.*model (text|wrote).*unify_posttrain\.rewards\.math"):
        check_reward(composed(f"reward.custom_reward_function.path={path}"))


@pytest.mark.parametrize(
    "source", ["numina_cn_k12", "numina_olympiads", "codecontests", "apps", "codeforces", "taco", "hiyouga/geometry3k"]
)
def test_nor_by_data_source(source: str) -> None:
    dispatcher = composed(
        "reward.custom_reward_function.path=pkg://verl.utils.reward_score",
        "reward.custom_reward_function.name=default_compute_score",
    )
    check_sources(dispatcher, ["openai/gsm8k"])
    with pytest.raises(ValueError, match=rf"data_source='{source}'.*set reward\.custom_reward_function"):
        check_sources(dispatcher, ["openai/gsm8k", source])
    check_sources(composed(*MATH), [source])  # ours grades whatever its source is called


def test_programs_may_go_to_a_service_of_the_users() -> None:
    served = composed(
        "reward.custom_reward_function.path=pkg://verl.utils.reward_score",
        "reward.custom_reward_function.name=default_compute_score",
        "+reward.custom_reward_function.reward_kwargs={sandbox_fusion_url:localhost}",
    )
    check_sources(served, ["codeforces"])
    with pytest.raises(ValueError, match="numina_cn_k12"):
        check_sources(served, ["codeforces", "numina_cn_k12"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.protection.max_fault_share=1.5", r"reward\.protection\.max_fault_share=1\.5 must lie between 0 and 1"),
        ("reward.protection.timeout_seconds=0", r"reward\.protection\.timeout_seconds=0 must be above 0"),
        ("reward.protection.workers=two", r"reward\.protection\.workers='two' must be a number"),
        ("reward.protection.process=1", r"reward\.protection\.process=1 must be true or false"),
        ("+reward.protection.timeout=3", r"reward\.protection\.timeout is unknown; its keys are process, workers"),
        ("~reward.protection.memory_mb", r"reward\.protection\.memory_mb is not set"),
    ],
)
def test_settings_of_the_protection(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_reward(composed(override))


def test_a_reward_model_needs_the_workers_own_process() -> None:
    own = ("reward.custom_reward_function.path=/mine.py", "reward.reward_model.enable=true", "hardware=gpu_1")
    own = (*own, "reward.reward_model.rollout.name=vllm")
    with pytest.raises(ValueError, match=r"set reward\.protection\.process=false"):
        check_reward(composed(*own))
    check_reward(composed(*own, "reward.protection.process=false"))
