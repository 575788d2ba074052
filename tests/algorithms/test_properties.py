"""What holds of every algorithm: its gradient is the estimator's, independent of how a batch is cut, and finite without parts.

Random batches hold every stream and every kind of row; each algorithm, as conf/ composes it or with an option switched on, is
given the batch cut down to what its terms name, so that a stream that is read and not named is an error here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.algorithms.cases import WITHOUT_ROLLOUTS, by_likelihood, method
from unify_posttrain.algorithms import ALGORITHMS, Algorithm, Phase
from unify_posttrain.experience.rules import Group
from unify_posttrain.objective import (
    KL,
    CurrentPolicy,
    Entropy,
    Members,
    PolicyGradient,
    PseudoLikelihood,
    Term,
    compute_loss,
    token_class,
)

Batch = dict[str, Tensor]
Build = Callable[..., Algorithm]

BONUS = {"actor": {"entropy_coeff": 0.01}}
KL_TERM = {"actor": {"use_kl_loss": True, "kl_loss_coef": 0.3}}
VARIANTS: dict[str, tuple[str, dict]] = {
    **{name: (name, {} if method(name) in WITHOUT_ROLLOUTS else BONUS) for name in ALGORITHMS},
    "grpo kl": ("grpo", KL_TERM),
    "hpt soft": ("hpt", {"hpt": {"strategy": "soft"}, "clip": "ppo", "entropy_on": "all"}),
    "hpt phi": ("hpt", {"sft_form": "phi", "agg": {"sft": "seq-mean-token-mean"}}),
    "hpt psft": ("hpt", {"sft_form": "psft"}),
    "luffy token-mean": ("luffy", {"agg": {"rl": "token-mean"}, "clip": "ppo"}),
    "luffy bounded": ("luffy", {"shaping": {"all_maximum": 0.7}, "agg": {"rl": "seq-mean-token-mean"}}),
    "luffy reject": ("luffy", {"shaping": {"name": "reject", "on": "p_logp"}}),
    "luffy teacher": ("luffy", {"shaping": {"name": "target_prob", "maximum": 1.5}}),
    "luffy on p_div_p": ("luffy", {"shaping": {"on": "p_div_p"}}),
    "srft by_sign": ("srft", {"srft": {"counts": "by_sign", "entropy_scope": "token"}}),
    "srft released": ("srft", {"srft": {"counts": "released", "entropy_scope": "batch"}}),
    "srft ratio": ("srft", {"srft": {"on_form": "log_ratio", "neg_prob_floor": 0.2, "weight_cap": 0.5}}),
    "uft sum": ("uft", {"agg": {"hint": "seq-mean-token-sum"}, "uft": {"hint_coef": 0.5}}),
    "online_sft pseudo": ("online_sft", {"online_sft": {"form": "pseudo"}, **KL_TERM}),
    "online_sft pseudo norm": ("online_sft", {"online_sft": {"form": "pseudo", "length_norm": "consistent"}}),
    "chord nll": ("chord", {"sft_form": "nll"}),
    "prefix_rft all": ("prefix_rft", {"prefix_rft": {"entropy_top": None}}),
    "relift fine-tuning": ("relift", {"relift": {"entropy_coeff": 0.01}}),
}


@pytest.fixture(scope="module")
def variant(tiny: Build) -> Callable[[str], tuple[tuple[Term, ...], dict[str, float]]]:
    """variant(key) -> the terms of an algorithm and factors on them."""

    def build(key: str) -> tuple[tuple[Term, ...], dict[str, float]]:
        name, changes = VARIANTS[key]
        built = tiny(name, **changes)
        if key == "relift fine-tuning":
            return built.replay_terms, {}
        experience = built.experience
        groups = [Group(str(i), i % 3, experience.rollouts(i > 0), i > 0, i > 0) for i in range(5)]
        return built.terms, dict(built.scales(experience.plan(groups), step=150))

    return build


def shipped(terms: Sequence[Term], batch: Batch) -> Batch:
    """What the actor would have: masks, the model's outputs as far as they are asked for, and the streams that terms name."""
    outputs = ["log_probs", *(["entropys"] if any(term.needs_entropy for term in terms) else [])]
    return {name: batch[name] for name in ("response_mask", "prefix_mask", *outputs, *(s for term in terms for s in term.streams))}


