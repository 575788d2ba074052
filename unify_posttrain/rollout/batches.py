"""For engines that answer one request at a time and many of them at once: a whole batch in one call, sent back as its rows end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import numpy as np
from verl.workers.rollout.replica import TokenOutput

from unify_posttrain.rollout.rows import Requests, Responses


class AnswersBatches:
    """Part of a server that has verl's `generate`."""

    async def generate_batch(self, requests: Requests) -> AsyncIterator[Responses]:
        """All rows of a batch, sent back in portions as they end. The error of a row is the batch's; the others are given up."""
        ended: asyncio.Queue[tuple[int, TokenOutput | Exception]] = asyncio.Queue()

        async def answer(row: int) -> None:
            try:
                output = await self.generate(  # type: ignore[attr-defined]
                    prompt_ids=requests.prompts[row].tolist(), sampling_params=requests.params(row), request_id=uuid4().hex
                )
            except Exception as error:  # whatever it is, who waits for the batch must hear of it
                output = error
            ended.put_nowait((row, output))

        tasks = [asyncio.ensure_future(answer(row)) for row in range(len(requests))]
        try:
            waiting: list[tuple[int, TokenOutput]] = []
            for left in range(len(requests) - 1, -1, -1):
                row, output = await ended.get()
                if isinstance(output, Exception):
                    raise output
                waiting.append((row, output))
                if not left or len(waiting) >= requests.portion:
                    yield _responses(waiting)
                    waiting = []
        finally:
            for task in tasks:
                task.cancel()


def _responses(outputs: list[tuple[int, TokenOutput]]) -> Responses:
    found = [output for _, output in outputs]
    log_probs = None
    if found[0].log_probs is not None:
        log_probs = np.concatenate([np.asarray(output.log_probs, dtype=np.float32) for output in found])
    preempted: Any = [output.num_preempted for output in found]
    return Responses(
        rows=np.array([row for row, _ in outputs]),
        lengths=np.array([len(output.token_ids) for output in found]),
        token_ids=np.concatenate([np.asarray(output.token_ids, dtype=np.int32) for output in found]),
        log_probs=log_probs,
        preempted=None if None in preempted else np.array(preempted),
        fields=dict(found[0].extra_fields),
    )
