"""verl's worker with FSDP1 and FSDP2: what it offloads, a step that is skipped, and a resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from .kit import NARROW, TINY, ModelSize, allocated, model_folder

FSDP = "actor_rollout_ref.actor.fsdp_config"
OFFLOAD = (f"{FSDP}.param_offload=true", f"{FSDP}.optimizer_offload=true")
KEPT = (f"{FSDP}.param_offload=false", f"{FSDP}.optimizer_offload=false")
POLICY = (*KEPT, f"{FSDP}.offload_policy=true")


@dataclass(frozen=True)
class Sharded:
    """`exact`: the same update gives the same bits (on a GPU the embedding's gradient is added up in any order)."""

    device: str
    model: ModelSize
    strategy: str
    overrides: tuple[str, ...]
    exact: bool
    rows: int = 4
    prompt: int = 4
    response: int = 12


GPU = (pytest.mark.gpu, pytest.mark.needs(gib=8))
CASES = [
    pytest.param(Sharded("cpu", TINY, "fsdp2", (), exact=True), id="cpu-fsdp2"),
    *(
        pytest.param(Sharded("cuda", NARROW, strategy, overrides, exact=False), id=f"cuda-{strategy}-{name}", marks=GPU)
        for strategy, name, overrides in (
            ("fsdp", "kept", KEPT),
            ("fsdp", "offloaded", OFFLOAD),
            ("fsdp2", "kept", KEPT),
            ("fsdp2", "offloaded", OFFLOAD),
            ("fsdp2", "policy", POLICY),
        )
    ),
]


@pytest.mark.needs("verl")
@pytest.mark.parametrize("size", CASES)
def test_update_offload_skip_and_resume(size: Sharded, tmp_path: Path, measured: Callable[[str], None]) -> None:
    from .workers import WITHOUT_FLASH, configuration, full_rows, start_worker, update, weights_of

    folder, checkpoint = model_folder(tmp_path / "model", size.model), str(tmp_path / "checkpoint")
    flash = WITHOUT_FLASH if size.device == "cuda" and find_spec("flash_attn") is None else ()
    common = (f"actor_rollout_ref.actor.strategy={size.strategy}", "actor_rollout_ref.actor.optim.lr=1e-3", *size.overrides, *flash)

    def start(*more: str):
        return start_worker(configuration(folder, size.device, size.rows, size.prompt, size.response, *common, *more))

    one, other = (full_rows(size.rows, size.prompt, size.response, size.model.vocabulary) for _ in range(2))
    other.batch["advantages"].neg_()
    before = allocated(size.device)
    worker = start("fusion.max_grad_norm=null")
    untrained = weights_of(worker)
    assert update(worker, one)["fusion/optimizer_steps"] == 1
    if size.overrides in (OFFLOAD, POLICY):
        left = allocated(size.device) - before
        weights = sum(each.numel() * 4 for each in untrained.values())
        measured(f"{size.strategy}, offloaded: {left / 1e6:.0f} MB stay on the GPU, the weights are {weights / 1e6:.0f} MB")
        assert left < 0.5 * weights, "weights and two moments would be three times that"
    worker.save_checkpoint(checkpoint, None, 1)
    expected, trained = update(worker, other), weights_of(worker)
    assert largest_change(untrained, trained) > 1e-4

    resumed = start("fusion.max_grad_norm=null")
    assert largest_change(untrained, weights_of(resumed)) == 0
    resumed.load_checkpoint(checkpoint)
    found = update(resumed, other)
    tolerance = {"rel": 0, "abs": 0} if size.exact else {"rel": 1e-2, "abs": 1e-4}
    for key, value in expected.items():
        if not key.startswith("perf/"):
            assert found[key] == pytest.approx(value, **tolerance), key
    assert largest_change(trained, weights_of(resumed)) <= (0 if size.exact else 1e-4)

    cautious = start("fusion.max_grad_norm=1e-9")
    assert update(cautious, one)["fusion/grad_skipped"] == 1
    assert largest_change(untrained, weights_of(cautious)) == 0


def largest_change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    assert sorted(before) == sorted(after)
    return max(float((after[name] - value).abs().max()) for name, value in before.items())
