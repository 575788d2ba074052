"""Log-probabilities and entropies of given tokens from hidden states and the output matrix, a chunk of tokens at a time.

The logits of N tokens over V words are N·V numbers; at 8192 tokens and 152k words 2.5 GB in bfloat16 and 5 GB for every float32
copy that softmax and its backward pass make. Here at most `chunk` rows of them exist at once: the forward pass keeps two numbers
per token, the backward pass computes the chunk's logits again. That costs one matrix product more than the three of the plain
form (Z = hWᵀ, and its two gradients) and saves the traffic of the copies. After Z, everything is float32, sums of gradients too.

With p = softmax(z), z = hWᵀ/τ:  ∂ log p_y/∂z = e_y - p  and  ∂H/∂z = -p (log p + H).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_log_probs(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, chunk: int, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log p(label) and, if asked for, H(p) of p = softmax(hidden · weightᵀ / temperature).

    Args:
        hidden: (..., D) last hidden states, float.
        weight: (V, D) output matrix of the same dtype.
        labels: (...) int, in [0, V).
        chunk: tokens whose logits exist at once; peak memory is about 3 · chunk · V float32 numbers. It does not change the result.
        temperature: τ > 0.
        entropy: also compute H, in nats; one pass over the chunk more, and its gradient another.

    Returns:
        (log_probs, entropys): (...) each, float32 (float64 for float64 input), both carrying gradients; entropys None if not asked.
        Differentiable once.

    Raises:
        ValueError: shapes disagree, or chunk or temperature is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1 token")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    if weight.ndim != 2 or hidden.shape[-1] != weight.shape[1] or hidden.shape[:-1] != labels.shape:
        raise ValueError(
            f"hidden (..., D), weight (V, D) and labels (...) do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}, "
            f"{tuple(labels.shape)}"
        )
    log_probs, entropys = _TokenLogProbs.apply(hidden.flatten(0, -2), weight, labels.flatten(), chunk, temperature, entropy)
    return log_probs.view(labels.shape), entropys.view(labels.shape) if entropy else None


class _TokenLogProbs(torch.autograd.Function):
    """(N, D), (V, D), (N,) -> (N,), (N,); the second is empty if entropies are not wanted."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        tokens = len(labels)
        normalisers, chosen = (hidden.new_empty(tokens, dtype=wide) for _ in range(2))
        entropys = hidden.new_empty(tokens if entropy else 0, dtype=wide)
        for rows in _chunks(tokens, chunk):
            logits = _logits(hidden[rows], weight, temperature, wide)
            chosen[rows] = logits.gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
            normalisers[rows] = logits.logsumexp(dim=-1)
            if entropy:
                all_log_probs = logits.sub_(normalisers[rows].unsqueeze(-1))
                entropys[rows] = -all_log_probs.exp().mul_(all_log_probs).sum(dim=-1)
        ctx.save_for_backward(hidden, weight, labels, normalisers, entropys)
        ctx.chunk, ctx.temperature = chunk, temperature
        ctx.set_materialize_grads(False)
        if not entropy:
            ctx.mark_non_differentiable(entropys)
        return chosen - normalisers, entropys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_probs: Tensor | None, grad_entropys: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, normalisers, entropys = ctx.saved_tensors
        if grad_log_probs is None:
            grad_log_probs = torch.zeros_like(normalisers)
        # Entropies that are only measured, or only weigh tokens, have a gradient of zeros.
        if grad_entropys is not None and (not len(entropys) or not bool(grad_entropys.any())):
            grad_entropys = None
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=normalisers.dtype) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(labels), ctx.chunk):
            logits = _logits(hidden[rows], weight, ctx.temperature, normalisers.dtype)
            grad = _logit_gradient(
                logits.sub_(normalisers[rows].unsqueeze(-1)),
                labels[rows].unsqueeze(-1),
                (grad_log_probs[rows] / ctx.temperature).unsqueeze(-1),
                None if grad_entropys is None else (grad_entropys[rows] / ctx.temperature).unsqueeze(-1),
                None if grad_entropys is None else entropys[rows].unsqueeze(-1),
            ).to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[rows])
            if grad_weight is not None and grad_weight.dtype == grad.dtype:
                grad_weight.addmm_(grad.t(), hidden[rows])
            elif grad_weight is not None:  # 16-bit products are added up in float32: chunks must not cost precision
                grad_weight += grad.t() @ hidden[rows]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None, None


def _chunks(tokens: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, tokens, chunk))


def _logits(hidden: Tensor, weight: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """(c, V) in `dtype`, a fresh tensor that may be written to. The product itself is the model's own, in its dtype."""
    logits = (hidden @ weight.t()).to(dtype)
    return logits if temperature == 1 else logits.div_(temperature)


def _logit_gradient(
    log_probs: Tensor, labels: Tensor, grad_log_prob: Tensor, grad_entropy: Tensor | None, entropy: Tensor | None
) -> Tensor:
    """g·(e_y - p) - g_H·p (log p + H), (c, V), in the memory of `log_probs`; the other arguments are (c, 1)."""
    if grad_entropy is None or entropy is None:
        grad = log_probs.exp_().mul_(-grad_log_prob)
    else:
        p = log_probs.exp()
        grad = log_probs.add_(entropy).mul_(grad_entropy).add_(grad_log_prob).mul_(p).neg_()
    return grad.scatter_add_(-1, labels, grad_log_prob)
