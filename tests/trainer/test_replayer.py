"""The replayer: which prompts are remembered, and what the batch of a fine-tuning step looks like."""

from __future__ import annotations

import json

import pytest
import torch
from verl import DataProto

from unify_posttrain.experience.demonstrations import Demonstration
from unify_posttrain.experience.replay import ReplayBuffer
from unify_posttrain.experience.rules import Group, RolloutsOnly
from unify_posttrain.objective import token_class
from unify_posttrain.trainer.replayer import Replayer

EOS, PAD = 2, 0


def replayer(size: int = 4, mini_batch: int | None = None, dedup: bool = True) -> Replayer:
    return Replayer(ReplayBuffer(size, "newest", dedup, None, seed=0), mini_batch, 3, 5, PAD, temperature=1.0)


def demonstration(row_id: int) -> Demonstration:
    """Its first response token names it; 2 to 5 tokens."""
    return Demonstration(row_id, 0, (7,) * (1 + row_id % 3), (100 + row_id, *[9] * (row_id % 4), EOS))


def collect(it: Replayer, step: int, solved: dict[int, int], without: tuple[int, ...] = ()) -> None:
    """A step whose prompts `row_id -> solved rollouts` had demonstrations, except some."""
    plan = RolloutsOnly(4, needs_target=True).plan([Group(f"u{row}", s, 4, row not in without) for row, s in solved.items()])
    it.collect(plan, {f"u{row}": demonstration(row) for row in solved if row not in without}, step)


def held(it: Replayer) -> list[int]:
    return [entry["row_id"] for entry in it.buffer.state["entries"]]


def names(batch) -> list[int]:
    """Prompts of the trained rows, in the order of the batch."""
    trained = batch.batch["response_mask"].any(dim=-1)
    return [int(row[0]) - 100 for row in batch.batch["responses"][trained]]


def test_only_unsolved_prompts_with_a_demonstration_are_remembered() -> None:
    it = replayer(size=9)
    collect(it, 1, {1: 0, 2: 1, 3: 0, 4: 4, 5: 0}, without=(3,))
    assert held(it) == [1, 5]
    collect(it, 2, {6: 2})
    assert held(it) == [1, 5]
    assert it.take(2, ranks=1) is None  # fewer than M


def test_the_batch_of_a_fine_tuning_step() -> None:
    it = replayer()
    collect(it, 1, {1: 0, 2: 0, 3: 0})
    assert it.take(1, ranks=1) is None
    collect(it, 2, {4: 0, 5: 0})
    batch = it.take(2, ranks=1)
    assert sorted(names(batch)) == [1, 2, 4, 5] and held(it) == [3]  # the specification's vector: newest first
    t = batch.batch
    assert not torch.any(token_class(t, "on")) and torch.equal(token_class(t, "demo"), t["response_mask"].bool())
    for row, name in enumerate(names(batch)):
        own = demonstration(name)
        attended = t["attention_mask"][row].bool()
        assert t["input_ids"][row][attended].tolist() == [*own.prompt_ids, *own.response_ids]
        assert t["response_mask"][row].sum() == len(own.response_ids)
    assert not [name for name in dict(t.items()) if name.endswith("_weight")]  # the replay terms weigh their rows alike
    assert batch.meta_info == {
        "objective": "replay",
        "mini_batches": 1,
        "temperature": 1.0,
        "global_token_num": t["attention_mask"].sum(dim=-1).tolist(),
        "images_seqlens": [],
    }
    assert it.take(2, ranks=1) is None


@pytest.mark.parametrize(
    ("ranks", "mini_batch", "rows", "mini_batches"), [(1, 2, 4, 2), (3, None, 6, 1), (3, 2, 6, 2), (8, 1, 32, 4)]
)
def test_rows_are_dealt_to_ranks_and_optimizer_steps(ranks: int, mini_batch: int | None, rows: int, mini_batches: int) -> None:
    """Padding makes four entries divisible; every block (rank, step) is of equal size and no entry is lost or doubled."""
    it = replayer(4, mini_batch)
    collect(it, 1, dict.fromkeys(range(4), 0))
    batch = it.take(1, ranks)
    assert len(batch) == rows and batch.meta_info["mini_batches"] == mini_batches
    assert sorted(names(batch)) == [0, 1, 2, 3]
    mask = batch.batch["response_mask"].any(dim=-1)
    per_block = mask.reshape(ranks * mini_batches, -1).sum(dim=-1)
    assert per_block.max() - per_block.min() <= 1
    assert batch.batch["attention_mask"].any(dim=-1).all(), "the model needs tokens to attend to"
    assert not batch.batch["prefix_mask"][~mask].any()
    # every optimizer step of a run on `ranks` ranks has something to learn from
    steps = mask.reshape(ranks, mini_batches, -1).any(dim=-1).any(dim=0)
    assert steps.all()


def test_repeated_questions_are_rows_of_their_own() -> None:
    it = replayer(3, dedup=False)
    for step in (1, 2, 3):
        collect(it, step, {1: 0})
    batch = it.take(3, ranks=1)
    assert names(batch) == [1, 1, 1] and len(set(batch.non_tensor_batch["uid"])) == 3


def test_nothing_is_lost_over_a_resume() -> None:
    it, resumed = replayer(), replayer()
    collect(it, 1, {1: 0, 2: 0, 3: 0})
    resumed.buffer.state = json.loads(json.dumps(it.buffer.state))
    for each in (it, resumed):
        collect(each, 2, {2: 0, 6: 0})
    first, second = it.take(2, ranks=2), resumed.take(2, ranks=2)
    assert all(torch.equal(value, second.batch[name]) for name, value in first.batch.items())
    assert held(it) == held(resumed)


class Port:
    """Workers on two ranks that fine-tune with a loss of 2."""

    ranks = 2

    def __init__(self) -> None:
        self.rows: list[int] = []

    def update_replay(self, batch: DataProto) -> dict[str, float]:
        self.rows.append(len(names(batch)))
        return {"fusion/sft_nll": 3.0, "fusion/total_loss": 2.0, "actor/grad_norm": 0.5, "actor/lr": 1e-5, "actor/other": 9.0}


def test_a_fine_tuning_step_is_taken_when_the_buffer_is_full() -> None:
    it, port, timing = replayer(), Port(), {}
    collect(it, 1, {1: 0, 2: 0, 3: 0})
    none = {f"fusion/replay_{name}": 0.0 for name in ("nll", "loss", "grad_norm", "lr")} | {"fusion/sft_step": 0.0}
    assert it.fine_tune(port, 1, timing) == {**none, "fusion/buffer_size": 3.0, "fusion/replay_rows": 0.0} and not timing
    collect(it, 2, {4: 0, 5: 0})
    assert it.fine_tune(port, 2, timing) == {
        "fusion/replay_nll": 3.0,
        "fusion/replay_loss": 2.0,
        "fusion/replay_grad_norm": 0.5,
        "fusion/replay_lr": 1e-5,
        "fusion/sft_step": 1.0,
        "fusion/buffer_size": 1.0,  # of five
        "fusion/replay_rows": 4.0,
    }
    assert port.rows == [4] and set(timing) == {"update_replay"}


def test_an_algorithm_without_a_buffer_replays_nothing() -> None:
    it = Replayer(None, None, 3, 5, PAD, temperature=1.0)
    collect(it, 1, dict.fromkeys(range(9), 0))
    assert it.state is None and set(it.fine_tune(Port(), 1, {}).values()) == {0.0}
