"""Rows to which no term gives a gradient are left out of an update (`fusion.skip_zero_advantage`): what is trained stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from verl import DataProto

from tests.ranks import run_ranks
from unify_posttrain.algorithms import ALGORITHMS

from .actor_kit import gradient_distance, make_actor, make_batch, make_model, start_group
from .packed_kit import FEW

SKIPPING = {"fusion.skip_zero_advantage": True}
NO_BONUS = "actor_rollout_ref.actor.entropy_coeff=0"  # an entropy bonus acts on every row
TOLERANCE = 1e-6
EXACT = ("loss", "clipfrac", "clipfrac_lower", "rho_on_mean", "rho_demo_mean", "grad_norm", "optimizer_steps")


EVERY = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in sorted(ALGORITHMS)]
# Whether a row of theirs has a gradient, its probabilities or those of the rows beside it decide.
WEIGHED_BY_THE_MODEL = ("online_sft", "prefix_rft")


def idle_batch(rows: int = 16, demonstrations: int = 4, mini_batches: int = 2) -> DataProto:
    """Demonstrations, then rollouts, of which all but every third have no advantage and weigh nothing as demonstrations do."""
    batch = make_batch(rows=rows, demonstrations=demonstrations, hints=2, padding=1)
    idle = torch.arange(demonstrations, rows)[torch.arange(rows - demonstrations) % 3 > 0]
    batch.batch["advantages"][idle] = 0
    batch.meta_info["mini_batches"] = mini_batches
    return batch


def flags(name: str) -> tuple[str, ...]:
    few = ("actor_rollout_ref.actor.ppo_mini_batch_size=8",) if name == "online_sft" else ()
    return (f"algorithm={name}", "actor_rollout_ref.actor.ppo_epochs=1", NO_BONUS, *few)


def seen_rows(actor: Any) -> list[int]:
    """Fills up with the rows of each forward pass."""
    seen: list[int] = []
    actor.actor_module.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(len(inputs["attention_mask"])), with_kwargs=True
    )
    return seen


def close(found: Mapping[str, float], expected: Mapping[str, float]) -> None:
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        if key.endswith(EXACT):
            assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_takes_the_gradient_of_all_rows(name: str) -> None:
    micro_rows = {"ppo_micro_batch_size_per_gpu": 3}
    whole, skipping = (make_actor(*flags(name), settings={**micro_rows, **more}) for more in ({}, SKIPPING))
    rows = seen_rows(skipping)
    expected, found = (actor.update_policy(idle_batch()) for actor in (whole, skipping))
    assert len(whole.gradients) == len(skipping.gradients) == expected["fusion/optimizer_steps"] > 0
    for mine, reference in zip(skipping.gradients, whole.gradients, strict=True):
        assert gradient_distance(mine, reference) < TOLERANCE
    close(found, expected)
    assert expected["fusion/skipped_rows"] == 0
    assert sum(rows) <= 16 - found["fusion/skipped_rows"]


@pytest.mark.parametrize("name", EVERY)
def test_the_rows_left_out_are_those_without_a_gradient(name: str) -> None:
    """Row by row, as each would be trained alone; one optimizer step, whose ratios are 1, so that no clip takes a gradient away."""
    batch = idle_batch(mini_batches=1)
    alone = make_actor(*flags(name))
    for row in range(len(batch)):
        alone.update_policy(batch.select_idxs(np.array([row])))
    learns = sum(any(bool(gradient.any()) for gradient in each.values()) for each in alone.gradients)
    skipping = make_actor(*flags(name), settings=SKIPPING)
    rows = seen_rows(skipping)
    found = skipping.update_policy(batch)
    if name in WEIGHED_BY_THE_MODEL:
        assert learns <= sum(rows) == 15 - found["fusion/skipped_rows"], "one of 16 is padding"
    else:
        assert 15 - found["fusion/skipped_rows"] == sum(rows) == learns > 0


@pytest.mark.parametrize("bonus", ["actor_rollout_ref.actor.entropy_coeff=0.01", "actor_rollout_ref.actor.use_kl_loss=true"])
def test_what_acts_on_every_row_keeps_every_row(bonus: str) -> None:
    whole, skipping = (make_actor("algorithm=grpo", NO_BONUS, bonus, settings=more) for more in ({}, SKIPPING))
    expected, found = (actor.update_policy(idle_batch(demonstrations=0)) for actor in (whole, skipping))
    assert found["fusion/skipped_rows"] == 0
    for mine, reference in zip(skipping.gradients, whole.gradients, strict=True):
        assert gradient_distance(mine, reference) < TOLERANCE
    for key, value in expected.items():  # a row of padding is left out, and nobody counts it
        assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-7), key


def test_a_batch_without_any_advantage_steps_all_the_same() -> None:
    """Weights decay and moments go on, whether rows are skipped or not."""
    actors = [make_actor("algorithm=grpo", NO_BONUS, settings=more) for more in ({}, SKIPPING)]
    rows = seen_rows(actors[1])
    for actor in actors:
        batch = idle_batch(demonstrations=0)
        batch.batch["advantages"][:] = 0
        metrics = actor.update_policy(batch)
        assert metrics["actor/grad_norm"] == 0 and metrics["fusion/optimizer_steps"] == 2
        assert [sorted(step) for step in actor.gradients] == [sorted(dict(actor.actor_module.named_parameters()))] * 2
    assert rows == [1, 1] and metrics["fusion/skipped_rows"] == 15


@pytest.mark.parametrize("name", ["hpt", "luffy", "relift", "dapo"])
def test_the_engine_skips_the_same_rows(name: str) -> None:
    whole = make_actor(*flags(name))
    expected = whole.update_policy(idle_batch())
    from .engine_kit import make_engine_actor

    skipping = make_engine_actor(*flags(name), settings=SKIPPING)
    found = skipping.update_policy(idle_batch())
    for mine, reference in zip(skipping.gradients, whole.gradients, strict=True):
        assert gradient_distance(mine, reference) < 1e-5
    close(found, expected)
    assert found["fusion/skipped_rows"] == (7 if name in ("hpt", "luffy") else 11), "demonstrations are not trained by all"


RANKED = ("grpo", "hpt", "relift", "luffy")


def _rank(rank: int, world: int, path: str) -> None:
    """One of two FSDP2 ranks with half of the rows: rank 0 has the demonstrations, so that more of its rows learn."""
    torch.set_num_threads(1)
    start_group(rank, world, path + ".meeting")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (world,))
    results = {}
    for name in RANKED:
        module = make_model()
        for layer in module.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
        actor = make_actor(*flags(name), module=module, settings={**SKIPPING, "ppo_micro_batch_size_per_gpu": 2})
        rows = seen_rows(actor)
        own = idle_batch(mini_batches=1).select_idxs(np.arange(rank * 8, rank * 8 + 8))
        results[name] = {"metrics": actor.update_policy(own), "gradient": actor.gradients[0], "rows": rows}
    torch.save(results, f"{path}.{rank}")


@pytest.mark.e2e
def test_ranks_compute_as_many_rows_as_each_other(tmp_path: Any) -> None:
    """A rank with fewer rows that learn computes others in silence, or the ranks would wait for each other."""
    path = str(tmp_path / "rank")
    run_ranks(_rank, 2, path)
    found = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for name in RANKED:
        alone = make_actor(*flags(name), settings=SKIPPING)
        metrics = alone.update_policy(idle_batch(mini_batches=1))
        assert found[0][name]["rows"] == found[1][name]["rows"]
        assert sum(found[0][name]["rows"]) < 8, name
        for result in (each[name] for each in found):
            assert gradient_distance(alone.gradients[0], result["gradient"]) < TOLERANCE, name
            assert sorted(result["metrics"]) == sorted(metrics)
            for key, value in metrics.items():
                assert result["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, key)
