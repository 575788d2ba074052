"""verl's engine trains what DataParallelPPOActor trains: losses, parts and gradients of every algorithm, log-probs, values.

The engine lays rows out anew (no padding on the left, none beyond the longest row), so sums come in another order: gradients differ
by rounding, by up to 3e-7 of their norm over all algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor

from tests.ranks import context
from unify_posttrain.algorithms import ALGORITHMS
from unify_posttrain.backend import seams
from unify_posttrain.workers import engine as engines
from unify_posttrain.workers.engine_batch import Layout, engine_batch

from . import legacy_outcomes
from .actor_kit import PROMPT, RESPONSE, gradient_distance, make_batch, start_group
from .critic_kit import make_critic, make_value_batch
from .engine_kit import make_engine_actor, make_engine_critic, make_engine_reference
from .packed_kit import FEW, TOKENS, Outcome, Path, assert_same, attended, farthest, for_log_probs, updates
from .packed_kit import rows_of_every_kind as rows

PLAIN = Path(packed=False)
LAYOUTS = [Path(), Path(packed=False, chunk=7), Path(chunk=7, dynamic=True)]


EVERY = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in sorted(ALGORITHMS)]
WITH_LEGACY = pytest.mark.skipif("legacy" not in seams.BACKENDS, reason="verl 0.7.1 alone has the other backend")


@cache
def padded(name: str) -> Outcome:
    return by_engine(name, PLAIN)


def by_engine(name: str, path: Path, **more: Any) -> Outcome:
    actor = make_engine_actor(f"algorithm={name}", settings={**path.settings, **more})
    gradients, metrics = [], []
    for each in updates(actor):
        metrics.append(each)
        gradients.append(actor.gradients)
        actor.gradients = []
    batch = for_log_probs(rows(), path.dynamic)
    return Outcome(gradients, metrics, attended(batch, actor.compute_log_prob(batch, calculate_entropy=True)))


# --- losses, parts, gradients ------------------------------------------------------------------------------------------


def assert_same_record(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for mine, theirs in zip(found, expected, strict=True):
        assert sorted(mine["metrics"]) == sorted(theirs["metrics"])
        for key, value in theirs["metrics"].items():
            assert mine["metrics"][key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
        assert len(mine["gradients"]) == len(theirs["gradients"]) > 0
        for (norm, *products), (their_norm, *their_products) in zip(mine["gradients"], theirs["gradients"], strict=True):
            assert norm == pytest.approx(their_norm, rel=1e-5)
            assert products == pytest.approx(their_products, abs=1e-5 * their_norm)


def of_the_other_backend(name: str) -> list[dict[str, Any]]:
    """As recorded; of a method that nobody has recorded yet, as that backend makes it now, if it is there."""
    recorded = legacy_outcomes.read()
    if name not in recorded and "legacy" not in seams.BACKENDS:
        pytest.skip(f"algorithm={name} is not recorded: python -m tests.workers.legacy_outcomes --write, with verl 0.7.1")
    return recorded[name] if name in recorded else legacy_outcomes.legacy(name)


def test_published_methods_are_recorded() -> None:
    """Those that are, are compared with the newer verl, too."""
    assert {name for name, each in ALGORITHMS.items() if each.paper} <= set(legacy_outcomes.read()) <= set(ALGORITHMS)


@WITH_LEGACY
@pytest.mark.parametrize("name", [each for each in EVERY if each.values[0] in legacy_outcomes.read()])
def test_the_record_is_what_the_other_backend_makes(name: str) -> None:
    """If not, and on purpose: python -m tests.workers.legacy_outcomes --write."""
    assert_same_record(legacy_outcomes.legacy(name), legacy_outcomes.read()[name])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_every_algorithm_trains_as_on_the_other_backend(name: str, packed: bool) -> None:
    actor = make_engine_actor(f"algorithm={name}", settings={"use_remove_padding": packed}, model="settled")
    assert_same_record(legacy_outcomes.record(actor), of_the_other_backend(name))


@pytest.mark.parametrize("path", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", [pytest.param(each, marks=() if each in FEW[:1] else pytest.mark.slow) for each in FEW])
def test_packed_rows_chunks_and_dynamic_batches_change_nothing(name: str, path: Path) -> None:
    assert_same(by_engine(name, path), padded(name))


def test_a_last_micro_batch_may_be_smaller() -> None:
    """verl's own loop over micro-batches demands that they divide the rows, which they do not after mixing."""
    assert_same(by_engine("hpt", PLAIN, ppo_micro_batch_size_per_gpu=4), padded("hpt"))


