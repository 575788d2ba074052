"""The rollout engine as the driver sees it, asleep while training has the memory, awake to generate; and what it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto
from verl.trainer.ppo.ray_trainer import compute_response_mask
from verl.utils.debug import marked_timer

from unify_posttrain.experience.rules import ResponsePrefix
from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN, SEED_COLUMN, rollout_seeds
from unify_posttrain.startup.memory_plan import reward_model_shares
from unify_posttrain.trainer.response_prefixes import prefix_columns
from unify_posttrain.workers.transport import travelling


class Engine:
    """Remembers whether the engine is awake, i.e. holds the policy's weights; verl's trainer has it in place of its own manager.

    A reward model on the same accelerators takes turns with it: the engine sleeps before anything is scored, and is woken, which
    means that it gets the weights again, only when something is generated.

    Args:
        config: of the run.
        agent_loops: verl's manager of agent loops.
        weights: verl's manager that sends the actor's weights to the engine, and puts the engine to sleep.
    """

    def __init__(self, config: Any, agent_loops: Any, weights: Any) -> None:
        self.agent_loops, self.weights = agent_loops, weights
        self.workers = config.actor_rollout_ref.rollout.agent.num_workers  # which verl wants to share the rows evenly
        self.takes_turns = reward_model_shares(config)
        self.awake, self.step = False, 0

    # What verl's trainer calls

    def update_weights(self, step: int) -> None:
        """Wake it with the weights as they are after a step."""
        self.weights.update_weights(step)
        self.awake, self.step = True, step

    def sleep_replicas(self) -> None:
        """Let it give up its memory, if it has not yet."""
        if self.awake:
            self.weights.sleep_replicas()
            self.awake = False

    # What ours calls

    def receive_weights(self, used: bool, step: int, timing: dict[str, Any]) -> None:
        """A step is over: wake it with its weights if it is used before there are others, now or when it is its turn."""
        self.step = step
        if used and not self.takes_turns:
            self.wake(timing)
        timing.setdefault("update_weights", 0.0)

    def wake(self, timing: dict[str, Any]) -> None:
        """Have it hold the weights after the last step, if it does not yet."""
        if not self.awake:
            with marked_timer("update_weights", timing, color="red"):
                self.update_weights(self.step)

    def give_way(self) -> None:
        """Something is scored next: a reward model on the same accelerators needs the memory."""
        if self.takes_turns:
            self.sleep_replicas()

    def generate(self, requests: DataProto, timing: dict[str, Any], sleep_after: bool, profiled: bool) -> DataProto:
        """One rollout per request, in their order.

        Args:
            timing: is told how long it took.
            sleep_after: nothing more is generated in this step. Before a reward model scores, it sleeps in any case.
            profiled: this step is one of `global_profiler.steps`.
        """
        self.wake(timing)
        with marked_timer("gen", timing, color="red"):
            if profiled:
                self.agent_loops.start_profile(global_step=requests.meta_info["global_steps"])
            padded, pad_size = pad_dataproto_to_divisor(requests, self.workers)
            rollouts = unpad_dataproto(self.agent_loops.generate_sequences(padded), pad_size)
            if sleep_after or self.takes_turns:
                self.sleep_replicas()
            if profiled:
                self.agent_loops.stop_profile()
            timing.update(rollouts.meta_info.pop("timing"))
        return rollouts


def request_seed(config: Any) -> int | None:
    """The seed that requests derive theirs from; None under `trainer.seed_rollouts=false`: the engine draws as it likes."""
    return config.fusion.seed if config.trainer.seed_rollouts else None


def seed_rows(rows: DataProto, seed: int | None, step: int, validate: bool) -> DataProto:
    """Give every request a seed of its own, in place; without `seed`, or if a row belongs to no prompt of a file, there is none."""
    columns = rows.non_tensor_batch
    if seed is not None and "row_id" in columns:
        columns[SEED_COLUMN] = rollout_seeds(seed, step, columns["row_id"], validate=validate)
    return rows


def rollout_requests(
    rows: DataProto, prefixes: Sequence[tuple[ResponsePrefix, ...]], seed: int | None, step: int, max_new_tokens: int | None = None
) -> DataProto:
    """What the engine is asked for: a prompt's row once per response prefix, with a seed from (seed, step, prompt, number).

    `max_new_tokens` is the experience rule's limit on what a rollout may sample, if it has one."""
    requests = seed_rows(rows.select_idxs(_repeated(prefixes)), seed, step, validate=False)
    requests.non_tensor_batch.update(_given(prefixes))
    if max_new_tokens is not None:
        requests.non_tensor_batch[NEW_TOKENS_COLUMN] = np.full(len(requests), max_new_tokens)
    requests.meta_info["global_steps"] = step
    return requests


def with_rollouts(batch: DataProto, rollouts: DataProto, prefixes: Sequence[tuple[ResponsePrefix, ...]]) -> DataProto:
    """The rows of a prompt batch, each repeated for its rollouts and joined with them."""
    batch = travelling(batch.select_idxs(_repeated(prefixes)).union(rollouts))
    batch.non_tensor_batch.update(_given(prefixes))
    if "response_mask" not in batch.batch:
        batch.batch["response_mask"] = compute_response_mask(batch)
    return batch


def _repeated(prefixes: Sequence[tuple[ResponsePrefix, ...]]) -> np.ndarray:
    """The row of its prompt, for every rollout."""
    return np.repeat(np.arange(len(prefixes)), [len(of_prompt) for of_prompt in prefixes])


def _given(prefixes: Sequence[tuple[ResponsePrefix, ...]]) -> dict[str, np.ndarray]:
    return prefix_columns([prefix for of_prompt in prefixes for prefix in of_prompt])
