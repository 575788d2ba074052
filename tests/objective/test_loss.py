"""compute_loss on the hand-made batches: HPT on F, LUFFY on F and G, per-token gradients, statistics, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import (
    MODES,
    Aggregation,
    Count,
    CurrentPolicy,
    Entropy,
    Members,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Shaped,
    Term,
    compute_loss,
    count_members,
    member_sets,
)

HORIZON = 4


def hpt_terms(mode: str, clip: PPOClip | None = None) -> tuple[Term, ...]:
    """RL and OFF under rl_weight, SFT under sft_weight; NLL is a token mean."""
    aggregation = Aggregation(mode, HORIZON)
    on = PolicyGradient(OldPolicy(), "advantages", clip) if clip else PolicyGradient(OldPolicy(), "advantages")
    off = PolicyGradient(Shaped("p_div_p", gamma=0.1), "advantages")
    return (
        Term("rl", on, Members("on", "rl_weight"), aggregation),
        Term("off", off, Members("demo", "rl_weight"), aggregation),
        Term("sft", PolicyGradient(CurrentPolicy(), 1.0), Members("demo", "sft_weight"), Aggregation("token-mean")),
    )


def luffy_terms(mode: str, shape: str = "p_div_p") -> tuple[Term, ...]:
    """One mean over on-policy and demonstration tokens."""
    aggregation, everything = Aggregation(mode, HORIZON), Members("trained")
    on, off = PolicyGradient(OldPolicy(), "advantages"), PolicyGradient(Shaped(shape, gamma=0.1), "advantages")
    return (
        Term("rl", on, Members("on"), aggregation, counted=everything),
        Term("off", off, Members("demo"), aggregation, counted=everything),
    )


def routed(batch: dict[str, Tensor], advantages: list[float], rl: list[float], sft: list[float]) -> dict[str, Tensor]:
    """The batch with other advantages and a batch plan's weights."""
    values = torch.tensor(advantages, dtype=torch.float64).unsqueeze(-1) * batch["response_mask"]
    weights = {"rl_weight": torch.tensor(rl), "sft_weight": torch.tensor(sft)}
    return {**batch, "advantages": values, **weights}


def number(value: Tensor, expected: float) -> None:
    assert value.item() == pytest.approx(expected, abs=1e-6)


# --- HPT on F: row 0 is the demonstration of a gated prompt, rows 1-2 an RL group with A = .5, -.5 --------------------
#   ratios: row 1: .8/.5 + .4/.5 + .5/.5 = 1.6 + .8 + 1 = 3.4; row 2: 1 + .5 = 1.5
#   Σ -A r = -.5*3.4 + .5*1.5 = -.95
#   NLL = -(log .5 + log .1 + log .9)/3 = (.693147 + 2.302585 + .105361)/3 = 1.033698


@pytest.fixture
def switch(fixture_f: Callable[[], dict]) -> dict[str, Tensor]:
    return routed(fixture_f(), [0, 0.5, -0.5], rl=[0.0, 1.0, 1.0], sft=[1.0, 0.0, 0.0])


def test_hpt_own_scales(switch: dict[str, Tensor]) -> None:
    loss, metrics = compute_loss(hpt_terms("sum-norm"), switch)
    number(metrics["rl_loss"], -0.2375)  # -.95/(4 * 1)
    number(metrics["sft_loss"], 1.033698)
    number(metrics["off_loss"], 0.0)
    number(loss, 0.796198)  # -.2375 + 1.033698


def test_hpt_shares_of_prompts(switch: dict[str, Tensor]) -> None:
    # two prompts, one in each term: c_rl = c_sft = 1/2
    loss, metrics = compute_loss(hpt_terms("seq-mean-token-sum-norm"), switch, scales={"rl": 0.5, "sft": 0.5, "off": 0.0})
    number(metrics["rl_loss"], -0.11875)  # -.95/(2 rows * 4), before its scale
    number(metrics["sft_loss"], 1.033698)
    number(loss, 0.457474)  # (-.11875 + 1.033698)/2
    number(metrics["total_loss"], 0.457474)


