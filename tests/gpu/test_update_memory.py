"""The peak of an update against what the plan says of it (`startup.memory`), on a GPU with 18,432 tokens over 151,936 words.

The plan is a sum of what is certainly there. A peak far above it means that something is not counted, so that a run could end for
want of memory that the checks let pass; one far below it, that runs are refused that would fit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from unify_posttrain.objective.log_probs import token_log_probs
from unify_posttrain.startup.memory import Engine, RankPlan, Trained, parts_of, totals

from .kit import SMALL, WIDE, ModelSize, allocated, model_folder, peak_memory, random_model, sizes, state_bytes

# What the plan leaves out: workspaces of attention and matrix products, norms in float32, the gradient of a residual stream, masks,
# numbers per token. And it counts parts as if they met that need not.
LEAST, MOST = 0.8, 1.15
NO_ENGINE = Engine("none", None, False, 0.0)


@dataclass(frozen=True)
class Tokens:
    """A micro-batch: `rows` full rows of `prompt` + `response` tokens. An update has two of them, since the plan counts gradients
    that are there already, and a first micro-batch finds none."""

    device: str
    model: ModelSize
    rows: int
    prompt: int
    response: int
    chunk: int

    @property
    def count(self) -> int:
        return self.rows * (self.prompt + self.response)


FEW = Tokens("cpu", SMALL, rows=4, prompt=32, response=96, chunk=64)
MANY = Tokens("cuda", WIDE, rows=9, prompt=512, response=1536, chunk=2048)  # 18,432


def compare(plan: RankPlan, peak: float, measured: Callable[[str], None], what: str) -> None:
    parts = parts_of(plan)
    planned = totals(parts)["update"]
    measured(f"{what}: peak {peak / 1e9:.3g} GB, plan {planned / 1e9:.3g} GB, ratio {peak / planned:.2f}")
    listing = "\n".join(f"{part.update / 1e9:10.4g} GB  {part.name}{' (largest)' if part.largest else ''}" for part in parts)
    assert LEAST * planned < peak < MOST * planned, f"{peak / 1e9:.4g} GB measured, {planned / 1e9:.4g} planned of\n{listing}"


@pytest.mark.parametrize("entropy", [False, True])
@sizes(FEW, MANY, gib=24)
def test_chunks_of_logits(size: Tokens, entropy: bool, measured: Callable[[str], None]) -> None:
    """Torch and transformers alone, float32: the model, our output head, AdamW. The first of two updates makes the moments."""
    before = allocated(size.device)
    model = random_model(size.model, size.device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    ids = torch.randint(size.model.vocabulary, (size.rows, size.prompt + size.response), device=size.device)

    def accumulate() -> None:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        log_probs, entropys = token_log_probs(hidden, model.lm_head.weight, ids[:, 1:], chunk=size.chunk, entropy=entropy)
        loss = -log_probs.mean() - (0.001 * entropys.mean() if entropy else 0)
        loss.backward()

    def update() -> None:
        for _ in range(2):
            accumulate()
        optimizer.step()
        optimizer.zero_grad()

    update()
    with peak_memory(size.device, before, lambda: state_bytes(model, optimizer)) as peak:
        update()
    trained = Trained(
        shape=size.model.shape(model), frozen=0, shards=1, width=4, compute=4, param_offload=False, optimizer_offload=False,
        offload_policy=False, tokens=size.count, checkpointing=True, activation_offload=False,
    )  # fmt: skip
    plan = RankPlan(
        actor=trained, critic=None, engine=NO_ENGINE, reference=None, entropy=entropy, packed=False, compiled=False,
        chunk=size.chunk, root=1, replay=False, accelerator=None,
    )  # fmt: skip
    compare(plan, peak.bytes, measured, f"chunks of {size.chunk} logits, entropy {entropy}, float32")


@dataclass(frozen=True)
class Head:
    """How the output head works, and the GiB that the update of MANY then asks of a GPU."""

    entropy: bool
    compiled: bool
    chunked: bool
    gib: float

    def overrides(self, chunk: int) -> tuple[str, ...]:
        return (
            f"actor_rollout_ref.actor.use_torch_compile={self.compiled}",
            f"fusion.logits_chunk={chunk if self.chunked else 'null'}",
            *(() if self.entropy else ("actor_rollout_ref.actor.entropy_coeff=0",)),
        )


HEADS = {
    "plain": Head(entropy=False, compiled=False, chunked=False, gib=30),
    "entropy": Head(entropy=True, compiled=False, chunked=False, gib=100),
    "compiled": Head(entropy=True, compiled=True, chunked=False, gib=40),
    "chunks": Head(entropy=True, compiled=False, chunked=True, gib=24),
}


def cases() -> list:
    """The compiler takes minutes on CPU and its partition of the graph is tested by itself; without flash-attn verl's own cross
    entropy keeps other copies than the plan counts, which on CPU a stand-in of the same memory replaces."""
    found = [pytest.param(FEW, head, id=f"cpu-{name}") for name, head in HEADS.items() if not head.compiled]
    for name, head in HEADS.items():
        needs = pytest.mark.needs(*(() if head.chunked else ("flash_attn",)), gib=head.gib)
        found.append(pytest.param(MANY, head, id=f"cuda-{name}", marks=(pytest.mark.gpu, needs)))
    return found


@pytest.mark.needs("verl")
@pytest.mark.parametrize(("size", "head"), cases())
def test_update_policy(
    size: Tokens, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[[str], None]
) -> None:
    """verl's worker with FSDP1 in bfloat16 as `hardware=gpu_1` has it; on CPU the actor alone, in float32."""
    from unify_posttrain.algorithms import build_algorithm
    from unify_posttrain.startup.memory_plan import rank_plan

    from .workers import WITHOUT_FLASH, configuration, full_rows

    overrides = [
        *head.overrides(size.chunk),
        "actor_rollout_ref.model.enable_gradient_checkpointing=true",
        "fusion.max_grad_norm=null",
    ]
    if size.device == "cuda" and find_spec("flash_attn") is None:
        overrides.extend(WITHOUT_FLASH)
    config = configuration(model_folder(tmp_path, size.model), size.device, size.rows, size.prompt, size.response, *overrides)
    plan = rank_plan(config, build_algorithm(config.actor_rollout_ref.actor))
    assert plan is not None and (plan.entropy, plan.chunk is not None) == (head.entropy, head.chunked)
    assert plan.actor.tokens == size.count
    before = allocated(size.device)
    update, resident = worker_update(config) if size.device == "cuda" else actor_update(size, head, config, monkeypatch)
    batch = full_rows(2 * size.rows, size.prompt, size.response, size.model.vocabulary)
    assert update(batch)["fusion/optimizer_steps"] == 1, "there are moments now"
    with peak_memory(size.device, before, resident) as peak:
        update(batch)
    # On CPU the actor packs rows although the configuration cannot.
    plan = replace(plan, engine=NO_ENGINE, reference=None, accelerator=None, packed=plan.packed or size.device == "cpu")
    compare(plan, peak.bytes, measured, f"update_policy, {size.count} tokens, {head}")


