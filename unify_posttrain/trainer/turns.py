"""What the trainer does with the turns of its rollouts: rewards on their tokens, advantages over them, and metrics of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from verl import DataProto

from unify_posttrain.experience.mixer import PREFIX_LENGTH
from unify_posttrain.experience.transcript import ENDED, LENGTH, SOLVED, TURNS
from unify_posttrain.experience.turn_advantages import place_turn_rewards, turn_gae
from unify_posttrain.rewards.contract import SCORE
from unify_posttrain.rollout.environment_loop import STOP, TURN_SCORES
from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, read_settings
from unify_posttrain.trainer.rewards import KEYS

OUTCOME_PREFIX = "outcome_"  # of fields that count the turns with an outcome
SUMMED = ("faults",)  # fields that are counted, not averaged


@dataclass(frozen=True)
class Turns:
    """Of a run whose rollouts are episodes.

    Attributes:
        settings: whose reward a token gets, and over what advantages are estimated.
        gamma, lam: `algorithm.gamma` and `algorithm.lam`; under gae=turn per turn.
    """

    settings: EpisodeSettings
    gamma: float
    lam: float

    @classmethod
    def from_config(cls, config: Any) -> Turns | None:
        """None for a run whose rollouts are single answers."""
        if config.get(NODE) is None:
            return None
        settings, _ = read_settings(OmegaConf.to_container(config[NODE], resolve=True))
        return cls(settings, config.algorithm.gamma, config.algorithm.lam)

    def read(self, rollouts: DataProto | None) -> dict[str, float]:
        """Under credit=turn, put the rewards of turns on their tokens, in place; and `environment/*` metrics of the rollouts.

        Raises:
            ValueError: a row with another number of turns in its mask than of rewards.
        """
        if rollouts is None:
            return {}
        if self.settings.credit == "turn":
            tensors = rollouts.batch
            scores = tensors["rm_scores"].sum(dim=-1)
            rewards = [list(of_row) or None for of_row in rollouts.non_tensor_batch[TURN_SCORES]]  # none: a single answer
            tensors["rm_scores"] = place_turn_rewards(rewards, scores, tensors["response_mask"])
        return turn_metrics(rollouts)

    def estimate(self, batch: DataProto) -> None:
        """Under gae=turn, put advantages and returns over turns in the place of verl's over tokens."""
        if self.settings.gae == "turn":
            tensors = batch.batch
            streams = (tensors[name] for name in ("token_level_rewards", "values", "response_mask"))
            tensors["advantages"], tensors["returns"] = turn_gae(*streams, self.gamma, self.lam)


def turn_metrics(rollouts: DataProto) -> dict[str, float]:
    """`environment/*` of scored rollouts, what the gate drops included.

    Means over episodes of every number that the environment says of them, `outcome/NAME` the share of turns with that outcome,
    `stop_REASON` the share of episodes that ended so, `turn_reward` the mean over turns, `feedback_tokens` the mean per episode of
    tokens that nobody sampled, and the number of `faults`.
    """
    columns, names = rollouts.non_tensor_batch, rollouts.meta_info.get(KEYS, ())
    rewards = [float(reward) for of_row in columns[TURN_SCORES] for reward in of_row]
    fields = {name: columns[name].astype(float) for name in names if name != SCORE and columns[name].dtype.kind in "fiub"}
    found = {
        "feedback_tokens": float(_feedback(rollouts).sum(dim=-1).float().mean()),
        "turn_reward": sum(rewards) / max(1, len(rewards)),
    }
    for name, values in fields.items():
        if name.startswith(OUTCOME_PREFIX):
            found[f"outcome/{name.removeprefix(OUTCOME_PREFIX)}"] = float(np.nansum(values)) / max(1, len(rewards))
        else:
            found[name] = float(np.nansum(values) if name in SUMMED or np.isnan(values).all() else np.nanmean(values))
    stops = list(columns.get(STOP, ()))
    found |= {f"stop_{reason}": stops.count(reason) / len(rollouts) for reason in (SOLVED, LENGTH, TURNS, ENDED)}
    return {f"{NODE}/{name}": value for name, value in found.items()}


def _feedback(rollouts: DataProto) -> torch.Tensor:
    """(B, T): tokens of a response that were neither sampled nor given to begin with."""
    tensors, columns = rollouts.batch, rollouts.non_tensor_batch
    mask = tensors["response_mask"].bool()
    attended = tensors["attention_mask"][:, -mask.shape[-1] :].bool()
    given = torch.from_numpy(columns.get(PREFIX_LENGTH, np.zeros(len(rollouts))).astype(np.int64)).unsqueeze(-1)
    return attended & ~mask & (torch.arange(mask.shape[-1]) >= given)
