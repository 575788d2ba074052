"""Start-up checks of episodes: bad input has its message before Ray, and the plan of a run knows its turns."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from tests.tasks.environments import hand_row
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.config import compose_config
from unify_posttrain.rollout.environment_loop import EnvironmentAgentLoop
from unify_posttrain.startup.data_checks import DataReport, _check_picture_limit
from unify_posttrain.startup.dry_run import describe_run
from unify_posttrain.startup.episode_checks import PLAYER, check_episodes, check_turns
from unify_posttrain.tasks.tokenizer import build_tokenizer
from unify_posttrain.tasks.turns import ImageLimits
from unify_posttrain.tasks.vrag.protocol import no_action

ROW = hand_row("A 2 3 4", style="compact")
LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"


@cache
def base(algorithm: str, task: str) -> Any:
    return compose_config([f"algorithm={algorithm}", f"task={task}"])


def composed(*overrides: str, algorithm: str = "grpo", task: str = "general_points") -> Any:
    """Composed once: the overrides are of plain values."""
    config = base(algorithm, task).copy()
    for key, _, value in (override.partition("=") for override in overrides):
        OmegaConf.update(config, key, yaml.safe_load(value))
    return config


@pytest.mark.parametrize(
    ("algorithm", "task"),
    [
        ("grpo", "general_points"),
        ("ppo_heals", "general_points"),
        ("hpt", "navigation"),
        ("ppo", "matrices"),
        ("grpo", "arithmetic"),
    ],
)
def test_what_conf_has_passes(algorithm: str, task: str) -> None:
    check_episodes(composed(algorithm=algorithm, task=task))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["environment.score=best"], r"environment.score='best' is unknown; choose one of outcome, sum, last"),
        (["environment.credit=turn"], r"environment.credit=turn .*score=outcome is not that: set environment.score=sum"),
        (["environment.credit=turn", "environment.score=sum"], r"environment.credit=turn needs a critic.*use algorithm=ppo"),
        (["environment.gae=turn"], r"environment.gae=turn needs the rewards of turns"),
        (["environment.max_turns=0"], r"environment.max_turns=0: give an integer of at least 1"),
        (["environment.name=chess"], r"environment.name='chess' is unknown; choose one of general_points"),
        ([f"{LOOP}=seeded_single_turn"], rf"{LOOP}=seeded_single_turn plays no turns.*set {LOOP}=environment"),
        ([f"{LOOP}=tool_agent"], rf"{LOOP}=tool_agent plays no turns"),
        (["actor_rollout_ref.rollout.agent.agent_loop_config_path=none.yaml"], rf"{LOOP}=environment plays no turns"),
        (["environment=null"], rf"{LOOP}=environment plays environment, which is not set.*task=general_points"),
        (
            ["reward.custom_reward_function.path=mine.py"],
            r"reward.custom_reward_function.path=mine.py would score demonstrations and never a rollout.*set it to pkg://",
        ),
        (["reward.custom_reward_function.name=mine"], r"reward.custom_reward_function.name=mine .*set it to compute_score"),
        (["reward.reward_model.enable=true"], r"reward.reward_model.enable=true would never be asked.*set it to false"),
        (["reward.reward_manager.name=dapo"], r"reward.reward_manager.name=dapo would never be asked.*set it to naive"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_episodes(composed(*overrides))


def test_images_of_an_episode_are_planned(caplog: pytest.LogCaptureFixture) -> None:
    """Every feedback may be an image of 32 tokens, which is longer than none of the texts of this environment."""
    config = composed(task="vrag_small", algorithm="hpt")
    check_episodes(config)
    row = {"data_source": "vrag", "reward_model": {"ground_truth": "12"}, "extra_info": {}}
    plan = check_turns(config, template(), row)
    assert plan is not None and plan.limits == ImageLimits(2, 32) and plan.budget.max_turns == 3
    said = template().tokenizer(no_action("bbox"), add_special_tokens=False)["input_ids"]
    assert plan.feedback == max(len(said), 32 + 2)
    report = DataReport(100, 0, 10, None, 0, plan, pictures=1, picture_tokens=16)
    assert report.seen_tokens == 16 + 2 * 32
    assert "             at most 2 images of 32 tokens among them" in describe_run(config, report).splitlines()
    _check_picture_limit(config, 0, plan.limits.images)
    with pytest.raises(ValueError, match=r"limit_images=2: a prompt of the data shows 1 pictures, and its episode up to 2 more"):
        _check_picture_limit(config, 1, plan.limits.images)


def test_the_loop_is_known_by_its_name() -> None:
    """Importing it takes seconds, which the checks have not."""
    assert f"{EnvironmentAgentLoop.__module__}.{EnvironmentAgentLoop.__qualname__}" == PLAYER


def template() -> ChatTemplate:
    return ChatTemplate(build_tokenizer(512))


SMALL = ("data.max_prompt_length=40", "data.max_response_length=200", "environment.max_tokens_per_turn=30")


def test_room_for_all_turns_is_planned(caplog: pytest.LogCaptureFixture) -> None:
    config = composed(*SMALL, "environment.max_turns=3")
    with caplog.at_level(logging.WARNING):
        plan = check_turns(config, template(), ROW)
    assert plan is not None and caplog.text == "" and plan.around == 3 and plan.feedback > 3
    assert plan.longest == 3 * 30 + 2 * (3 + plan.feedback)
    text = describe_run(config, DataReport(100, 0, 10, None, 0, plan))
    line = f"an episode   at most 3 turns of 30 tokens, feedback of about {3 + plan.feedback}: {plan.longest} of 200 tokens"
    assert line in text.splitlines()
    assert "an episode   at most 3 turns of 30 tokens, of 200 tokens" in describe_run(config, None).splitlines()
    single = composed(task="arithmetic")
    assert "an episode" not in describe_run(single, None) and check_turns(single, template(), ROW) is None


def test_room_for_some_turns_is_said_and_for_none_refused(caplog: pytest.LogCaptureFixture) -> None:
    config = composed(*SMALL, "environment.max_turns=9")
    plan = check_turns(config, template(), ROW)
    assert plan is not None and plan.longest > 200
    assert "environment.max_turns=9: so many answers of environment.max_tokens_per_turn=30 tokens" in caplog.text
    assert (
        f"are {plan.longest} tokens, and an episode has room for 200" in caplog.text
        and "raise data.max_response_length" in caplog.text
    )
    # 40 of the prompt leave 10 of 50, and a turn begins with 16
    tight = composed(*SMALL, "actor_rollout_ref.rollout.max_model_len=50")
    with pytest.raises(
        ValueError, match=r"environment.min_turn_tokens=16: behind a prompt of 40 tokens an episode has room for 10"
    ):
        check_turns(tight, template(), ROW)


def test_a_row_with_fewer_turns_does_not_hide_the_others() -> None:
    rank = {"data_source": "rank_id", "extra_info": {}}
    truth = '{"question": "rank", "matrix": [[1, 2], [3, 4]]}'
    plan = check_turns(composed(*SMALL, task="matrices"), template(), {**rank, "reward_model": {"ground_truth": truth}})
    assert plan is not None and plan.budget.max_turns == 5


def test_a_template_without_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(512)
    tokenizer.chat_template = tokenizer.chat_template.replace("+ '<|end|>'", "").replace("~ '<|end|>'", "~ '.'")
    with pytest.raises(ValueError, match=r"ends an answer with '.*' and not with the end token <\|end\|>.*custom_chat_template"):
        check_turns(composed(*SMALL), ChatTemplate(tokenizer), ROW)
