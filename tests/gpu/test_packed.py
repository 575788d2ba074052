"""Rows without padding against padded rows: the same log-probabilities and gradients, in float32 and within bfloat16's own error.

The first test needs torch and transformers alone and puts the rows together itself; the second is verl's packed path in a whole
update of the actor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from unify_posttrain.objective import Aggregation, CurrentPolicy, Entropy, Members, OldPolicy, PolicyGradient, Term, compute_loss
from unify_posttrain.objective.log_probs import token_log_probs

from .kit import TINY, WIDE, ModelSize, distance, random_model, sizes

MEAN = Aggregation("token-mean")
TERMS = (
    Term("rl", PolicyGradient(OldPolicy(), "advantages"), Members("on"), MEAN),
    Term("sft", PolicyGradient(CurrentPolicy(), 1.0), Members("demo"), MEAN),
    Term("entropy", Entropy(), Members("on"), MEAN, -0.01),
)
# Two orders of the same float32 sums; a row that saw another row's tokens would differ by parts of 1.
FLOAT32 = 1e-4
# Errors of bfloat16 are drawn anew by every order of summing, so that two of them agree in size only.
AS_LARGE = 2.0


@dataclass(frozen=True)
class Rows:
    """A model and the batch that it is given.

    Attributes:
        dtype: of weights and forward pass.
        attention: of the packed rows; padded ones always take sdpa, whose mask every version of transformers knows.
    """

    device: str
    model: ModelSize
    rows: int
    prompt: int
    response: int
    dtype: torch.dtype = torch.float32
    attention: str = "sdpa"


def batch_of(size: Rows) -> dict[str, Tensor]:
    """Left-padded prompts and right-padded responses of every length; the first half are demonstrations."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, size.prompt + 1, (size.rows, 1), generator=generator)
    lengths = torch.randint(1, size.response + 1, (size.rows, 1), generator=generator)
    position = torch.arange(size.prompt + size.response)
    attention = (position >= size.prompt - prompts) & (position < size.prompt + lengths)
    mask = attention[:, size.prompt :]
    batch = {
        "input_ids": torch.randint(size.model.vocabulary, attention.shape, generator=generator) * attention,
        "attention_mask": attention.long(),
        "position_ids": (attention.long().cumsum(-1) - 1).clamp(min=0),
        "response_mask": mask.long(),
        "prefix_mask": mask & (torch.arange(size.rows) < size.rows // 2).unsqueeze(-1),
        "old_log_probs": -12 + torch.randn(mask.shape, generator=generator),
        "advantages": torch.randn(size.rows, 1, generator=generator) * mask,
    }
    return {name: value.to(size.device) for name, value in batch.items()}


Hidden = Callable[[Qwen2ForCausalLM, dict[str, Tensor]], Tensor]


def padded(model: Qwen2ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """(B, L, D) last hidden states."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    return model.model(**inputs, use_cache=False).last_hidden_state


def packed(model: Qwen2ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """The same from one row of all attended tokens; where positions begin anew a row begins; attention is told no more."""
    return _in_one_row(model, batch, batch["position_ids"][batch["attention_mask"].bool()])


def run_together(model: Qwen2ForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Likewise, by somebody who forgot that rows begin: every row sees those before it."""
    return _in_one_row(model, batch, torch.arange(int(batch["attention_mask"].sum()), device=batch["input_ids"].device))


def _in_one_row(model: Qwen2ForCausalLM, batch: dict[str, Tensor], positions: Tensor) -> Tensor:
    attended = batch["attention_mask"].bool()
    row = batch["input_ids"][attended].unsqueeze(0)
    hidden = model.model(input_ids=row, position_ids=positions.unsqueeze(0), use_cache=False).last_hidden_state.squeeze(0)
    return hidden.new_zeros(*attended.shape, hidden.shape[-1]).masked_scatter(attended.unsqueeze(-1), hidden)


def results(size: Rows, hidden_of: Hidden, dtype: torch.dtype, attention: str) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens, and all gradients as one vector, in float32 on CPU."""
    model, batch = random_model(size.model, size.device, dtype, attention), batch_of(size)
    before = hidden_of(model, batch)[:, size.prompt - 1 : -1]
    labels, chunk = batch["input_ids"][:, size.prompt :], max(8, size.rows * size.response // 8)
    log_probs, entropys = token_log_probs(before, model.lm_head.weight, labels, chunk=chunk, entropy=True)
    loss, _ = compute_loss(TERMS, {**batch, "log_probs": log_probs, "entropys": entropys})
    loss.backward()
    gradient = torch.cat([each.grad.float().flatten().cpu() for each in model.parameters()])
    return log_probs.detach()[batch["response_mask"].bool()].cpu(), gradient


WIDE_ROWS = Rows("cuda", WIDE, rows=8, prompt=64, response=192)


@sizes(Rows("cpu", TINY, rows=6, prompt=6, response=10), WIDE_ROWS, gib=20)
def test_float32(size: Rows, measured: Callable[[str], None]) -> None:
    reference, mine = (results(size, hidden_of, torch.float32, "sdpa") for hidden_of in (padded, packed))
    log_probs, gradients = (distance(one, other) for one, other in zip(mine, reference, strict=True))
    measured(f"packed and padded in float32 differ by {log_probs:.1e} (log-probs) and {gradients:.1e} (gradients)")
    assert log_probs < FLOAT32 and gradients < FLOAT32
    leaked = results(size, run_together, torch.float32, "sdpa")
    assert distance(leaked[1], reference[1]) > 100 * FLOAT32, "the comparison can tell rows that see each other"


BFLOAT16 = Rows("cuda", WIDE, rows=8, prompt=64, response=192, dtype=torch.bfloat16)
FLASH = Rows("cuda", WIDE, rows=8, prompt=64, response=192, dtype=torch.bfloat16, attention="flash_attention_2")


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Rows("cpu", TINY, rows=6, prompt=6, response=10, dtype=torch.bfloat16), id="cpu"),
        pytest.param(BFLOAT16, id="cuda", marks=(pytest.mark.gpu, pytest.mark.needs(gib=20))),
        pytest.param(FLASH, id="cuda-flash", marks=(pytest.mark.gpu, pytest.mark.needs("flash_attn", gib=20))),
    ],
)
def test_bfloat16_is_as_far_from_float32_as_padded_rows_are(size: Rows, measured: Callable[[str], None]) -> None:
    exact = results(size, padded, torch.float32, "sdpa")
    plain, mine = results(size, padded, size.dtype, "sdpa"), results(size, packed, size.dtype, size.attention)
    for name, error, own in zip(("log-probs", "gradients"), mine, plain, strict=True):
        reference = exact[0 if name == "log-probs" else 1]
        packed_error, padded_error = distance(error, reference), distance(own, reference)
        measured(f"{name} in bfloat16 ({size.attention}): error {packed_error:.1e} packed, {padded_error:.1e} padded")
        assert padded_error > 0 and packed_error < AS_LARGE * padded_error


@pytest.mark.needs("verl")
@pytest.mark.parametrize("chunk", [None, 16])
@sizes(Rows("cpu", TINY, rows=12, prompt=0, response=0), Rows("cuda", WIDE, rows=12, prompt=0, response=0), gib=30)
def test_verls_packed_update(size: Rows, chunk: int | None, measured: Callable[[str], None]) -> None:
    """Of the actor, HPT with an entropy bonus, with the output head of verl and with ours; float32, hence always sdpa."""
    from tests.workers.actor_kit import gradient_distance, make_actor, make_batch
    from tests.workers.flash_attention import packing

    def gradient(without_padding: bool, logits_chunk: int | None) -> dict[str, Tensor]:
        flags = ("algorithm=hpt", f"fusion.logits_chunk={'null' if logits_chunk is None else logits_chunk}")
        actor = make_actor(*flags, module=random_model(size.model, size.device))
        actor.use_remove_padding = without_padding
        with packing():
            actor.update_policy(make_batch(rows=size.rows, demonstrations=4, padding=1))
        return {name: each.cpu() for name, each in actor.gradients[0].items()}

    found = gradient_distance(gradient(True, chunk), gradient(False, None))
    padding_by = "flash-attn" if find_spec("flash_attn") else "its stand-in"
    measured(f"gradients of verl's packed path ({padding_by}) and the padded one differ by {found:.1e}")
    assert found < FLOAT32
