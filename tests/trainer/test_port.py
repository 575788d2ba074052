"""The legacy port: what the workers receive, and what comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from verl import DataProto

from unify_posttrain.trainer.port import WorkerPort
from unify_posttrain.workers.micro_batches import CALCULATE_ENTROPY


class Group:
    """A worker group that remembers what it was asked; verl collects one value of a metric per mini-batch and rank."""

    def __init__(self, **metrics: list[float]) -> None:
        self.metrics, self.asked = metrics, []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> DataProto:
            batch = arguments[0]
            self.asked.append((name, batch.meta_info.get(CALCULATE_ENTROPY) if isinstance(batch, DataProto) else arguments))
            return DataProto.from_dict(tensors={"x": torch.zeros(2)}, meta_info={"metrics": dict(self.metrics)})

        return call


def batch() -> DataProto:
    return DataProto.from_dict(tensors={"responses": torch.zeros(2, 3)})


@pytest.mark.parametrize("entropy", [True, False])
def test_log_probs_say_whether_entropies_are_wanted(entropy: bool) -> None:
    actor, rows = Group(), batch()
    _, mfu = WorkerPort(actor, None, 1).log_probs(rows, entropy)
    assert actor.asked == [("compute_log_prob", entropy)] and mfu == 0
    assert CALCULATE_ENTROPY not in rows.meta_info


def test_the_reference_has_workers_of_its_own() -> None:
    actor, reference = Group(), Group()
    WorkerPort(actor, reference, 1).reference(batch())
    assert not actor.asked and reference.asked == [("compute_ref_log_prob", None)]


@pytest.mark.parametrize("name", ["update", "update_replay"])
def test_metrics_of_updates_are_reduced(name: str) -> None:
    actor = Group(loss=[1.0, 2.0], largest_max=[1.0, 2.0])
    found = getattr(WorkerPort(actor, None, 2), name)(batch())
    assert found == {"loss": 1.5, "largest_max": 2.0}
    assert [asked for asked, _ in actor.asked] == ["update_actor" if name == "update" else name]


def test_a_phase_begins_on_all_workers() -> None:
    actor = Group()
    WorkerPort(actor, None, 2).start_phase(1, 40)
    assert actor.asked == [("start_phase", (1, 40))]