def test_hpt_off_zone(fixture_f: Callable[[], dict]) -> None:
    # row 0 by the off-policy term, A = 1: f = .5/.6 + .1/.2 + .9/1 = 2.233333, / 4
    batch = routed(fixture_f(), [1, 0.5, -0.5], rl=[1.0, 1.0, 1.0], sft=[0.0, 0.0, 0.0])
    _, metrics = compute_loss(hpt_terms("sum-norm"), batch)
    number(metrics["off_loss"], -0.558333)
    number(metrics["rl_loss"], -0.2375)  # demonstrations do not touch the on-policy term
    number(metrics["sft_loss"], 0.0)


def test_hpt_soft_weights(fixture_f: Callable[[], dict]) -> None:
    # on .125, off 0, sft .5, mixed A: Σ -A r = -3.4/3 + 2*1.5/3 = -.133333; .125 * -.133333/4 + .5 * 1.033698 = .512682
    batch = routed(fixture_f(), [1 / 3, 1 / 3, -2 / 3], rl=[0.0, 0.125, 0.125], sft=[0.5, 0.0, 0.0])
    loss, metrics = compute_loss(hpt_terms("sum-norm"), batch)
    number(metrics["rl_loss"], -0.133333 * 0.125 / 4)
    number(metrics["off_loss"], 0.0)
    number(metrics["sft_loss"], 0.516849)
    number(loss, 0.512682)


def test_coefficients_and_scales_multiply(switch: dict[str, Tensor]) -> None:
    rl, off, sft = hpt_terms("sum-norm")
    heavy = Term("sft", sft.loss, sft.members, sft.aggregation, coefficient=0.3)
    loss, metrics = compute_loss((rl, off, heavy), switch, scales={"sft": 0.5})
    number(metrics["sft_loss"], 1.033698)  # as if alone
    number(loss, -0.2375 + 0.3 * 0.5 * 1.033698)


# --- LUFFY -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "shape", "expected"),
    [  # A = 1/3, 1/3, -2/3: -(2.233333 + 3.4)/3 + 2*1.5/3 = -.877778 over 8 tokens
        ("sum-norm", "p_div_p", -0.219444),  # /4
        ("token-mean", "p_div_p", -0.109722),  # /8
        ("sum-norm", "none", -0.158333),  # f = p: -(1.5 + 3.4)/3 + 1 = -.633333, /4
    ],
)
def test_luffy_on_f(fixture_f: Callable[[], dict], mode: str, shape: str, expected: float) -> None:
    loss, _ = compute_loss(luffy_terms(mode, shape), fixture_f())
    number(loss, expected)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [  # f = .833333 + .166667 + .9 + .75 = 2.65; r = 1 + 1.2 + 1 = 3.2; .777778 + 1 = 1.777778
        ("token-mean", -0.084979),  # (-(2.65 + 3.2)/3 + 2*1.777778/3)/9 = -.764815/9
        ("seq-mean-token-sum-norm", -0.063735),  # -.764815/(3 rows * 4)
        ("sum-norm", -0.191204),  # -.764815/4
    ],
)
def test_luffy_on_g(fixture_g: Callable[[], dict], mode: str, expected: float) -> None:
    loss, _ = compute_loss(luffy_terms(mode), fixture_g())
    number(loss, expected)