def _rank(rank: int, meeting: str, queue: Any) -> None:
    torch.set_num_threads(1)
    start_group(rank, 2, meeting)
    for packed in (False, True):
        actor = make_engine_actor("algorithm=hpt", settings={"use_remove_padding": packed})
        metrics = actor.update_policy(rows().chunk(2)[rank])
        if rank == 0:
            queue.put([{name: gradient.tolist() for name, gradient in step.items()} for step in actor.gradients])
            queue.put(metrics)


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(tmp_path: Any) -> None:
    """Their rows are dealt so that each mini-batch has the same twelve, whoever holds them."""
    processes_of = context()
    queue = processes_of.Queue()
    processes = [processes_of.Process(target=_rank, args=(rank, str(tmp_path / "meeting"), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=300) for _ in range(4)]
    for process in processes:
        process.join()
    whole = rows()
    order = [row for mini in range(2) for rank in range(2) for row in range(rank * 6 + mini * 3, rank * 6 + mini * 3 + 3)]
    actor = make_engine_actor("algorithm=hpt")
    expected = actor.update_policy(whole.select_idxs(torch.tensor(order)))
    for gradients, metrics in (found[:2], found[2:]):
        assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-7)
        for mine, reference in zip(gradients, actor.gradients, strict=True):
            assert gradient_distance({name: torch.tensor(value) for name, value in mine.items()}, reference) < 1e-6


# --- the engine's own traps --------------------------------------------------------------------------------------------


def test_padded_rows_are_masked_by_their_own_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """verl 0.7.1 masks by `loss_mask`; with responses' widths there, as its trainer has it, every row would be T tokens long."""
    right = padded("hpt")

    def of_responses(rows: Any, layout: Layout, **how: bool) -> TensorDict:
        batch = engine_batch(rows, layout, **how)
        batch["loss_mask"] = torch.ones(len(rows), RESPONSE)
        return batch

    monkeypatch.setattr("unify_posttrain.workers.engine_actor.engine_batch", of_responses)
    wrong = farthest(by_engine("hpt", PLAIN), right)
    assert wrong > 1e-2 if seams.installed() == "0.7.1" else wrong == 0, "0.9.1 does not read it"


def test_rows_without_padding_come_back_where_they_stood() -> None:
    batch = make_batch(rows=6, demonstrations=2)
    layout = Layout.of(batch.batch["attention_mask"])
    numbers = torch.arange(6 * (PROMPT + RESPONSE), dtype=torch.float32).view(6, -1) + 1
    found = layout.responses(layout.nested(numbers), RESPONSE)
    attended = batch.batch["attention_mask"][:, PROMPT:]
    assert torch.equal(found, numbers[:, PROMPT - 1 : -1] * attended), "the last token of a row says nothing of that row"
    several = torch.stack([numbers, -numbers, 2 * numbers], dim=1)
    assert torch.equal(layout.nested(several).values()[1], -layout.nested(numbers).values())


