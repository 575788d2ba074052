"""verl's reward worker, in which every reward function is called through `unify_posttrain.rewards.calling`.

verl's collations take the names of the reward fields from the first row and look them up in all others. So every row has exactly
one field here, `reward_outcome`, whatever the function returned and whatever the reward manager added; `trainer.rewards` makes
columns of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from copy import deepcopy
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from verl import DataProto
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from unify_posttrain.rewards import calling
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rewards.contract import ACCURACY, ContractError, Scored, sayable
from unify_posttrain.rewards.protection import Protection, function_name
from unify_posttrain.workers.reward_loop import FusionRewardWorker

logger = logging.getLogger(__name__)

CANNOT_AWAIT = ("remote",)  # managers of verl that call a reward function from processes of their own


class FusionRewardLoopWorker(FusionRewardWorker):
    """Scores a row whatever happens: what fails is said in the row's outcome."""

    def __init__(self, config: DictConfig, reward_router_address: str | None = None) -> None:
        self.where = function_name(config.reward.custom_reward_function)
        self.protection = Protection.from_node(config.reward.protection)
        super().__init__(wrapped(config), reward_router_address)

    async def compute_score(self, data: DataProto) -> dict[str, Any]:
        return await self._contained(super().compute_score(data))

    async def compute_score_batch(self, data: DataProto) -> list[dict[str, Any]]:
        """verl's, which cuts the batch into batches of one row for its managers; the plain one only calls the function, so that its
        arguments are made here, of columns."""
        if not self.calls_only:
            return await super().compute_score_batch(data)
        calls = function_calls(data, self.input_tokenizer)
        return await asyncio.gather(*(self._contained(self._called(call)) for call in calls))

    @property
    def calls_only(self) -> bool:
        """Whether the manager does nothing but call our wrapper of a function of text."""
        custom = self.config.reward.custom_reward_function.path is not None
        plain = type(self.reward_manager) is NaiveRewardManager and self.reward_manager.is_async_reward_score
        return custom and plain and self.reward_router_address is None

    async def _called(self, call: dict[str, Any]) -> dict[str, Any]:
        result = await self.reward_manager.compute_score(**call)
        return {"reward_score": result["score"], "reward_extra_info": result}

    async def _contained(self, scoring: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        try:
            result = await scoring
            scored = self._outcome(result["reward_score"], dict(result.get("reward_extra_info", {})))
        except Exception as error:  # a manager's own, a reward model's
            logger.exception("%s: a row could not be scored", self.where)
            scored = Scored.failed("error", f"{type(error).__name__}: {error}")
        return {"reward_score": scored.score, "reward_extra_info": {OUTCOME: scored.to_dict()}}

    def _outcome(self, score: Any, extra: dict[str, Any]) -> Scored:
        """The function's own outcome, with the score and the fields that the manager made of it."""
        found = extra.pop(OUTCOME, None)
        extra.pop("score", None)
        if found is None:
            failed = next((kind for kind in ("timeout", "error") if extra.get(kind)), None)  # how verl's rate_limited says it
            if failed is not None:
                return Scored.failed(failed, str(extra[failed]))
            own = Scored(0.0)
        else:
            own = Scored.from_dict(found)
        if own.fault is not None or own.unscored:
            return own
        number = _number(score)
        if number is None:
            return Scored(0.0, own.fields, unscored=True, detail=f"the reward manager gave no score: {score}")
        try:
            added = {name: sayable(value, self.protection.field_characters) for name, value in extra.items()}
        except (TypeError, RecursionError) as error:
            raise ContractError(f"the reward manager added a field that JSON cannot say: {error}") from None
        # A number alone is also its accuracy, as verl's managers have it.
        fields = own.fields if own.fields or found is None else {ACCURACY: own.score}
        return Scored(number, {**fields, **added})


def function_calls(data: DataProto, tokenizer: Any) -> list[dict[str, Any]]:
    """The arguments of the reward function for every row, as verl's plain manager makes them of a row."""
    columns, responses = data.non_tensor_batch, data.batch["responses"]
    lengths = data.batch["attention_mask"][:, -responses.shape[1] :].sum(dim=-1).tolist()
    nothing = [None] * len(data)
    turns = columns.get("__num_turns__", nothing)
    scores, told = columns.get("reward_scores", [{}] * len(data)), columns.get("tool_extra_fields", nothing)
    calls = []
    for row, (ids, length) in enumerate(zip(responses.tolist(), lengths, strict=True)):
        given = columns["extra_info"][row] if "extra_info" in columns else {}
        # Rollouts of a prompt share what is in their row; a function that changes it must not reach the others.
        extra_info = deepcopy({**given, **(told[row] or {})})
        calls.append(
            {
                "data_source": columns["data_source"][row],
                "solution_str": tokenizer.decode(ids[:length], skip_special_tokens=True),
                "ground_truth": columns["reward_model"][row]["ground_truth"],
                "extra_info": {**extra_info, "num_turns": turns[row], "rollout_reward_scores": scores[row]},
            }
        )
    return calls


def _number(score: Any) -> float | None:
    plain = sayable(score, 100)
    return None if plain is None else float(plain)


def wrapped(config: DictConfig) -> DictConfig:
    """The configuration for verl's worker, in which the reward function is ours around the user's."""
    node = config.reward.custom_reward_function
    if node.path is None:  # a reward model alone
        return config
    config = config.copy()
    name = "compute_score_sync" if config.reward.reward_manager.name in CANNOT_AWAIT else "compute_score"
    settings = calling.as_settings(
        OmegaConf.to_container(node, resolve=True), Protection.from_node(OmegaConf.to_container(config.reward.protection))
    )
    with open_dict(config):
        config.reward.custom_reward_function = {
            "path": f"pkg://{calling.__name__}",
            "name": name,
            "reward_kwargs": {"settings": settings},
        }
    return config


def install() -> None:
    """Have verl's manager start these workers; it looks the class up when it is built."""
    reward_loop.RewardLoopWorker = FusionRewardLoopWorker
