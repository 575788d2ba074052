"""Start-up checks of episodes: who plays and scores them, who credits their turns, and whether there is room for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.experience.feedback import QWEN_VISION
from unify_posttrain.experience.transcript import TurnBudget
from unify_posttrain.startup.reader import turn_frame
from unify_posttrain.tasks.environment import begin, image_limits, make_environment
from unify_posttrain.tasks.episodes import NODE, episode_node, read_settings
from unify_posttrain.tasks.turns import ImageLimits, Step
from unify_posttrain.tasks.waiting import settled

logger = logging.getLogger(__name__)

AGENT = "actor_rollout_ref.rollout.agent"
FUNCTION = {"path": "pkg://unify_posttrain.tasks.environment", "name": "compute_score"}
PLAYER = "unify_posttrain.rollout.environment_loop.EnvironmentAgentLoop"  # by name: importing it takes seconds


@dataclass(frozen=True)
class EpisodePlan:
    """What an episode may take, in tokens.

    Attributes:
        budget: of its turns.
        around: tokens that the chat template puts around feedback.
        feedback: tokens of a feedback: of text by the example of one, of images the most.
        limits: the images that it may show.
    """

    budget: TurnBudget
    around: int
    feedback: int
    limits: ImageLimits = field(default_factory=ImageLimits)

    @property
    def longest(self) -> int:
        """Tokens of an episode whose answers are all as long as they may be."""
        turns = self.budget.max_turns
        return turns * self.budget.max_tokens_per_turn + (turns - 1) * (self.around + self.feedback)


def check_episodes(config: DictConfig) -> None:
    """What the configuration alone can tell of a run whose rollouts are episodes; nothing of another.

    Raises:
        ValueError: settings that the environment refuses, turns that are credited without a critic, another agent loop, or a reward
            that nobody would ask for; names key, value and remedy.
    """
    loop = f"{AGENT}.default_agent_loop={config.actor_rollout_ref.rollout.agent.default_agent_loop}"
    if config.get(NODE) is None:
        if _plays(config):
            raise ValueError(f"{loop} plays {NODE}, which is not set; set it by a task file, e.g. task=general_points")
        return
    node = OmegaConf.to_container(config[NODE], resolve=True)
    settings, _ = read_settings(node)
    make_environment(node)  # reads the rest of the node
    settings.check_estimator(str(config.algorithm.adv_estimator))
    if not _plays(config):
        raise ValueError(
            f"{loop} plays no turns, and {NODE}.name={settings.name} has them; set {AGENT}.default_agent_loop=environment, which "
            "conf/agent_loops.yaml names"
        )
    function, manager = config.reward.custom_reward_function, config.reward.reward_manager
    for key, value in FUNCTION.items():
        if function.get(key) != value:
            raise ValueError(
                f"reward.custom_reward_function.{key}={function.get(key)} would score demonstrations and never a rollout, which "
                f"{NODE}.name={settings.name} scores; set it to {value}, or {NODE} to null"
            )
    if config.reward.reward_model.enable:
        raise ValueError(
            f"reward.reward_model.enable=true would never be asked, since {NODE}.name={settings.name} scores its episodes; set it "
            "to false"
        )
    if manager.name != "naive":
        raise ValueError(
            f"reward.reward_manager.name={manager.name} would never be asked, since {NODE}.name={settings.name} scores its "
            "episodes; set it to naive"
        )


def _plays(config: DictConfig) -> bool:
    """Whether the chosen agent loop is the one of environments."""
    agent = config.actor_rollout_ref.rollout.agent
    path = agent.agent_loop_config_path
    entries = OmegaConf.load(path) if path and Path(path).is_file() else ()
    return any(entry.name == agent.default_agent_loop and entry._target_ == PLAYER for entry in entries)


def check_ready(config: DictConfig) -> None:
    """Whether what an environment asks answers: a run whose every search fails would train on that.

    Raises:
        ValueError: it does not; names the key and the remedy.
    """
    node = episode_node(config)
    environment = None if node is None else make_environment(node)
    if hasattr(environment, "check_ready"):
        settled(environment.check_ready())


def episode_limits(config: DictConfig) -> tuple[TurnBudget, ImageLimits] | None:
    """What the configuration alone says of an episode: its turns and the images that it may show. None: there are no turns."""
    node = episode_node(config)
    if node is None:
        return None
    return _budget(config, node, getattr(make_environment(node), "generations", 1)), image_limits(node)


def _budget(config: DictConfig, node: Mapping[str, Any], generations: int) -> TurnBudget:
    settings, _ = read_settings(node)
    return TurnBudget(
        max_turns=max(generations, settings.max_turns),  # a row may have fewer than others
        max_tokens_per_turn=settings.max_tokens_per_turn,
        min_turn_tokens=settings.min_turn_tokens,
        response_length=config.data.max_response_length,
        max_model_len=config.actor_rollout_ref.rollout.max_model_len,
    )


def check_turns(config: DictConfig, template: ChatTemplate, row: Mapping[str, Any]) -> EpisodePlan | None:
    """Whether the chat template makes turns and there is room for them; says so if not for all. None: rollouts are single answers.

    Args:
        config: of the run.
        template: of the model.
        row: of the data, on which a wrong answer is tried.

    Raises:
        TemplateRefusedError, ValueError: a template that takes no second turn, or no room for a first one.
    """
    if config.get(NODE) is None:
        return None
    node = OmegaConf.to_container(config[NODE], resolve=True)
    environment = begin(node, row)
    step = settled(environment.step("", True))
    said = "".join(part for part in step.feedback if isinstance(part, str)) if isinstance(step, Step) else ""
    budget = _budget(config, node, environment.generations)
    limits, turns = image_limits(node), budget.max_turns - 1
    shown = -(-limits.images // turns) * (limits.tokens + len(QWEN_VISION) - 1) if limits.images else 0  # of one feedback
    feedback = max(len(template.tokenizer(said, add_special_tokens=False)["input_ids"]), shown)
    plan = EpisodePlan(budget, len(turn_frame(template)), feedback, limits)
    short = budget.check(config.data.max_prompt_length, plan.around, plan.feedback)
    if short is not None:
        logger.warning("%s; raise data.max_response_length, or lower %s.max_turns or %s.max_tokens_per_turn", short, NODE, NODE)
    return plan
