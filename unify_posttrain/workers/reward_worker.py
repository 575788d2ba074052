"""verl's reward worker, in which every reward function is called through `unify_posttrain.rewards.calling`.

verl's collations take the names of the reward fields from the first row and look them up in all others. So every row has exactly
one field here, `reward_outcome`, whatever the function returned and whatever the reward manager added; `trainer.rewards` makes
columns of it.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from verl import DataProto
from verl.experimental.reward_loop import reward_loop
from verl.utils.model import compute_position_id_with_mask

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

    async def compute_score_batch(self, data: DataProto) -> list[dict[str, Any]]:
        """Many rows; what follows from the others need not have been sent (`rollout.scoring`)."""
        tensors = data.batch
        if "input_ids" not in tensors:
            tensors["input_ids"] = torch.cat([tensors["prompts"], tensors["responses"]], dim=1)
            tensors["position_ids"] = compute_position_id_with_mask(tensors["attention_mask"])
        return await super().compute_score_batch(data)

    async def compute_score(self, data: DataProto) -> dict[str, Any]:
        try:
            result = await super().compute_score(data)
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
