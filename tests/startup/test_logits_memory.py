"""How many numbers of the size of the logits live at the peak of a backward pass: verl's own functions, counted storage by storage.

flash-attention's cross entropy needs CUDA; what it keeps and makes (its `CrossEntropyLoss`) is spelt out in
tests/workers/flash_attention.py. The same of a whole update, on a GPU too: tests/gpu/test_update_memory.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import verl.utils.torch_functional as verl_functions
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.startup.storage import LiveBytes
from tests.workers.flash_attention import CrossEntropy
from unify_posttrain.objective.log_probs import token_log_probs
from unify_posttrain.startup import memory

TOKENS, WORDS, HIDDEN = 128, 4096, 16
SMALL = 0.02  # of the logits: hidden states, numbers per token, and the head's gradient where it is not the subject


class Autocast(TorchFunctionMode):
    """What CUDA's autocast does to the three operations of verl's entropy that it takes in float32."""

    OPERATIONS = (torch.nn.functional.softmax, torch.logsumexp, torch.sum)

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in self.OPERATIONS and args[0].dtype == torch.bfloat16:
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(size, HIDDEN).to(dtype).requires_grad_() for size in (TOKENS, WORDS))


class CompiledEntropy(torch.autograd.Function):
    """Its memory: keeps the logits, makes one gradient (test_a_compiled_entropy_keeps_no_copy_of_the_logits)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return logits[:, 0].float()

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> Tensor:
        return torch.zeros_like(*ctx.saved_tensors)


ENTROPIES = {"none": None, "compiled": CompiledEntropy.apply, "plain": verl_functions.entropy_from_logits}


def copies(packed: bool, entropy: str, dtype: torch.dtype, autocast: bool) -> float:
    """Bytes at the peak, as multiples of the logits. As `DataParallelPPOActor._forward_micro_batch` and the loss do it."""
    hidden, head = weights(dtype)
    head_transposed, entropy_of = head.t(), ENTROPIES[entropy]  # outside of the block: weights are not counted
    with Autocast() if autocast else nullcontext(), LiveBytes() as live:
        # A packed row is a batch of one, whose logits verl takes out of it before it divides them; padded ones it cuts afterwards.
        logits = (hidden.unsqueeze(0) @ head_transposed).squeeze(0) if packed else hidden @ head_transposed
        logits.div_(1.0)
        loss = CrossEntropy.apply(logits, entropy_of is None).sum()
        if entropy_of is not None:
            loss = loss - 0.001 * entropy_of(logits).sum()
        del logits
        loss.backward()
    return live.peak / (TOKENS * WORDS * dtype.itemsize)


@pytest.mark.parametrize(
    ("packed", "entropy", "dtype", "autocast", "expected"),
    [
        (True, "none", torch.bfloat16, True, memory.COPIES_PACKED),
        (True, "none", torch.float32, False, memory.COPIES_PACKED),
        (True, "compiled", torch.bfloat16, True, memory.COPIES_PACKED),
        (False, "none", torch.bfloat16, True, memory.COPIES_PADDED),
        (True, "plain", torch.float32, False, memory.COPIES_ENTROPY),
        (False, "plain", torch.float32, False, memory.COPIES_ENTROPY),
        # of 16 bits: softmax, logsumexp and sum keep their inputs and outputs in float32, which counts twice
        (True, "plain", torch.bfloat16, True, memory.COPIES_ENTROPY_AUTOCAST),
        (True, "plain", torch.bfloat16, False, memory.COPIES_ENTROPY),  # what verl would need without autocast
    ],
)
def test_copies_of_the_logits(packed: bool, entropy: str, dtype: torch.dtype, autocast: bool, expected: int) -> None:
    assert copies(packed, entropy, dtype, autocast) == pytest.approx(expected, abs=SMALL)


def test_autocast_on_cuda_takes_what_the_mode_above_takes_in_float32() -> None:
    def has_kernel(operation: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{operation}", "AutocastCUDA")

    assert all(map(has_kernel, ("softmax.int", "logsumexp", "sum.dim_IntList")))
    assert not has_kernel("mul.Tensor") and not has_kernel("sub.Tensor")


def test_a_compiled_entropy_keeps_no_copy_of_the_logits() -> None:
    """The partitioner that torch.compile uses leaves the logits and numbers per token to the backward pass: one gradient more."""
    from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    kept: list[tuple[int, ...]] = []

    def backward(graph: Any, inputs: list[Tensor]) -> Any:
        kept.extend(tuple(each.shape) for each in inputs)
        return make_boxed_func(graph)

    def entropy(logits: Tensor) -> Tensor:
        with Autocast():
            return verl_functions.entropy_from_logits(logits)

    logits = torch.randn(TOKENS, WORDS, dtype=torch.bfloat16, requires_grad=True)
    compiled = aot_function(
        entropy,
        fw_compiler=lambda graph, _: make_boxed_func(graph),
        bw_compiler=backward,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    compiled(logits).sum().backward()
    assert sum(shape == (TOKENS, WORDS) for shape in kept) == 1


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("chunk", [16, 64])
def test_a_chunk_of_logits_and_the_gradient_of_the_head(entropy: bool, chunk: int) -> None:
    hidden, head = weights(torch.bfloat16)
    with LiveBytes() as live:
        log_probs, entropys = token_log_probs(hidden, head, torch.zeros(TOKENS, dtype=torch.long), chunk=chunk, entropy=entropy)
        (log_probs.sum() - (0.001 * entropys.sum() if entropy else 0)).backward()
    expected = memory.COPIES_CHUNK * chunk * WORDS * 4 + WORDS * HIDDEN * 4
    assert live.peak == pytest.approx(expected, rel=SMALL)