def same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


SEEDS, ROWS, WIDTHS = st.integers(0, 2**31), st.integers(1, 8), st.integers(1, 6)
every_variant = pytest.mark.parametrize("key", sorted(VARIANTS))
few = settings(max_examples=4)


# --- the gradient is the estimator's (invariant 10) ------------------------------------------------------------------


def divisor(term: Term, batch: Batch) -> Tensor:
    """(B, 1): what a row's token losses are divided by, from the table of the specification."""
    counted = term.normaliser.mask(batch)
    tokens, rows = counted.sum().clamp(min=1), counted.any(dim=-1).sum().clamp(min=1)
    own = counted.sum(dim=-1, keepdim=True).clamp(min=1)
    horizon, ranks = 4, term.aggregation.divisor
    values = {
        "token-mean": tokens * torch.ones_like(own),
        "seq-mean-token-mean": own * rows,
        "seq-mean-token-sum": rows * torch.ones_like(own),
        "seq-mean-token-sum-norm": rows * horizon * torch.ones_like(own),
        "sum-norm": horizon * ranks * torch.ones_like(own),
    }
    return values[term.aggregation.mode].double()


def coefficient_on_log_prob(term: Term, batch: Batch) -> Tensor:
    """(B, T): ρ of a policy-gradient term; minus the derivative of a KL estimate, or of the published Online SFT loss."""
    loss, lp = term.loss, batch["log_probs"]
    if isinstance(loss, PolicyGradient):
        return loss.rho(batch)
    if isinstance(loss, Entropy):
        return torch.zeros_like(lp)
    d = lp - batch["ref_log_prob"]
    if isinstance(loss, KL):
        assert loss.estimator == "k3"
        return torch.where(torch.exp(-d) + d - 1 > 10, 0.0, torch.exp(-d) - 1)  # of e^-d + d - 1, which is cut at 10 as in verl
    assert isinstance(loss, PseudoLikelihood)
    on = token_class(batch, "on")
    length = on.sum(dim=-1).clamp(min=1) if loss.length_norm == "consistent" else torch.ones(len(lp))
    k1 = torch.where(on, d, 0.0).sum(dim=-1) / length
    # R - β k1 - β, on every sampled token of the row; a row of none has no value
    return ((batch["scores"] - loss.beta * k1 - loss.beta) / length).unsqueeze(-1).expand_as(lp)


@every_variant
@pytest.mark.parametrize("seed", [1, 2])
def test_gradient_is_the_composed_rho(variant: Callable, random_batch: Callable, key: str, seed: int) -> None:
    terms, scales = variant(key)
    batch = shipped(terms, random_batch(seed, rows=40, width=7))
    leaves = {name: batch[name].requires_grad_() for name in ("log_probs", "entropys") if name in batch}
    loss, _ = compute_loss(terms, batch, scales=scales)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)

    batch = {name: value.detach() for name, value in batch.items()}
    on_log_probs, on_entropys = torch.zeros(40, 7, dtype=torch.float64), torch.zeros(40, 7, dtype=torch.float64)
    for term in terms:
        weight = term.members.weight(batch)
        factor = term.coefficient * scales.get(term.name, 1.0) / divisor(term, batch)
        factor = factor * term.members.mask(batch) * (1.0 if weight is None else weight.unsqueeze(-1))
        on_log_probs += factor * coefficient_on_log_prob(term, batch)
        on_entropys -= factor if isinstance(term.loss, Entropy) else 0.0
    expected = {"log_probs": -on_log_probs, "entropys": -on_entropys}
    for name, gradient in zip(leaves, found, strict=True):
        torch.testing.assert_close(torch.zeros(40, 7, dtype=torch.float64) if gradient is None else gradient, expected[name])
    assert (on_log_probs != 0).any()


# --- however the batch is cut, ordered or padded (invariant 1) -------------------------------------------------------


