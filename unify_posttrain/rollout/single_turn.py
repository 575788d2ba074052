"""Batches of single-turn rollouts: what the engine is asked for, and the batch that its answers make.

The batch is that of verl's agent loops, field by field; it is made of whole arrays instead of one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils.model import compute_position_id_with_mask

from unify_posttrain.rollout.agent_loop import NEW_TOKENS_COLUMN, PREFIX_COLUMN, PREFIX_TRAINED_COLUMN, SEED_COLUMN

# Of verl's loops, whatever they do: so that batches of all of them can be joined.
EXTRA_FIELDS = ("turn_scores", "tool_rewards", "min_global_steps", "max_global_steps", "extras")


@dataclass(frozen=True)
class Request:
    """One rollout.

    Attributes:
        prompt: token ids.
        prefix: token ids that the response begins with.
        prefix_trained: whether these are trained as if they were sampled.
        room: tokens that may be sampled.
        params: of the request to the engine: temperature, top_p, seed, max_tokens and so on.
    """

    prompt: list[int]
    prefix: list[int]
    prefix_trained: bool
    room: int
    params: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the engine has sampled for a request.

    Attributes:
        token_ids: sampled tokens.
        log_probs: of these, if they were asked for.
        extra_fields: of the engine.
    """

    token_ids: Sequence[int]
    log_probs: Sequence[float] | None = None
    extra_fields: Mapping[str, Any] | None = None


def requests(
    columns: Mapping[str, np.ndarray], render: Callable[[Sequence[Mapping[str, Any]]], list[int]], sampling: Mapping[str, Any],
    prompt_length: int, response_length: int,
) -> list[Request]:  # fmt: skip
    """The requests of a batch; each prompt is rendered once, however many rollouts it has.

    Args:
        columns: of the batch, `raw_prompt` and those of `agent_loop`.
        render: messages -> token ids.
        sampling: parameters that all share.
        prompt_length, response_length: limits, of the configuration.

    Raises:
        ValueError: a prompt is too long, or a response prefix leaves no room.
    """
    rendered: dict[int, list[int]] = {}
    made = []
    for row, messages in enumerate(columns["raw_prompt"]):
        if id(messages) not in rendered:
            rendered[id(messages)] = render(messages)
        prompt = rendered[id(messages)]
        if len(prompt) > prompt_length:
            raise ValueError(f"a prompt has {len(prompt)} tokens, more than data.max_prompt_length={prompt_length}")
        prefix = [int(token) for token in columns[PREFIX_COLUMN][row]] if PREFIX_COLUMN in columns else []
        limit = int(columns[NEW_TOKENS_COLUMN][row]) if NEW_TOKENS_COLUMN in columns else response_length
        room = min(response_length - len(prefix), limit)
        if room < 1:
            raise ValueError(
                f"a response prefix of {len(prefix)} tokens leaves no room to generate in "
                f"data.max_response_length={response_length}"
            )
        params = dict(sampling)
        if SEED_COLUMN in columns:
            params["seed"] = int(columns[SEED_COLUMN][row])
        if prefix or room < response_length:
            params["max_tokens"] = room
        trained = bool(prefix) and bool(columns[PREFIX_TRAINED_COLUMN][row])
        made.append(Request(prompt, prefix, trained, room, params))
    return made


def assembled(
    asked: Sequence[Request], answers: Sequence[Answer], prompt_length: int, response_length: int, pad_id: int
) -> TensorDict:
    """The tensors of a batch of B rollouts.

    Returns:
        prompts (B, P), padded on the left; responses, response_mask (B, R), padded on the right; input_ids, attention_mask,
        position_ids (B, P + R); rollout_log_probs (B, R) if the answers have log-probs, 0 for tokens that were given.
    """
    rows = len(asked)
    ids = np.full((rows, prompt_length + response_length), pad_id, dtype=np.int64)
    attention = np.zeros_like(ids)
    mask = np.zeros((rows, response_length), dtype=np.int64)
    log_probs = np.zeros((rows, response_length), dtype=np.float32)
    for row, (request, answer) in enumerate(zip(asked, answers, strict=True)):
        given, begin = len(request.prefix), prompt_length - len(request.prompt)
        sampled = answer.token_ids[: request.room]
        end = given + len(sampled)
        ids[row, begin:prompt_length] = request.prompt
        ids[row, prompt_length : prompt_length + given] = request.prefix
        ids[row, prompt_length + given : prompt_length + end] = sampled
        attention[row, begin : prompt_length + end] = 1
        mask[row, :given] = request.prefix_trained
        mask[row, given:end] = 1
        if answer.log_probs is not None:
            log_probs[row, given:end] = answer.log_probs[: request.room]
    input_ids, attention_mask = torch.from_numpy(ids), torch.from_numpy(attention)
    tensors = {
        "prompts": input_ids[:, :prompt_length].clone(),
        "responses": input_ids[:, prompt_length:].clone(),
        "response_mask": torch.from_numpy(mask),
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": compute_position_id_with_mask(attention_mask),
    }
    if answers[0].log_probs:
        tensors["rollout_log_probs"] = torch.from_numpy(log_probs)
    return TensorDict(tensors, batch_size=rows)


def reward_tensor(scores: Sequence[float], tensors: TensorDict) -> Tensor:
    """(B, R): every score on the last token of its response, as verl places it."""
    mask = tensors["response_mask"]
    last = tensors["attention_mask"][:, tensors["prompts"].size(1) :].sum(dim=1) - 1
    placed = torch.zeros_like(mask, dtype=torch.float32)
    placed[torch.arange(len(scores)), last] = torch.tensor(scores, dtype=torch.float32)
    return placed


def extra_columns(
    raw_prompts: np.ndarray, answers: Sequence[Answer], infos: Sequence[Mapping[str, Any]] | None
) -> dict[str, np.ndarray]:
    """The columns that verl's loops add: turns, the engine's own fields, what the reward says of each row.

    Args:
        infos: of the reward worker, per row; None: nothing was scored.
    """
    rows = len(answers)
    columns: dict[str, np.ndarray] = {
        "__num_turns__": np.full(rows, 2, dtype=np.int32),
        "multi_modal_inputs": np.array([{} for _ in range(rows)], dtype=object),
    }
    fields: list[dict[str, Any]] = [{**(answer.extra_fields or {}), "turn_scores": [], "tool_rewards": []} for answer in answers]
    for row, prompt in enumerate(raw_prompts):
        fields[row]["raw_prompt"] = prompt
    if infos is not None:
        for row, info in enumerate(infos):
            fields[row]["reward_extra_info"] = info
        for name in infos[0]:
            columns[name] = np.array([info[name] for info in infos])
    for name in sorted({key for each in fields for key in each} | set(EXTRA_FIELDS)):
        column = np.empty(rows, dtype=object)
        column[:] = [each.get(name) for each in fields]
        columns[name] = column
    return columns
