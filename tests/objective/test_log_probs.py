"""Log-probs and entropies in chunks: golden numbers, the plain form's values and gradients, any chunk, little memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.objective.log_probs import token_log_probs


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    all_log_probs = (hidden @ weight.t() / temperature).log_softmax(dim=-1)
    chosen = all_log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return chosen, -(all_log_probs.exp() * all_log_probs).sum(dim=-1)


def inputs(tokens: int, words: int = 11, width: int = 4, dtype: torch.dtype = torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(words, width, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(words, (tokens,), generator=generator)


def test_golden_numbers() -> None:
    """z = (ln 1, ln 3) at τ = 1: p = (1/4, 3/4), H = 1/4 ln 4 + 3/4 ln 4/3 = ln 4 - 3/4 ln 3 = 0.562335.
    At τ = 1/2 logits double: p = (1/10, 9/10), H = ln 10 - 0.9 ln 9 = 0.325083."""
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    for label, temperature, probability, entropy in ((0, 1.0, 0.25, 0.562335), (1, 1.0, 0.75, 0.562335), (1, 0.5, 0.9, 0.325083)):
        log_probs, entropys = token_log_probs(hidden, weight, torch.tensor([label]), chunk=1, temperature=temperature, entropy=True)
        assert log_probs.item() == pytest.approx(math.log(probability), abs=1e-6)
        assert entropys.item() == pytest.approx(entropy, abs=1e-6)


def test_golden_gradients() -> None:
    """Same p = (1/4, 3/4), label 0. ∂ log p_0/∂z = (1 - 1/4, -3/4); times w = (0, ln 3): ∂/∂h = -3/4 ln 3 = -0.823959.
    ∂H/∂z_v = -p_v (ln p_v + H): -1/4 (ln 1/4 + 0.562335) = 0.205990, and its opposite; ∂H/∂h = -0.205990 ln 3 = -0.226303."""
    for pick, expected_weight, expected_hidden in ((0, (0.75, -0.75), -0.823959), (1, (0.205990, -0.205990), -0.226303)):
        hidden, weight = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [math.log(3)]], requires_grad=True)
        token_log_probs(hidden, weight, torch.tensor([0]), chunk=1, entropy=True)[pick].sum().backward()
        assert weight.grad.squeeze(-1).tolist() == pytest.approx(expected_weight, abs=1e-5)
        assert hidden.grad.item() == pytest.approx(expected_hidden, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 9),
    chunk=st.integers(1, 12),
    temperature=st.floats(0.3, 3.0),
    use=st.sampled_from(["log_probs", "entropys", "both", "neither"]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_of_the_plain_form(tokens, chunk, temperature, use, seed) -> None:
    """Any chunk, also one that does not divide the tokens or exceeds them, also no token at all."""
    found = inputs(tokens, seed=seed)
    expected = inputs(tokens, seed=seed)
    factors = torch.randn(2, tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = factors * torch.tensor([[use in ("log_probs", "both")], [use in ("entropys", "both")]])
    outputs = token_log_probs(*found, chunk=chunk, temperature=temperature, entropy=True)
    references = plain(*expected, temperature)
    for values in (outputs, references):
        (values[0] @ factors[0] + values[1] @ factors[1]).backward()
    for mine, reference in zip(
        (*outputs, *(t.grad for t in found[:2])), (*references, *(t.grad for t in expected[:2])), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-12)


def test_without_entropy_there_is_none_and_log_probs_are_the_same() -> None:
    hidden, weight, labels = inputs(6)
    with_entropy, entropys = token_log_probs(hidden, weight, labels, chunk=4, entropy=True)
    alone, none = token_log_probs(hidden, weight, labels, chunk=4)
    assert none is None and entropys.shape == (6,) and torch.equal(alone, with_entropy)
    alone.sum().backward()
    reference = inputs(6)
    plain(*reference, 1.0)[0].sum().backward()
    torch.testing.assert_close(weight.grad, reference[1].grad)


def test_either_input_may_be_frozen() -> None:
    hidden, weight, labels = inputs(6)
    token_log_probs(hidden, weight.detach(), labels, chunk=4)[0].sum().backward()
    assert hidden.grad is not None
    hidden, weight, labels = inputs(6)
    token_log_probs(hidden.detach(), weight, labels, chunk=4)[0].sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not token_log_probs(hidden, weight, labels, chunk=4, entropy=True)[0].requires_grad


def test_leading_dimensions_are_kept() -> None:
    hidden, weight, labels = inputs(6)
    flat = token_log_probs(hidden, weight, labels, chunk=4, entropy=True)
    folded = token_log_probs(hidden.view(2, 3, 4), weight, labels.view(2, 3), chunk=4, entropy=True)
    for one, other in zip(flat, folded, strict=True):
        assert other.shape == (2, 3) and torch.equal(one, other.flatten())


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_float32_is_exact_to_rounding_at_any_offset_of_the_logits(offset) -> None:
    """A common offset of all logits changes no probability; ln Z - Σ p z would lose the entropy to cancellation."""
    weight = torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    hidden = torch.tensor([[1.0, offset]])
    expected = plain(torch.tensor([[1.0, 0.0]]).double(), weight.double(), torch.tensor([0]), 1.0)
    found = token_log_probs(hidden, weight, torch.tensor([0]), chunk=1, entropy=True)
    tolerance = 1e-6 + offset * 2**-23
    assert found[0].item() == pytest.approx(expected[0].item(), abs=tolerance)
    assert found[1].item() == pytest.approx(expected[1].item(), abs=2 * tolerance)


def test_sixteen_bit_inputs_give_float32_log_probs_and_sums() -> None:
    """The logits are the model's bfloat16 product; nothing after it is rounded again: values equal the plain float32 form of the
    same logits, and 64 chunks of one token lose no more of the weight's gradient than one chunk of 64."""
    hidden, weight, labels = inputs(64, words=50, width=16, dtype=torch.bfloat16)
    logits = (hidden @ weight.t()).float()
    expected = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    gradients = []
    for chunk in (1, 64):
        weight.grad = None
        log_probs, _ = token_log_probs(hidden, weight, labels, chunk=chunk)
        assert log_probs.dtype == torch.float32
        torch.testing.assert_close(log_probs, expected, rtol=1e-5, atol=1e-5)
        log_probs.sum().backward()
        assert weight.grad.dtype == torch.bfloat16
        gradients.append(weight.grad.double())
    exact = inputs(64, words=50, width=16, dtype=torch.bfloat16)
    exact = exact[0].detach().double(), exact[1].detach().double().requires_grad_(), exact[2]
    plain(*exact, 1.0)[0].sum().backward()
    errors = [float((gradient - exact[1].grad).norm() / exact[1].grad.norm()) for gradient in gradients]
    assert max(errors) < 0.01 and errors[0] < 1.5 * errors[1]


def test_logits_exist_a_chunk_at_a_time() -> None:
    """The largest tensor made, in numbers, by forward and backward: the chunk's logits, not those of all tokens."""
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                largest.append(result.numel())
            return result

    hidden, weight, labels = inputs(40, words=100, width=2)
    with Watch():
        log_probs, entropys = token_log_probs(hidden, weight, labels, chunk=8, entropy=True)
        (log_probs.sum() + (entropys**2).sum()).backward()
    assert max(largest) == 8 * 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk": 0}, r"chunk=0 must be at least 1"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be positive"),
        ({"temperature": float("nan")}, r"temperature=nan must be positive"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, r"do not fit.*\(4,\)"),
        ({"weight": torch.zeros(11, 3)}, r"do not fit.*\(11, 3\)"),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    hidden, weight, labels = inputs(5)
    arguments = {"hidden": hidden, "weight": weight, "labels": labels, "chunk": 2, **change}
    with pytest.raises(ValueError, match=message):
        token_log_probs(**arguments)