@every_variant
@few
@given(seed=SEEDS, rows=ROWS, width=WIDTHS, cuts=st.lists(st.integers(0, 3), min_size=8, max_size=8), ranks=st.integers(1, 3))
def test_any_split_into_micro_batches_and_ranks(
    variant: Callable,
    random_batch: Callable,
    loss_and_gradient: Callable,
    key: str,
    seed: int,
    rows: int,
    width: int,
    cuts: list[int],
    ranks: int,
) -> None:
    terms, scales = variant(key)
    batch = shipped(terms, random_batch(seed, rows, width))
    parts = [torch.tensor([row for row in range(rows) if cuts[row] == part], dtype=torch.long) for part in range(4)]
    same(loss_and_gradient(terms, batch, parts, ranks, scales), loss_and_gradient(terms, batch, scales=scales))


@every_variant
@few
@given(seed=SEEDS, rows=ROWS, width=WIDTHS, extra_rows=st.integers(0, 3), extra_columns=st.integers(0, 3), data=st.data())
def test_any_order_and_any_padding(
    variant: Callable,
    random_batch: Callable,
    loss_and_gradient: Callable,
    key: str,
    seed: int,
    rows: int,
    width: int,
    extra_rows: int,
    extra_columns: int,
    data: st.DataObject,
) -> None:
    """Rows in another order, with rubbish below and beside them that no mask covers."""
    terms, scales = variant(key)
    batch = shipped(terms, random_batch(seed, rows, width))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    rubbish = shipped(terms, random_batch(seed + 1, rows + extra_rows, width + extra_columns))
    padded = {}
    for name, value in rubbish.items():
        padded[name] = torch.zeros_like(value) if name in ("response_mask", "prefix_mask") else value.clone()
        padded[name][(slice(rows), slice(width))[: value.ndim]] = batch[name][order]
    loss, gradient = loss_and_gradient(terms, batch, scales=scales)
    expected = torch.zeros(rows + extra_rows, width + extra_columns, dtype=torch.float64)
    expected[:rows, :width] = gradient[order]
    same(loss_and_gradient(terms, padded, scales=scales), (loss, expected))


# --- parts that are missing (invariants 5 and 6) ---------------------------------------------------------------------


def without(batch: Batch, *classes: str) -> Batch:
    """The batch after every row that has a token of one of these classes has been silenced."""
    silent = torch.stack([token_class(batch, which).any(dim=-1) for which in classes]).any(dim=0)
    return {**batch, **{name: torch.where(silent[:, None], 0, batch[name]) for name in ("response_mask", "prefix_mask")}}


def is_likelihood(term: Term) -> bool:
    """Trains demonstrations by likelihood, in whatever form."""
    return term.name == "sft"


@every_variant
def test_demonstrations_train_by_likelihood_exactly_if_there_are_any(variant: Callable, random_batch: Callable, key: str) -> None:
    terms = [term for term in variant(key)[0] if is_likelihood(term)]
    assert bool(terms) == (key == "relift fine-tuning" or by_likelihood(VARIANTS[key][0]))
    if not terms:
        return
    batch = shipped(terms, random_batch(5, rows=24, width=5))
    full = {name: torch.ones_like(value) if name.endswith("_weight") else value for name, value in batch.items()}
    demo = token_class(full, "demo")
    assert demo.any()
    gradient = gradient_on_log_probs(terms, full)
    assert torch.equal(gradient != 0, demo if "psft" not in key else demo & (gradient != 0))  # psft's clip stops some of them
    assert (gradient != 0).any()
    assert not gradient_on_log_probs(terms, without(full, "demo")).any()


def gradient_on_log_probs(terms: Sequence[Term], batch: Batch) -> Tensor:
    leaf = batch["log_probs"].detach().clone().requires_grad_()
    loss, metrics = compute_loss(terms, {**batch, "log_probs": leaf})
    assert all(bool(torch.isfinite(value)) for value in (loss, *metrics.values()))
    return torch.autograd.grad(loss, leaf)[0]