def test_luffy_gradient_per_token_on_g(fixture_g: Callable[[], dict]) -> None:
    # row 0: -A .1 p/(p + .1)^2 = -.05/.36/3, -.002/.0144/3, -.09/1/3, -.03/.16/3; rows 1, 2: -A r
    batch = fixture_g()
    loss, _ = compute_loss(luffy_terms("token-mean"), batch)
    gradient = torch.autograd.grad(loss, batch["log_probs"])[0] * 9  # of the sum of the 9 token losses
    expected = [
        [-0.046296, -0.046296, -0.03, -0.0625],
        [-0.333333, -0.4, -0.333333, 0],
        [0.518519, 0.666667, 0, 0],
    ]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_one_mean_over_both_classes_of_a_row_that_holds_both(mode: str) -> None:
    """LUFFY with a prefix: a row begins with demonstration tokens and goes on with its own; n_i counts both."""
    p = torch.tensor([[0.5, 0.2, 0.4, 0.8], [0.5, 0.9, 0.3, 1.0]], dtype=torch.float64)
    batch = {
        "log_probs": p.log(),
        "old_log_probs": p.log(),
        "response_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "prefix_mask": torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]),
        "advantages": torch.tensor([[0.5] * 4, [-0.25] * 4], dtype=torch.float64),
    }
    mixed, _ = compute_loss(luffy_terms(mode, "none"), batch)
    # token losses: row 0 -.5*(.5 + .2 + .4) on the prefix, -.5*1 after it = -1.05; row 1 .25*3 = .75
    expected = {
        "token-mean": -0.3 / 7,
        "seq-mean-token-mean": (-1.05 / 4 + 0.75 / 3) / 2,
        "seq-mean-token-sum": -0.3 / 2,
        "seq-mean-token-sum-norm": -0.3 / 8,
        "sum-norm": -0.3 / 4,
    }
    number(mixed, expected[mode])


# --- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_on_f(switch: dict[str, Tensor]) -> None:
    _, metrics = compute_loss(hpt_terms("sum-norm", PPOClip(0.2, 0.2, dual=3.0)), switch, scales={"sft": 0.5})
    number(metrics["on_p"], (0.8 + 0.4 + 0.5 + 0.6 + 0.3) / 5)
    number(metrics["demo_p"], (0.5 + 0.1 + 0.9) / 3)
    number(metrics["demo_nll"], 1.033698)
    number(metrics["rl_ratio"], (3.4 + 1.5) / 5)
    number(metrics["rl_kept"], 3 / 5)  # r = 1.6 with A > 0 and r = .5 with A < 0 are cut
    number(metrics["rl_clipfrac"], 2 / 5)
    number(metrics["rl_clipfrac_lower"], 0.0)
    number(metrics["demo_rho"], 0.5)  # SFT's 1, times its scale
    number(metrics["on_rho"], (0.5 * (0.8 + 1) - 0.5 * 1) / 5)
    # mean of log π_old - log π = -log r: -(log 1.6 + log .8 + log .5)/5 = -log(.64)/5
    number(metrics["ppo_kl"], 0.446287 / 5)
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())


def test_metrics_are_the_same_keys_for_every_batch(switch: dict[str, Tensor]) -> None:
    empty = {**switch, "response_mask": torch.zeros(3, 4)}
    keys = [set(compute_loss(hpt_terms("token-mean"), batch)[1]) for batch in (switch, empty)]
    assert keys[0] == keys[1]


# --- counts ----------------------------------------------------------------------------------------------------------


def test_counts_of_f(switch: dict[str, Tensor]) -> None:
    counts = count_members(hpt_terms("sum-norm"), switch)
    expected = {
        "on": (5, 2),
        "demo": (3, 1),
        "on*rl_weight": (5, 2),
        "demo*rl_weight": (0, 0),
        "demo*sft_weight": (3, 1),
    }
    assert {key: tuple(int(value) for value in count) for key, count in counts.items()} == expected


def test_member_sets_are_distinct_and_ordered() -> None:
    assert [members.key for members in member_sets(luffy_terms("sum-norm"))] == ["on", "demo", "trained"]
    assert member_sets(luffy_terms("sum-norm")) == member_sets(luffy_terms("sum-norm"))


def test_counts_are_exact_beyond_float32() -> None:
    # 4097^2 = 16 785 409 is odd and above 2^24: float32 cannot hold it
    mask = torch.ones(1, 1, dtype=torch.bool).expand(4097, 4097)
    term = Term("rl", Entropy(), Members("trained"), Aggregation("token-mean"))
    assert count_members([term], {"response_mask": mask})["trained"].tokens.item() == 4097**2


