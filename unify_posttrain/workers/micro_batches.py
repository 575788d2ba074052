"""Cutting rows into micro-batches so that every rank cuts as many.

Each forward pass of a sharded model gathers its weights from all ranks: a rank with one micro-batch more than the others waits for
ever. Ranks hold equally many rows, so cuts by rows agree; cuts by tokens agree only if the ranks are asked, which verl's actor
and critic leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from verl import DataProto
from verl.utils.seqlen_balancing import prepare_dynamic_batch, restore_dynamic_batch

CALCULATE_ENTROPY = "calculate_entropy"  # meta_info of a log-prob stage: false for one whose entropies nobody reads


def micro_batches(mini_batch: DataProto, config: Any, sequence_parallel_size: int) -> list[DataProto]:
    """The micro-batches of an update, by `config.ppo_micro_batch_size_per_gpu` rows or `ppo_max_token_len_per_gpu` tokens.

    Args:
        mini_batch: this rank's rows of one optimizer step.
        config: verl's actor or critic node.
        sequence_parallel_size: ranks that share a row's tokens.
    """
    if not config.use_dynamic_bsz:
        return mini_batch.split(config.ppo_micro_batch_size_per_gpu)
    max_tokens = config.ppo_max_token_len_per_gpu * sequence_parallel_size
    return prepare_dynamic_batch(mini_batch, max_token_len=max_tokens, dp_group=dist.group.WORLD)[0]


def forward_in_step(
    forward: Callable[[DataProto], dict[str, Tensor]], data: DataProto, sequence_parallel_size: int
) -> dict[str, Tensor]:
    """verl's `forward` (a `compute_log_prob` or `compute_values`) with dynamic micro-batches, equally many on every rank.

    Args:
        forward: called with each micro-batch, told by its meta_info not to cut further; returns (rows, …) tensors by name.
        data: this rank's rows; meta_info `use_dynamic_bsz`, `max_token_len` in tokens.
        sequence_parallel_size: ranks that share a row's tokens.

    Returns:
        What `forward` returns for all of `data`, in its order of rows.
    """
    if not data.meta_info["use_dynamic_bsz"] or dist.get_world_size() == 1:
        return forward(data)
    max_tokens = data.meta_info["max_token_len"] * sequence_parallel_size
    parts, indices = prepare_dynamic_batch(data, max_token_len=max_tokens, dp_group=dist.group.WORLD)
    outputs = []
    for part in parts:
        part.meta_info.update(use_dynamic_bsz=False, micro_batch_size=len(part))
        outputs.append(forward(part))
    return {name: restore_dynamic_batch(torch.cat([output[name] for output in outputs]), indices) for name in outputs[0]}
