"""Both backends through the real command: the same run, and each goes on from the other's checkpoint."""

from __future__ import annotations

import json
import math

import pytest

from unify_posttrain.backend import seams

from .conftest import COMPARED, TIMING, World, resumed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in a test

# A demonstration's likelihood, a KL to the reference, two ranks: what the engine's worker does with groups of its own.
RUN = (
    "algorithm=hpt",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "trainer.n_gpus_per_node=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",  # of a rank
    "trainer.total_training_steps=4",
    "trainer.save_freq=2",
    COMPARED,
)
# Rollouts are sampled from the same seeds by models that differ by rounding. A count or a share of samples is then the same;
# a loss differs in its last digits, and what measures that rounding itself is another number.
ROUNDING = ("training/rollout_probs_diff", "rollout_corr/", "actor/ppo_kl")


def differing(one: dict[str, float], other: dict[str, float]) -> dict[str, tuple[float, float]]:
    keys = {key for key in one if not key.startswith((*TIMING, *ROUNDING))}
    assert keys == {key for key in other if not key.startswith((*TIMING, *ROUNDING))} and len(keys) > 50
    return {key: (one[key], other[key]) for key in keys if not math.isclose(one[key], other[key], rel_tol=1e-3, abs_tol=1e-6)}


@pytest.mark.skipif("legacy" not in seams.BACKENDS, reason="this verl has one backend")
def test_the_engine_goes_on_from_the_other_backends_checkpoint_as_that_one_does(world: World) -> None:
    world.train("of-legacy", *RUN, "backend=legacy", "trainer.resume_mode=disable")
    folder = world.checkpoints("of-legacy") / "global_step_2"
    assert json.loads((folder / "unify_state.json").read_text())["written_by"]["backend"] == "legacy"
    resume = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={folder}")
    world.train("of-engine", *RUN, "backend=engine", *resume)
    legacy, engine = world.metrics("of-legacy"), world.metrics("of-engine")
    assert sorted(engine) == [3, 4]
    for step in (3, 4):
        assert differing(legacy[step], engine[step]) == {}, step
        assert engine[step]["training/rollout_probs_diff_max"] < 1e-4
    saved = world.checkpoints("of-engine") / "global_step_4"
    assert json.loads((saved / "unify_state.json").read_text())["written_by"]["backend"] == "engine"
    names = {path.name for path in (saved / "actor").iterdir()}
    assert names == {path.name for path in (world.checkpoints("of-legacy") / "global_step_4" / "actor").iterdir()}


@pytest.mark.skipif("legacy" in seams.BACKENDS, reason="make test-verl09 runs it")
def test_the_newer_verl_trains_with_a_critic_and_continues_exactly(world: World) -> None:
    """Actor, critic, a KL to the reference, weights sent to the rollout engine, checkpoints: all of the adapter at once."""
    run = (
        "backend=engine",
        "algorithm=ppo",
        "critic.optim.lr=1e-3",
        "actor_rollout_ref.actor.use_kl_loss=true",
        "trainer.save_freq=2",
        "trainer.total_training_steps=3",
        COMPARED,
    )
    world.train("newer", *run, "trainer.resume_mode=disable")
    metrics = world.metrics("newer")
    assert sorted(metrics) == [1, 2, 3]
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    for entry in metrics.values():
        assert entry["fusion/rows_on"] == 32 and entry["fusion/optimizer_steps"] == 2
        assert entry["actor/grad_norm"] > 0 and entry["critic/grad_norm"] > 0 and entry["critic/lr"] == 1e-3
        assert entry["training/rollout_probs_diff_max"] < 1e-4
    first, again = resumed(world, "newer", 2, *run)
    assert again == first and list(first) == [3]