def test_a_row_without_any_token_disturbs_no_other() -> None:
    batch = for_log_probs(rows(), dynamic=False)
    expected = make_engine_actor("algorithm=hpt").compute_log_prob(batch)["log_probs"]
    silent = for_log_probs(rows(), dynamic=False)
    silent.batch["attention_mask"][3] = 0
    found = make_engine_actor("algorithm=hpt").compute_log_prob(silent)["log_probs"]
    others = [row for row in range(12) if row != 3]
    torch.testing.assert_close(found[others], expected[others])
    assert not bool(found[3].any())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_precision_is_the_configured_one(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.7.1 has bfloat16 written into its forward pass and into what it sends to the rollout engine."""
    seen: list[bool] = []
    actor = make_engine_actor("algorithm=grpo", settings={"fsdp_config.dtype": dtype})
    hook = actor.engine.module.lm_head.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    log_probs = actor.compute_log_prob(for_log_probs(rows(), dynamic=False))["log_probs"]
    hook.remove()
    assert set(seen) == {dtype == "bfloat16"} and log_probs.dtype == torch.float32
    sent, _ = actor.engine.get_per_tensor_param()
    weights = dict(actor.engine.module.named_parameters())
    assert all(torch.equal(value, weights[name].full_tensor()) for name, value in sent)


def test_the_engine_takes_strategy_and_precision_of_the_actor() -> None:
    owner = OmegaConf.create(
        {
            "fsdp_config": {"strategy": "fsdp", "dtype": "float32", "use_torch_compile": True},
            "use_torch_compile": False,
            "entropy_from_logits_with_chunking": True,
            "entropy_checkpointing": False,
        }
    )
    engines.settle(owner, "fsdp2")
    node = owner.fsdp_config
    assert (node.strategy, node.use_torch_compile, node.entropy_from_logits_with_chunking) == ("fsdp2", False, True)
    assert node.mixed_precision == {"param_dtype": "float32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    owner.fsdp_config.mixed_precision.param_dtype = "bf16"
    engines.settle(owner, "fsdp2")
    assert node.mixed_precision.param_dtype == "bf16", "what the user says stays"


def test_registration_replaces_verls_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    engines.register()
    engines.register()
    known = engines.EngineRegistry
    assert known.get_engine_cls("language_model", "fsdp2") is engines.PolicyEngine
    assert known.get_engine_cls("value_model", "fsdp") is engines.ValueEngine


# --- skipped steps, optimizers -----------------------------------------------------------------------------------------


def test_a_step_with_too_large_a_norm_is_skipped_and_counted() -> None:
    actor = make_engine_actor("algorithm=hpt", settings={"fusion.max_grad_norm": 1e-6}, record=False)
    before = [parameter.full_tensor().clone() for parameter in actor.engine.module.parameters()]
    metrics = actor.update_policy(rows())
    assert metrics["fusion/grad_skipped"] == 2 and metrics["fusion/optimizer_steps"] == 0
    pairs = zip(before, actor.engine.module.parameters(), strict=True)
    assert all(torch.equal(old, new.full_tensor()) for old, new in pairs)


def test_an_update_steps_with_the_engines_optimizer() -> None:
    """Whichever it holds: the second one of a replayed step is put in its place."""
    actor = make_engine_actor("algorithm=hpt", record=False)
    other = torch.optim.SGD(actor.engine.module.parameters(), lr=0.0)
    before = [parameter.full_tensor().clone() for parameter in actor.engine.module.parameters()]
    actor.engine.optimizer, own = other, actor.engine.optimizer
    actor.update_policy(rows())
    assert all(torch.equal(old, new.full_tensor()) for old, new in zip(before, actor.engine.module.parameters(), strict=True))
    actor.engine.optimizer = own
    actor.update_policy(rows())
    assert any(not torch.equal(old, new.full_tensor()) for old, new in zip(before, actor.engine.module.parameters(), strict=True))


# --- reference and critic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("packed", "chunk"), [(False, None), (True, 7)])
def test_the_reference_gives_the_actors_log_probs(packed: bool, chunk: int | None) -> None:
    batch = for_log_probs(rows(), dynamic=packed)
    found = attended(batch, make_engine_reference(packed, chunk).compute_log_prob(batch))
    assert list(found) == ["log_probs"]
    torch.testing.assert_close(found["log_probs"], padded("hpt").streams["log_probs"], rtol=1e-6, atol=1e-6)


@WITH_LEGACY
@pytest.mark.parametrize("packed", [False, True])
def test_the_critic_trains_as_on_the_other_backend(packed: bool) -> None:
    def run(critic: Any) -> tuple[list[Mapping[str, Tensor]], dict[str, float], Tensor]:
        metrics = critic.update_critic(make_value_batch(12))
        return critic.gradients, metrics, critic.compute_values(for_log_probs(make_value_batch(12), packed))

    flags = ("critic.ppo_mini_batch_size=6", "critic.ppo_micro_batch_size_per_gpu=4", f"critic.ppo_max_token_len_per_gpu={TOKENS}")
    layout = (f"critic.model.use_remove_padding={str(packed).lower()}", f"critic.use_dynamic_bsz={str(packed).lower()}")
    (gradients, metrics, values), (reference, expected, theirs) = run(make_engine_critic(*flags, *layout)), run(make_critic(*flags))
    assert len(gradients) == 2
    for mine, other in zip(gradients, reference, strict=True):
        assert gradient_distance(mine, other) < 1e-6
    assert metrics == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(values, theirs, rtol=1e-6, atol=1e-6)