Update = Callable[[Any], dict[str, float]]


def worker_update(config: Any) -> tuple[Update, Callable[[], float]]:
    """(an update of verl's worker, bytes that it finds, which CUDA's allocator knows)."""
    from .workers import start_worker, update

    worker = start_worker(config)
    return lambda batch: update(worker, batch), lambda: 0.0


def actor_update(size: Tokens, head: Head, config: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Update, Callable[[], float]]:
    """The same of the actor alone, in float32; logits of packed rows, because padded ones are cut to the responses before most of
    the copies are made."""
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.actor import dp_actor

    from tests.workers.actor_kit import start_group
    from tests.workers.flash_attention import CrossEntropy, packing
    from unify_posttrain.workers.fusion_actor import FusionActor

    def log_probs(logits: torch.Tensor, labels: torch.Tensor, inplace_backward: bool = True) -> torch.Tensor:
        return CrossEntropy.apply(logits, inplace_backward)

    monkeypatch.setattr(dp_actor, "logprobs_from_logits", log_probs)
    start_group()
    model = random_model(size.model, "cpu")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    node = omega_conf_to_dataclass(OmegaConf.create(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)))
    actor = FusionActor(node, model, optimizer)
    actor.use_remove_padding = not head.chunked

    def update(batch: Any) -> dict[str, float]:
        with packing():
            return actor.update_policy(batch)

    return update, lambda: state_bytes(model, optimizer)
