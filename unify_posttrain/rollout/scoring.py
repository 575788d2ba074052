"""Rewards for rollouts as they finish: a reward worker that is free gets all that waits, in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tensordict import TensorDict
from verl import DataProto

from unify_posttrain.rollout.single_turn import Answer, Request, assembled

# What verl's reward managers read of a batch; the rest of it follows from these (`workers.reward_worker`).
READ = ("prompts", "responses", "attention_mask")


class Scoring:
    """The scores of a batch, asked for in parts.

    Args:
        workers: verl's reward workers.
        columns: of the whole batch.
        asked: its requests.
        config: of the rollout, for the widths.
        pad_id: fills short rows.
    """

    def __init__(
        self, workers: Sequence[Any], columns: Mapping[str, np.ndarray], asked: Sequence[Request], config: Any, pad_id: int
    ) -> None:
        self.workers, self.columns, self.asked = list(workers), columns, asked
        self.widths, self.pad_id = (config.prompt_length, config.response_length), pad_id
        self._waiting: list[tuple[int, Answer]] = []
        self._free = list(range(len(self.workers)))
        self._running: set[asyncio.Task[None]] = set()
        self._found: list[Any] = [None] * len(asked)
        self._errors: list[BaseException] = []

    def add(self, rows: Sequence[int], answers: Sequence[Answer]) -> None:
        """Rows that are finished."""
        self._waiting += zip(rows, answers, strict=True)
        self._send()

    async def results(self) -> list[Any]:
        """One result per row of the batch, when all of them have been added.

        Raises:
            Exception: a reward worker's own.
        """
        while self._running:
            await asyncio.wait(self._running)
        if self._errors:
            raise self._errors[0]
        return self._found

    def _send(self) -> None:
        while self._waiting and self._free:
            size = -(-len(self._waiting) // len(self._free))
            part, self._waiting = self._waiting[:size], self._waiting[size:]
            task = asyncio.get_running_loop().create_task(self._score(self._free.pop(), part))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _score(self, worker: int, part: Sequence[tuple[int, Answer]]) -> None:
        try:
            results = await self.workers[worker].compute_score_batch.remote(self._batch(part))
            for (row, _), result in zip(part, results, strict=True):
                self._found[row] = result
        except BaseException as error:  # whoever asks for the results hears of it
            self._errors.append(error)
        finally:
            self._free.append(worker)
            if not self._errors:
                self._send()

    def _batch(self, part: Sequence[tuple[int, Answer]]) -> DataProto:
        rows = [row for row, _ in part]
        whole = assembled([self.asked[row] for row in rows], [answer for _, answer in part], *self.widths, self.pad_id)
        columns = {name: column[rows] for name, column in self.columns.items()}
        columns["__num_turns__"] = np.full(len(rows), 2, dtype=np.int32)
        fields = np.empty(len(rows), dtype=object)
        fields[:] = [{**(answer.extra_fields or {}), "raw_prompt": self.columns["raw_prompt"][row]} for row, answer in part]
        columns["tool_extra_fields"] = fields
        return DataProto(batch=TensorDict({name: whole[name] for name in READ}, batch_size=len(rows)), non_tensor_batch=columns)
