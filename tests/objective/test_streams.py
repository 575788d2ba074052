"""References and token weights of one's own: the streams they declare are shipped, checked and silenced as any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import Aggregation, CurrentPolicy, Members, OldPolicy, PolicyGradient, Term, compute_loss
from unify_posttrain.objective.streams import stream

TOKEN_MEAN = Aggregation("token-mean")


@dataclass(frozen=True)
class Teacher:
    """u = π_θ/π_teacher, of a stream that nothing in the package knows."""

    streams: ClassVar[tuple[str, ...]] = ("teacher_log_probs",)

    def surrogate(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(tensors["log_probs"] - stream(tensors, "teacher_log_probs", self))

    def ratio(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.surrogate(tensors).detach()

    def describe(self) -> str:
        return "π_teacher"


def test_a_new_reference_is_shipped_what_it_declares(random_batch: Callable) -> None:
    batch = random_batch(7, rows=6, width=5)
    batch["log_probs"].requires_grad_()
    term = Term("t", PolicyGradient(Teacher(), "advantages"), Members("trained"), TOKEN_MEAN)
    assert set(term.streams) == {"advantages", "teacher_log_probs"}
    with pytest.raises(KeyError, match="stream 'teacher_log_probs' is missing"):
        compute_loss([term], batch)
    batch["teacher_log_probs"] = batch["old_log_probs"]
    mine, _ = compute_loss([term], batch)
    known, _ = compute_loss([Term("t", PolicyGradient(OldPolicy(), "advantages"), Members("trained"), TOKEN_MEAN)], batch)
    assert torch.equal(mine, known)
    assert torch.equal(*(torch.autograd.grad(loss, batch["log_probs"])[0] for loss in (mine, known)))


@dataclass(frozen=True)
class ShareOfRow:
    """A token weight that looks at its whole row, padding included, and at a stream of whole numbers."""

    streams: ClassVar[tuple[str, ...]] = ("trust", "bucket")
    needs_entropy: ClassVar[bool] = False

    def __call__(self, tensors: Mapping[str, Tensor]) -> Tensor:
        trust = stream(tensors, "trust", self)
        table = torch.tensor([0.5, 2.0], dtype=trust.dtype)
        return table[stream(tensors, "bucket", self)] * trust / trust.sum(dim=-1, keepdim=True).clamp(min=1e-3)

    def describe(self) -> str:
        return "share"


def test_a_new_stream_is_checked_and_silenced(random_batch: Callable) -> None:
    """Rubbish that a stream holds under padding must not reach the gradient, whoever declared the stream."""
    batch = random_batch(7, rows=6, width=5)
    outside = ~(batch["response_mask"].bool() | batch["prefix_mask"])
    assert (outside.any(dim=-1) & ~outside.all(dim=-1)).any(), "rows with trained tokens and padding"
    terms = [
        Term("reference", PolicyGradient(Teacher(), "advantages"), Members("trained"), TOKEN_MEAN),
        Term("weight", PolicyGradient(CurrentPolicy(), 1.0, token_weight=ShareOfRow()), Members("trained"), TOKEN_MEAN),
        Term("advantage", PolicyGradient(OldPolicy(), "credit"), Members("trained"), TOKEN_MEAN),
    ]
    for name in ("teacher_log_probs", "trust", "credit"):
        batch[name] = torch.where(outside, 0.0, batch["uniforms"])
    batch["bucket"] = torch.where(outside, 0, (batch["uniforms"] < 0.5).long())

    def gradient(tensors: dict[str, Tensor]) -> Tensor:
        leaf = tensors["log_probs"].detach().clone().requires_grad_()
        loss, _ = compute_loss(terms, {**tensors, "log_probs": leaf})
        return torch.autograd.grad(loss, leaf)[0]

    clean = gradient(batch)
    assert torch.isfinite(clean).all()
    for name in ("teacher_log_probs", "trust", "credit", "bucket"):
        rubbish = 7 if name == "bucket" else float("nan")  # neither a bucket nor a number
        assert torch.equal(gradient({**batch, name: torch.where(outside, rubbish, batch[name])}), clean), name
        with pytest.raises(ValueError, match=rf"'{name}' has shape \(6, 4\), log_probs has \(6, 5\)"):
            compute_loss(terms, {**batch, name: batch[name][:, :4]})
        with pytest.raises(ValueError, match=rf"'{name}' has shape \(5,\)"):
            compute_loss(terms, {**batch, name: batch[name][:5, 0]})
    compute_loss(terms, {**batch, "unread": torch.zeros(3, 3)})  # what no term reads is nobody's business
