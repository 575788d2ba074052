"""Rows with pictures, without, and both in one batch: the gradient is a function of the batch, and ranks wait for nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.ranks import run_ranks
from tests.workers import picture_outcomes
from tests.workers.actor_kit import gradient_distance, make_actor, start_group
from tests.workers.engine_kit import make_engine_actor
from tests.workers.picture_kit import make_seeing_actor, make_seeing_model, rows, saved_folder, verls_forward
from tests.workers.picture_outcomes import BATCHES
from unify_posttrain.backend import seams
from unify_posttrain.workers.transport import travelling

WITH_LEGACY = pytest.mark.skipif("legacy" not in seams.BACKENDS, reason="verl 0.7.1 alone has the other backend")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def forward_of_verl() -> Iterator[None]:
    with verls_forward():
        yield


def gradient(folder: Path, batch, micro: int = 64, trim: bool = True, **how):
    actor = make_seeing_actor(folder, ppo_micro_batch_size_per_gpu=micro, **{"fusion.trim_padding": trim}, **how)
    metrics = actor.update_policy(batch)
    return actor.gradients[0], metrics


@pytest.mark.parametrize("kind", BATCHES)
def test_split_order_padding_and_chunks_change_nothing(seeing_folder: Path, kind: str) -> None:
    batch = rows(seeing_folder, BATCHES[kind])
    whole, _ = gradient(seeing_folder, batch)
    assert any("visual" in name and value.abs().max() > 0 for name, value in whole.items()) == (kind != "text")
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    turned = batch.select_idxs(order)
    for how in ({"micro": 1}, {"micro": 4, "chunk": "5"}, {"micro": 2, "trim": False}):
        other, _ = gradient(seeing_folder, turned, **how)
        assert gradient_distance(whole, other) < TOLERANCE, how


def test_images_between_answers_decide_the_gradient_and_their_pads_do_not(seeing_folder: Path) -> None:
    """Episodes with images in prompt, response, both and neither: equal under order and split, no token of an image is trained, and
    what an image shows matters to the answers behind it."""
    batch = rows(seeing_folder, [0, 1, 1, 0], told=[2, 1, 0, 0])
    ids, mask = batch.batch["responses"], batch.batch["response_mask"]
    assert not mask[ids > 270].any() and (ids > 270).any(), "the special tokens are the last of 280"
    whole, metrics = gradient(seeing_folder, batch)
    assert metrics and any("visual" in name and value.abs().max() > 0 for name, value in whole.items())
    for how in ({"micro": 1}, {"micro": 2, "trim": False}, {"micro": 4, "chunk": "5"}):
        other, _ = gradient(seeing_folder, batch.select_idxs(torch.tensor([2, 0, 3, 1])), **how)
        assert gradient_distance(whole, other) < TOLERANCE, how
    other, _ = gradient(seeing_folder, rows(seeing_folder, [0, 1, 1, 0], told=[2, 1, 0, 0], seed=1))
    assert gradient_distance(whole, other) > 100 * TOLERANCE


# --- the other backend -------------------------------------------------------------------------------------------------


def assert_recorded(found: dict, kind: str) -> None:
    """In products with directions in which all weights have a part."""
    expected = picture_outcomes.read()[kind]
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5, abs=1e-6)
    norm, *products = expected["gradient"]
    assert norm > 1 and found["gradient"][0] == pytest.approx(norm, rel=1e-5)
    assert found["gradient"][1:] == pytest.approx(products, abs=1e-5 * norm)


@WITH_LEGACY
@pytest.mark.parametrize("kind", BATCHES)
def test_the_record_is_what_the_other_backend_makes(seeing_folder: Path, kind: str) -> None:
    """If not, and on purpose: python -m tests.workers.picture_outcomes --write."""
    assert_recorded(picture_outcomes.record(make_seeing_actor(seeing_folder), rows(seeing_folder, BATCHES[kind])), kind)


@pytest.mark.parametrize("kind", BATCHES)
def test_the_engine_takes_the_gradient_of_the_other_backend(seeing_folder: Path, kind: str) -> None:
    """Padded rows: packed ones need flash attention, with which verl replaces that of the model."""
    for chunk in ("null", "5"):
        settings, folder = {"ppo_micro_batch_size_per_gpu": 4}, saved_folder(seeing_folder)
        actor = make_engine_actor("algorithm=hpt", f"fusion.logits_chunk={chunk}", settings=settings, model=folder)
        assert_recorded(picture_outcomes.record(actor, rows(seeing_folder, BATCHES[kind])), kind)


@WITH_LEGACY  # verl's engine would train the tower: the start refuses it
def test_a_frozen_tower_gets_no_gradient_and_the_rest_keeps_its_own(seeing_folder: Path) -> None:
    batch = rows(seeing_folder, BATCHES["mixed"])
    whole, _ = gradient(seeing_folder, batch)
    frozen, _ = gradient(seeing_folder, batch, frozen=True)
    assert not [name for name in frozen if "visual" in name] and len(frozen) < len(whole)
    assert gradient_distance({name: whole[name] for name in frozen}, frozen) < TOLERANCE


def test_what_a_row_shows_decides_its_log_probs(seeing_folder: Path) -> None:
    batch = rows(seeing_folder, [1, 1, 0])
    actor = make_seeing_actor(seeing_folder, recording=False)
    batch.meta_info |= {"micro_batch_size": 3, "use_dynamic_bsz": False}
    before = actor.compute_log_prob(batch)["log_probs"]
    column = batch.non_tensor_batch["multi_modal_inputs"]
    column[0] = {**column[0], "pixel_values": -column[0]["pixel_values"]}
    after = actor.compute_log_prob(batch)["log_probs"]
    assert not torch.allclose(before[0], after[0]) and torch.equal(before[1:], after[1:])


def test_pictures_and_positions_survive_the_way_to_the_workers(seeing_folder: Path) -> None:
    import pickle

    batch = rows(seeing_folder, [1, 0])
    arrived = pickle.loads(pickle.dumps(travelling(batch)))
    assert torch.equal(arrived.batch["position_ids"], batch.batch["position_ids"]) and arrived.batch["position_ids"].dim() == 3
    sent, got = (each.non_tensor_batch["multi_modal_inputs"] for each in (batch, arrived))
    assert torch.equal(sent[0]["pixel_values"], got[0]["pixel_values"]) and got[1] == {}


# --- two ranks ---------------------------------------------------------------------------------------------------------

ONE_ROW = {"ppo_micro_batch_size_per_gpu": 1}
RANKED = {"one rank sees nothing": [1, 2, 1, 0, 0, 0], "uneven": [2, 0, 1, 1, 0, 0]}


def _rank(rank: int, folder: str, path: str) -> None:
    torch.set_num_threads(1)
    start_group(rank, 2, f"{path}.meeting")
    found = {}
    for name, shown in RANKED.items():
        actor = _ranked(Path(folder)) if "legacy" in seams.BACKENDS else make_seeing_actor(Path(folder), **ONE_ROW)
        actor.update_policy(rows(Path(folder), shown)[3 * rank : 3 * rank + 3])
        found[name] = actor.gradients[0]
    torch.save(found, f"{path}.{rank}")


def _ranked(folder: Path):
    """One of two FSDP2 ranks, wrapped as verl wraps them: the blocks of the tower too, which gather their weights by themselves.
    An engine does that itself."""
    mesh, model = init_device_mesh("cpu", (2,)), make_seeing_model(folder)
    for module in (*model.model.visual.blocks, *model.model.language_model.layers):
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return make_actor("algorithm=hpt", module=model, settings=ONE_ROW)


@pytest.mark.slow
def test_two_ranks_of_which_one_sees_nothing_equal_one_and_do_not_hang(seeing_folder: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "rank")
    run_ranks(_rank, str(seeing_folder), path)
    found = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for name, shown in RANKED.items():
        whole, _ = gradient(seeing_folder, rows(seeing_folder, shown))
        for result in found:
            assert gradient_distance(whole, result[name]) < TOLERANCE, name
