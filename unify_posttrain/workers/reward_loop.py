"""verl's reward workers, which load tokenizers with the configured trust.

verl's own load them with trust_remote_code=True whatever the configuration says: code of a model folder would run there, although
it is refused everywhere else.
"""

from __future__ import annotations

from typing import Any

from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.utils.fs import copy_to_local


class FusionRewardWorker(RewardLoopWorker):
    """verl's, with its two tokenizers loaded as the configuration trusts them; a reward model's code is never run."""

    def _init_reward_fn(self) -> None:
        model = self.config.actor_rollout_ref.model
        trusted = {copy_to_local(model.path)} if model.get("trust_remote_code", False) else set()
        theirs = reward_loop.hf_tokenizer

        def hf_tokenizer(path: str, **options: Any) -> Any:
            return theirs(path, **{**options, "trust_remote_code": path in trusted})

        reward_loop.hf_tokenizer = hf_tokenizer
        try:
            super()._init_reward_fn()
        finally:
            reward_loop.hf_tokenizer = theirs
