"""Terms: token classes, member sets, the table of ρ against autograd, KL estimators, token weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unify_posttrain.objective import (
    KL,
    RATIO_SHAPES,
    SHAPES,
    TOKEN_CLASSES,
    Aggregation,
    CurrentPolicy,
    Entropy,
    Members,
    NoStabiliser,
    OldPolicy,
    One,
    PolicyGradient,
    PPOClip,
    PseudoLikelihood,
    Reference,
    Shaped,
    ShapedRatio,
    Stabiliser,
    Term,
    compute_loss,
    token_class,
)

TOKEN_MEAN = Aggregation("token-mean")


def scalar(name: str, value: float) -> dict[str, Tensor]:
    return {name: torch.tensor([[value]], dtype=torch.float64)}


def gradient(loss: PolicyGradient | KL, tensors: dict[str, Tensor]) -> Tensor:
    return torch.autograd.grad(loss.token_loss(tensors).sum(), tensors["log_probs"])[0]


def close(actual: Tensor, expected: list | Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=0)


# --- token classes and member sets ---------------------------------------------------------------------------------


def test_token_classes() -> None:
    # columns: own token, demonstration token, hint token, padding
    tensors = {"response_mask": torch.tensor([[1, 1, 0, 0]]), "prefix_mask": torch.tensor([[0, 1, 1, 0]])}
    expected = {"on": [1, 0, 0, 0], "demo": [0, 1, 0, 0], "hint": [0, 0, 1, 0], "trained": [1, 1, 0, 0]}
    assert set(expected) == set(TOKEN_CLASSES)
    for name, mask in expected.items():
        assert token_class(tensors, name).tolist() == [[bool(value) for value in mask]]
        assert token_class(tensors, name).dtype == torch.bool


def test_without_prefix_mask_everything_trained_is_on_policy() -> None:
    tensors = {"response_mask": torch.tensor([[1, 1, 0]])}
    assert torch.equal(token_class(tensors, "on"), token_class(tensors, "trained"))
    assert not token_class(tensors, "demo").any()
    assert not token_class(tensors, "hint").any()


def test_unknown_class_and_missing_mask() -> None:
    with pytest.raises(ValueError, match=r"'off'.*on, demo, hint, trained"):
        token_class({"response_mask": torch.ones(1, 1)}, "off")
    with pytest.raises(ValueError, match=r"'off'.*on, demo, hint, trained"):
        Members("off")
    with pytest.raises(KeyError, match="response_mask"):
        token_class({}, "on")


def test_a_row_of_weight_zero_is_no_member() -> None:
    tensors = {
        "response_mask": torch.tensor([[1, 1], [1, 0], [1, 1]]),
        "rl_weight": torch.tensor([0.0, 0.125, -1.0]),
    }
    assert Members("on", "rl_weight").mask(tensors).tolist() == [[False, False], [True, False], [True, True]]
    assert Members("on").mask(tensors).tolist() == [[True, True], [True, False], [True, True]]
    assert Members("on").weight(tensors) is None
    with pytest.raises(KeyError, match="stream 'sft_weight' is missing"):
        Members("demo", "sft_weight").mask({**tensors, "prefix_mask": torch.zeros(3, 2)})


@pytest.mark.parametrize("tokens", ["demo", "hint"])
def test_target_tokens_need_the_mask_that_marks_them(tokens: str) -> None:
    tensors = {"response_mask": torch.ones(2, 3), "advantages": torch.ones(2, 3)}
    with pytest.raises(KeyError, match=rf"'prefix_mask' is missing.*Members\(tokens='{tokens}'.*advantages.*response_mask"):
        Members(tokens).mask(tensors)
    assert not Members(tokens, may_be_absent=True).mask(tensors).any()
    for always in ("on", "trained"):
        assert Members(always).mask(tensors).all()
        assert not Members(always).needs_prefix_mask
    # which tokens the set holds is not changed by it, so neither is what it is counted under
    assert Members(tokens, may_be_absent=True) == Members(tokens)
    assert hash(Members(tokens, may_be_absent=True)) == hash(Members(tokens))
    assert Members(tokens, may_be_absent=True).key == Members(tokens).key


def test_keys_tell_member_sets_apart() -> None:
    sets = [
        Members(name, weight, bound)
        for name in TOKEN_CLASSES
        for weight in (None, "rl_weight", "sft_weight")
        for bound in (None, 0.5, 0.9)
    ]
    assert len({members.key for members in sets}) == len(sets)


def test_tokens_above_a_probability_leave_the_set() -> None:
    tensors = {
        "response_mask": torch.tensor([[1, 1, 1, 0]]),
        "prefix_mask": torch.tensor([[1, 0, 0, 0]]),
        "old_log_probs": torch.tensor([[0.9, 0.5, 0.95, 0.1]]).log(),
    }
    assert Members("trained", max_probability=0.9).mask(tensors).tolist() == [[True, True, False, False]]
    assert Members("demo", max_probability=0.8).mask(tensors).tolist() == [[False, False, False, False]]
    assert Members("on", max_probability=1.0).mask(tensors).tolist() == [[False, True, True, False]]
    assert Members("on", max_probability=0.9).streams == ("old_log_probs",)
    with pytest.raises(KeyError, match="old_log_probs"):
        Members("on", max_probability=0.9).mask({"response_mask": torch.ones(1, 1)})
    for bound in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"fusion\.shaping\.all_maximum.*\(0, 1\]"):
            Members("on", max_probability=bound)


# --- ρ = 1_stable · π/π_ref · A --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "loss", "rho"),
    [  # p = .3, π_old = .25, A = .7
        ("SFT", PolicyGradient(CurrentPolicy(), 1.0), 1.0),
        ("REINFORCE", PolicyGradient(CurrentPolicy(), "advantages"), 0.7),
        ("PPO", PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.28)), 0.84),  # 1.2 * .7, inside 1.28
        ("PPO clipped", PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.19)), 0.0),  # 1.2 > 1.19
        ("LUFFY", PolicyGradient(Shaped("p_div_p", 0.1), "advantages"), 0.13125),  # .1*.3/.4^2 * .7 = .1875 * .7
        ("LUFFY unshaped", PolicyGradient(One(), "advantages"), 0.21),  # .3 * .7
        ("DFT", PolicyGradient(One(), 1.0), 0.3),
    ],
)
def test_table_of_rho(method: str, loss: PolicyGradient, rho: float) -> None:
    lp = {"log_probs": torch.tensor([[math.log(0.3)]], dtype=torch.float64, requires_grad=True)}
    tensors = {**lp, **scalar("old_log_probs", math.log(0.25)), **scalar("advantages", 0.7)}
    close(loss.rho(tensors), [[rho]])
    close(-gradient(loss, tensors), [[rho]])


REFERENCES = [OldPolicy(), CurrentPolicy(), One(), *(Shaped(name, gamma=0.2) for name in SHAPES)]
REFERENCES += [Shaped("p_div_p", minimum=0.3, maximum=0.8), Shaped("none", maximum=0.5)]
REFERENCES += [ShapedRatio(name, gamma=0.2) for name in RATIO_SHAPES[1:]]
STABILISERS = [NoStabiliser(), PPOClip(0.2, 0.28), PPOClip(0.2, 0.2, dual=3.0), PPOClip(0.0, 0.0, dual=1.5)]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.describe())
@pytest.mark.parametrize("stabiliser", STABILISERS, ids=lambda stabiliser: stabiliser.describe())
@pytest.mark.parametrize("sign", [1, -1, 0])
def test_composed_rho_is_minus_the_derivative_of_the_loss(
    random_batch: Callable, reference: Reference, stabiliser: Stabiliser, sign: int
) -> None:
    tensors = random_batch(11, rows=6, width=40)
    tensors["log_probs"].requires_grad_()
    tensors["advantages"] = tensors["advantages"].abs() * sign
    tensors["w"] = tensors["uniforms"] + 0.5
    for loss in (
        PolicyGradient(reference, "advantages", stabiliser),
        PolicyGradient(reference, 0.8 * sign, stabiliser),
        PolicyGradient(reference, "advantages", stabiliser, token_weight="w"),
    ):
        rho = loss.rho(tensors)
        close(-gradient(loss, tensors), rho, 1e-12)
        assert not rho.requires_grad
        # The spec's form of the estimator: -Σ sg(ρ)·lp has the gradient of the direct loss.
        direct = torch.autograd.grad((-rho * tensors["log_probs"]).sum(), tensors["log_probs"])[0]
        close(direct, gradient(loss, tensors), 1e-12)
        assert torch.equal(loss.stable(tensors) & (rho != 0), rho != 0)


def test_statistics_are_detached_and_bounded(random_batch: Callable) -> None:
    tensors = random_batch(3, rows=4, width=6)
    tensors["log_probs"].requires_grad_()
    statistics = PolicyGradient(OldPolicy(), "advantages", PPOClip(0.2, 0.2, dual=3.0)).statistics(tensors)
    assert set(statistics) == {"weight", "ratio", "kept", "clipfrac", "clipfrac_lower"}
    assert torch.equal(statistics["weight"], torch.ones(4, 6))  # no token weight: 1
    for value in statistics.values():
        assert value.shape == (4, 6)
        assert not value.requires_grad
    # a token is kept, or one of the two bounds took it away
    total = statistics["kept"] + statistics["clipfrac"] + statistics["clipfrac_lower"]
    close(total, torch.ones(4, 6), 1e-12)


# --- losses that are token weights ---------------------------------------------------------------------------------


def test_dft_as_a_token_weight() -> None:
    # DFT, -sg(p) lp on p = .5, .1, .9: (.5*.693147 + .1*2.302585 + .9*.105361)/3 = .223886
    p = torch.tensor([[0.5, 0.1, 0.9]], dtype=torch.float64)
    tensors = {"log_probs": p.log().requires_grad_(), "p": p, "response_mask": torch.ones(1, 3)}
    loss = PolicyGradient(CurrentPolicy(), 1.0, token_weight="p")
    assert loss.token_loss(tensors).mean().item() == pytest.approx(0.223886, abs=1e-6)
    close(gradient(loss, tensors), gradient(PolicyGradient(One(), 1.0), tensors), 1e-12)


def test_srft_terms_are_token_weights(fixture_g: Callable[[], dict]) -> None:
    # G, sequence scope: H = .6, .5, .9. w_s = .5 e^-.6 = .274406; NLL(row 0) = 5.914504/4 -> .405744.
    # w_r = .1 e^.5 = .164872 on row 1 (correct), -1 on row 2: (.164872*1.650260 - 1.742969)/5 = -.294177.
    batch = fixture_g()
    batch["w_sft"] = torch.full((3, 4), 0.5 * math.exp(-0.6), dtype=torch.float64)
    signed = torch.tensor([[0.0], [0.1 * math.exp(0.5)], [-1.0]], dtype=torch.float64)
    batch["signed"] = signed.expand(3, 4)
    terms = (
        Term("sft", PolicyGradient(CurrentPolicy(), 1.0, token_weight="w_sft"), Members("demo"), TOKEN_MEAN),
        Term("demo", PolicyGradient(Shaped("p_div_p", 0.1), "advantages"), Members("demo"), TOKEN_MEAN),
        Term("on", PolicyGradient(CurrentPolicy(), "signed"), Members("on"), TOKEN_MEAN),
    )
    total, metrics = compute_loss(terms, batch)
    assert metrics["sft_loss"].item() == pytest.approx(0.405744, abs=1e-6)
    assert metrics["demo_loss"].item() == pytest.approx(-0.220833, abs=1e-6)
    assert metrics["on_loss"].item() == pytest.approx(-0.294177, abs=1e-6)
    assert total.item() == pytest.approx(-0.109267, abs=1e-6)


def test_hint_likelihood() -> None:
    # UFT: pg -.12 + .001 * KL .03 + .001 * NLL of the hint p .5, .1, .8 = .001 * (.693147 + 2.302585 + .223144)/3
    tensors = {
        "log_probs": torch.tensor([[0.5, 0.1, 0.8, 0.3]], dtype=torch.float64).log(),
        "response_mask": torch.tensor([[0, 0, 0, 1]]),
        "prefix_mask": torch.tensor([[1, 1, 1, 0]]),
    }
    term = Term("hint", PolicyGradient(CurrentPolicy(), 1.0), Members("hint"), TOKEN_MEAN, coefficient=0.001)
    loss, _ = compute_loss([term], tensors)
    assert -0.12 + 0.001 * 0.03 + loss.item() == pytest.approx(-0.118897, abs=1e-6)


# --- KL and entropy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "value", "slope"),
    [  # lp = -1, ref = -1.4, d = .4
        (("k1", "kl"), 0.4, 1.0),
        (("k2", "mse"), 0.08, 0.4),  # d^2/2, d
        (("k3", "low_var_kl"), 0.070320, 0.329680),  # e^-.4 + .4 - 1, 1 - e^-.4
    ],
)
def test_kl_estimators(names: tuple[str, str], value: float, slope: float) -> None:
    lp = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    tensors = {"log_probs": lp, **scalar("ref_log_prob", -1.4)}
    for name in names:
        close(KL(name).token_loss(tensors), [[value]])
        close(gradient(KL(name), tensors), [[slope]])
    assert KL(names[0]) == KL(names[1])


def test_k3_is_bounded() -> None:
    # d = -30: e^30 would overflow a loss; clamped to 10, without gradient
    lp = torch.tensor([[-31.0]], dtype=torch.float64, requires_grad=True)
    tensors = {"log_probs": lp, **scalar("ref_log_prob", -1.0)}
    close(KL("k3").token_loss(tensors), [[10.0]])
    close(gradient(KL("k3"), tensors), [[0.0]])


def test_kl_of_a_policy_with_itself_is_zero(random_batch: Callable) -> None:
    tensors = random_batch(5, rows=3, width=4)
    for name in ("k1", "k2", "k3"):
        close(KL(name).token_loss({**tensors, "ref_log_prob": tensors["log_probs"]}), torch.zeros(3, 4), 1e-12)


def test_unknown_kl_is_refused() -> None:
    with pytest.raises(ValueError, match=r"actor\.kl_loss_type='k4'.*k1, k2, k3.*low_var_kl"):
        KL("k4")


def test_entropy_reads_entropys() -> None:
    tensors = scalar("entropys", 1.5)
    close(Entropy().token_loss(tensors), [[1.5]])
    with pytest.raises(KeyError, match="entropys"):
        Entropy().token_loss({})


# --- what a term asks the batch for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "streams"),
    [
        (PolicyGradient(OldPolicy(), "advantages"), {"advantages", "old_log_probs"}),
        (PolicyGradient(CurrentPolicy(), 1.0), set()),
        (PolicyGradient(One(), 1.0, token_weight="phi"), {"phi"}),
        (PolicyGradient(Shaped("p_div_p"), "advantages"), {"advantages"}),
        (PolicyGradient(Shaped("reject"), "advantages"), {"advantages", "uniforms"}),
        (PolicyGradient(Shaped("target_prob"), "advantages"), {"advantages", "target_probs"}),
        (PolicyGradient(ShapedRatio("logp"), "advantages"), {"advantages", "old_log_probs"}),
        (PseudoLikelihood(0.1), {"scores", "ref_log_prob"}),
        (KL(), {"ref_log_prob"}),
        (Entropy(), set()),
    ],
)
def test_streams_are_exactly_what_is_read(loss: object, streams: set[str], random_batch: Callable) -> None:
    term = Term("t", loss, Members("trained", "rl_weight"), TOKEN_MEAN, counted=Members("on", "sft_weight"))
    assert set(term.streams) == streams | {"rl_weight", "sft_weight"}
    model_outputs = {"log_probs", "entropys", "response_mask", "prefix_mask"}
    batch = {**random_batch(1, rows=2, width=3), "phi": torch.ones(2, 3)}
    compute_loss([term], {name: batch[name] for name in {*model_outputs, *term.streams}})
    for name in term.streams:
        with pytest.raises(KeyError, match=name):
            compute_loss([term], {key: value for key, value in batch.items() if key != name})


def test_only_entropy_needs_entropy() -> None:
    assert Term("e", Entropy(), Members("on"), TOKEN_MEAN).needs_entropy
    assert not Term("k", KL(), Members("on"), TOKEN_MEAN).needs_entropy


def test_losses_without_an_advantage_describe_themselves() -> None:
    assert Entropy().describe() == "H"
    assert KL("low_var_kl").describe() == "KL(π‖π_ref) by k3"


def test_a_term_needs_the_mask_if_its_members_or_its_normaliser_do() -> None:
    loss = PolicyGradient(CurrentPolicy(), 1.0)
    assert Term("t", loss, Members("demo"), TOKEN_MEAN).needs_prefix_mask
    assert Term("t", loss, Members("on"), TOKEN_MEAN, counted=Members("demo")).needs_prefix_mask
    assert not Term("t", loss, Members("hint", may_be_absent=True), TOKEN_MEAN).needs_prefix_mask
    assert not Term("t", loss, Members("on"), TOKEN_MEAN, counted=Members("trained")).needs_prefix_mask
