"""Rows are ordered as verl orders them, whether or not it is asked how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verl import DataProto
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.ray_trainer import RayPPOTrainer

from unify_posttrain.trainer.balance import balance_rows


def balanced(ranks: int, work: Any) -> tuple[list[int], dict[str, float]]:
    lengths = torch.randint(1, 9, (24,), generator=torch.Generator().manual_seed(ranks))
    mask = (torch.arange(8) < lengths.unsqueeze(-1)).long()
    batch = DataProto.from_dict(tensors={"attention_mask": mask, "row": torch.arange(24)})
    trainer = SimpleNamespace(actor_rollout_wg=None, _get_dp_size=lambda group, role: ranks)
    trainer._balance_batch = lambda *args, **kwargs: RayPPOTrainer._balance_batch(trainer, *args, **kwargs)
    metrics: dict[str, float] = {}
    work(trainer, batch, metrics)
    return batch.batch["row"].tolist(), metrics


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_order_and_the_metrics_are_verls(ranks: int) -> None:
    ours = balanced(ranks, balance_rows)
    theirs = balanced(ranks, lambda trainer, batch, metrics: trainer._balance_batch(batch, metrics=metrics))
    assert ours == theirs and ours[0] != list(range(24)) and "global_seqlen/min" in ours[1]


def test_one_rank_asks_nobody_and_leaves_verl_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def partitions(lengths: Any, k_partitions: int, equal_size: bool) -> list[list[int]]:
        asked.append(k_partitions)
        return [list(range(part, 24, k_partitions)) for part in range(k_partitions)]

    monkeypatch.setattr(ray_trainer, "get_seqlen_balanced_partitions", partitions)
    balanced(1, balance_rows)
    assert asked == []
    balanced(3, balance_rows)
    assert asked == [3] and ray_trainer.get_seqlen_balanced_partitions is partitions