@pytest.mark.parametrize("kind", ["float32", "float64", "number"])
def test_float32_batches_stay_float32_whatever_the_counts(random_batch: Callable, kind: str) -> None:
    batch = random_batch(2, rows=4, width=5, dtype=torch.float32)
    batch["log_probs"].requires_grad_()
    counts = {
        key: Count(*(float(v) if kind == "number" else v.to(getattr(torch, kind)) for v in count))
        for key, count in count_members(hpt_terms("token-mean"), batch).items()
    }
    loss, metrics = compute_loss(hpt_terms("token-mean"), batch, counts)
    reference, _ = compute_loss(hpt_terms("token-mean"), batch)
    assert loss.dtype == torch.float32
    assert {value.dtype for value in metrics.values()} == {torch.float32}
    assert torch.equal(loss, reference)
    loss.backward()
    assert batch["log_probs"].grad.dtype == torch.float32


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["log_probs", "old_log_probs", "advantages", "rl_weight", "sft_weight", "response_mask"])
def test_missing_stream_is_named(switch: dict[str, Tensor], name: str) -> None:
    with pytest.raises(KeyError, match=rf"stream \W*{name}\W* is missing"):
        compute_loss(hpt_terms("token-mean"), {key: value for key, value in switch.items() if key != name})


def test_without_prefix_mask_a_term_on_target_tokens_is_an_error(switch: dict[str, Tensor]) -> None:
    """Never silently plain PPO on the demonstrations."""
    bare = {key: value for key, value in switch.items() if key != "prefix_mask"}
    counts = count_members(hpt_terms("token-mean"), switch)
    for call in (
        lambda terms: count_members(terms, bare),
        lambda terms: compute_loss(terms, bare),
        lambda terms: compute_loss(terms, bare, counts),
    ):
        with pytest.raises(KeyError, match=r"'prefix_mask' is missing.*tokens='demo'.*response_mask.*rl_weight"):
            call(hpt_terms("token-mean"))
    on = hpt_terms("token-mean")[0]
    entropy = Term("entropy", Entropy(), Members("trained"), Aggregation("token-mean"))
    _, metrics = compute_loss([on, entropy], {**bare, "entropys": torch.ones(3, 4)})  # statistics do without
    number(metrics["demo_p"], 0.0)
    number(metrics["on_p"], (0.5 + 0.1 + 0.9 + 0.8 + 0.4 + 0.5 + 0.6 + 0.3) / 8)


def test_terms_whose_batches_may_have_no_target_tokens_say_so(switch: dict[str, Tensor]) -> None:
    hint = PolicyGradient(CurrentPolicy(), 1.0)
    aggregation = Aggregation("token-mean")
    lenient = Term("hint", hint, Members("hint", may_be_absent=True), aggregation)
    bare = {key: value for key, value in switch.items() if key != "prefix_mask"}
    _, metrics = compute_loss([lenient], bare)
    number(metrics["hint_loss"], 0.0)
    number(metrics["hint_p"], 0.0)
    assert {key: int(count.tokens) for key, count in count_members([lenient], bare).items()} == {"on": 8, "demo": 0, "hint": 0}
    # beside a term that insists, the same set is no longer lenient, in whichever order they stand
    strict = Term("other", hint, Members("hint"), aggregation)
    for terms in ([lenient, strict], [strict, lenient]):
        with pytest.raises(KeyError, match="prefix_mask"):
            count_members(terms, bare)


def test_wrong_shapes_and_double_names_are_refused(switch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'advantages' has shape \(3, 3\)"):
        compute_loss(hpt_terms("token-mean"), {**switch, "advantages": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        compute_loss(hpt_terms("token-mean"), {**switch, "log_probs": torch.zeros(3)})
    with pytest.raises(ValueError, match="one name"):
        compute_loss((*hpt_terms("token-mean"), hpt_terms("sum-norm")[0]), switch)