@every_variant
@pytest.mark.parametrize("gone", [("demo",), ("on",), ("hint",), ("on", "demo"), ("on", "demo", "hint")], ids="+".join)
def test_batches_without_a_kind_of_row_are_finite(variant: Callable, random_batch: Callable, key: str, gone: tuple) -> None:
    """No demonstrations, nothing but demonstrations, nothing at all: finite, connected, and silent where nothing is trained."""
    terms, _ = variant(key)
    whole = shipped(terms, random_batch(17, rows=20, width=5))
    batch = without(whole, *gone)
    gradient = gradient_on_log_probs(terms, batch)
    acted_on = token_class(batch, "trained") | token_class(batch, "hint")
    assert torch.isfinite(gradient).all()
    assert not gradient[~acted_on].any()
    if gone == ("on", "demo", "hint"):
        loss, metrics = compute_loss(terms, batch)
        assert loss == 0 and all(value == 0 for value in metrics.values())
    # the logged keys do not depend on what the batch holds
    assert set(compute_loss(terms, batch)[1]) == set(compute_loss(terms, whole)[1])


@every_variant
def test_every_named_stream_is_needed_and_its_absence_named(variant: Callable, random_batch: Callable, key: str) -> None:
    terms, _ = variant(key)
    batch = shipped(terms, random_batch(3, rows=6, width=4))
    needed = set(batch) - {"prefix_mask"}
    for name in needed:
        with pytest.raises(KeyError, match=rf"stream \W*{name}\W* is missing"):
            compute_loss(terms, {other: value for other, value in batch.items() if other != name})


@pytest.mark.parametrize(
    ("key", "stream"), [("srft", "entropys"), ("srft", "solved"), ("uft", "ref_log_prob"), ("psft", "old_log_probs")]
)
def test_what_these_read(variant: Callable, random_batch: Callable, key: str, stream: str) -> None:
    """No silent fall-back: not SRFT without entropies, nor UFT without a reference, nor PSFT without π_old."""
    terms, _ = variant(key)
    batch = shipped(terms, random_batch(3, rows=6, width=4))
    del batch[stream]
    with pytest.raises(KeyError, match=stream):
        compute_loss(terms, batch)


# --- what an algorithm says of itself --------------------------------------------------------------------------------


@every_variant
def test_token_classes_are_those_that_read_a_stream(tiny: Build, key: str) -> None:
    name, changes = VARIANTS[key]
    built = tiny(name, **changes)
    for stream in ("old_log_probs", "ref_log_prob", "batch_entropy"):
        readers = [term for term in built.terms if stream in (*term.loss.streams, *term.members.streams)]
        readers_of_counts = [term.normaliser for term in built.terms if stream in term.normaliser.streams]
        classes = {term.members.tokens for term in readers} | {members.tokens for members in readers_of_counts}
        found = built.token_classes_reading(stream)
        assert found == classes | ({"on"} if stream in built.advantage.streams else set())
    if name == "psft":
        assert built.token_classes_reading("old_log_probs") == {"demo"}  # computed for demonstrations, which others spare


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_what_most_algorithms_do_not_have(tiny: Build, name: str) -> None:
    built = tiny(name)
    assert (built.replay is not None) == bool(built.replay_terms) == (method(name) == "relift")
    assert len(built.phases) == (2 if name == "sft_then_rl" else 1)
    assert built.phases[0] == Phase(built) or name == "sft_then_rl"
    assert set(built.step_metrics(1)) <= set(built.own_metrics)
    assert built.single_phase == (method(name) in ("ppo", "relift", "sft_then_rl"))
    names = [term.name for term in built.terms]
    assert len(set(names)) == len(names)


def test_demonstrations_alone_are_the_likelihood_gradient(tiny: Build, random_batch: Callable) -> None:
    """SFT's gradient as an estimator: π_ref = π_θ, Â = 1, whatever the streams of policy gradients hold."""
    (term,) = tiny("sft").terms
    assert term.loss == PolicyGradient(CurrentPolicy(), 1.0) and term.members == Members("demo")
    batch = random_batch(9, rows=10, width=5)
    demo = token_class(batch, "demo")
    torch.testing.assert_close(gradient_on_log_probs([term], batch), -demo.double() / demo.sum())
