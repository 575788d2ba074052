"""Reference policies: values and derivatives, closed form against hand arithmetic and against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.objective import RATIO_SHAPES, SHAPES, CurrentPolicy, OldPolicy, One, Reference, Shaped, ShapedRatio

GRID = [1e-12, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0]


def tensors(p: list[float], **streams: list[float]) -> dict[str, Tensor]:
    row = {name: torch.tensor([value], dtype=torch.float64) for name, value in streams.items()}
    return {"log_probs": torch.tensor([p], dtype=torch.float64).log().requires_grad_(), **row}


def value_and_slope(reference: Reference, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """u and du/dlp by autograd."""
    surrogate = reference.surrogate(batch)
    slope = torch.autograd.grad(surrogate.sum(), batch["log_probs"])[0]
    return surrogate.detach()[0], slope[0]


def close(actual: Tensor, expected: list[float] | Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=0)


def test_p_div_p_table() -> None:
    # f = p/(p + .1): .01/.11, .1/.2, .5/.6, 1/1.1;  df/dlp = .1 p/(p + .1)^2: .001/.0121, .01/.04, .05/.36, .1/1.21
    f, slope = value_and_slope(Shaped("p_div_p", gamma=0.1), tensors([0.01, 0.1, 0.5, 1.0]))
    close(f, [0.090909, 0.5, 0.833333, 0.909091])
    close(slope, [0.082645, 0.25, 0.138889, 0.082645])


@pytest.mark.parametrize(
    ("shape", "f", "slope"),
    [  # at p = .25, log p = -1.386294
        (Shaped("p_div_p", gamma=0.3), 0.25 / 0.55, 0.3 * 0.25 / 0.55**2),
        (Shaped("none"), 0.25, 0.25),
        (Shaped("square_root"), 0.5, 0.25),
        (Shaped("pow", exponent=2.0), 0.0625, 0.125),
        (Shaped("logp", weight=0.1), 0.1 * math.log(0.25), 0.1),
        (Shaped("p_logp", weight=0.2), 0.2 * math.log(0.25) + 0.25, 0.45),
        (Shaped("reject"), 1.0, 1.0),  # u = .8 >= 1 - .25
        (Shaped("target_prob"), 0.25 / 0.500001, 0.25 / 0.500001),  # p/(q + 1e-6)
    ],
    ids=lambda value: value.name if isinstance(value, Shaped) else "",
)
def test_every_shape_by_hand(shape: Shaped, f: float, slope: float) -> None:
    actual = value_and_slope(shape, tensors([0.25], uniforms=[0.8], target_probs=[0.5]))
    close(torch.cat(actual), [f, slope], 1e-12)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("clamps", [(None, None), (0.05, 0.6), (None, 0.3), (0.2, None)])
def test_ratio_is_the_derivative_of_the_surrogate(name: str, clamps: tuple[float | None, float | None]) -> None:
    shape = Shaped(name, gamma=0.2, weight=0.15, exponent=0.7, minimum=clamps[0], maximum=clamps[1])
    batch = tensors(GRID, uniforms=[0.0, 0.3, 0.995, 0.2, 0.95, 0.5, 0.6, 0.1, 0.0, 0.0], target_probs=GRID[::-1])
    _, slope = value_and_slope(shape, batch)
    close(shape.ratio(batch)[0], slope, 1e-12)
    assert not shape.ratio(batch).requires_grad


@given(lp=st.floats(-30, 0), name=st.sampled_from(SHAPES), u=st.floats(0, 0.999), q=st.floats(0.001, 1))
def test_ratio_is_the_derivative_anywhere(lp: float, name: str, u: float, q: float) -> None:
    batch = tensors([math.exp(lp)], uniforms=[u], target_probs=[q])
    _, slope = value_and_slope(Shaped(name), batch)
    close(Shaped(name).ratio(batch)[0], slope, 1e-12)


def test_clamps_bound_the_value_and_stop_the_gradient() -> None:
    # f = p: .1 is raised to .2, .4 stays, .9 is cut to .6
    f, slope = value_and_slope(Shaped("none", minimum=0.2, maximum=0.6), tensors([0.1, 0.4, 0.9]))
    close(f, [0.2, 0.4, 0.6], 1e-12)
    close(slope, [0.0, 0.4, 0.0], 1e-12)


def test_reject_accepts_where_u_reaches_one_minus_p() -> None:
    # 1[u >= 1 - p]: .7 >= .5, .4 < .5, .5 >= .5, 0 >= 0
    f, slope = value_and_slope(Shaped("reject"), tensors([0.5, 0.5, 0.5, 1.0], uniforms=[0.7, 0.4, 0.5, 0.0]))
    close(f, [1, 0, 1, 1], 1e-12)
    close(slope, [1, 0, 1, 1], 1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_underflowing_probability_is_finite(name: str) -> None:
    batch = tensors([1.0], uniforms=[0.5], target_probs=[0.0])
    batch["log_probs"] = torch.full((1, 1), -2000.0, dtype=torch.float64, requires_grad=True)
    f, slope = value_and_slope(Shaped(name), batch)
    assert torch.isfinite(f).all()
    assert torch.isfinite(slope).all()


def test_p_div_p_keeps_its_gradient_in_float32() -> None:
    # df/dlp -> p/gamma for p -> 0; the quotient p/(p + gamma) loses digits, the sigmoid form does not
    lp = torch.tensor([[-18.0]], requires_grad=True)
    slope = torch.autograd.grad(Shaped("p_div_p", gamma=0.1).surrogate({"log_probs": lp}).sum(), lp)[0]
    assert slope.item() == pytest.approx(math.exp(-18.0) / 0.1, rel=1e-5)


def test_old_policy_is_the_importance_ratio() -> None:
    batch = tensors([0.8, 0.4, 0.5], old_log_probs=[math.log(0.5), math.log(0.5), math.log(0.5)])
    u, slope = value_and_slope(OldPolicy(), batch)
    close(u, [1.6, 0.8, 1.0], 1e-12)
    close(slope, [1.6, 0.8, 1.0], 1e-12)
    close(OldPolicy().ratio(batch)[0], slope, 1e-12)


def test_old_policy_bounds_the_log_ratio() -> None:
    # beyond e^20 the value stays at e^20 and the gradient is gone; at the bound it is still there
    batch = {
        "log_probs": torch.tensor([[0.0, 0.0, -30.0, -19.0]], dtype=torch.float64, requires_grad=True),
        "old_log_probs": torch.tensor([[-20.0, -21.0, 0.0, 0.0]], dtype=torch.float64),
    }
    u, slope = value_and_slope(OldPolicy(), batch)
    expected = torch.tensor([math.exp(20), 0.0, 0.0, math.exp(-19)], dtype=torch.float64)
    torch.testing.assert_close(u[1:3], torch.tensor([20.0, -20.0], dtype=torch.float64).exp())
    torch.testing.assert_close(slope, expected)
    torch.testing.assert_close(OldPolicy().ratio(batch)[0], expected)


@pytest.mark.parametrize(
    ("shape", "u", "slope"),
    [  # p = .3, π_old = .25, r = 1.2, log r = .182322
        (ShapedRatio("p_div_p", gamma=0.1), 0.75 / (0.25 / 0.35), 0.75 * 0.25 / (0.25 / 0.35)),  # f = .3/.4, f_old = .25/.35
        (ShapedRatio("square_root"), 1.2**0.5, 0.5 * 1.2**0.5),
        (ShapedRatio("pow", exponent=2.0), 1.44, 2.88),
        (ShapedRatio("logp", weight=0.7), 0.182322, 1.0),  # its weight is 1
        (ShapedRatio("p_logp", weight=0.1), 1.2 + 0.1 * 0.182322, 1.3),
    ],
    ids=lambda value: value.name if isinstance(value, ShapedRatio) else "",
)
def test_every_ratio_shape_by_hand(shape: ShapedRatio, u: float, slope: float) -> None:
    batch = tensors([0.3], old_log_probs=[math.log(0.25)])
    close(torch.cat(value_and_slope(shape, batch)), [u, slope])
    close(shape.ratio(batch)[0], [slope])


@pytest.mark.parametrize("name", RATIO_SHAPES[1:])
def test_ratio_shapes_anywhere(name: str) -> None:
    """The closed form is the derivative, also where the log-ratio is bounded; at r = 1 the gradient does not depend on p."""
    lp, old = torch.meshgrid(*[-torch.logspace(-3, 1.5, 12, dtype=torch.float64)] * 2, indexing="ij")
    shape = ShapedRatio(name, gamma=0.2, weight=0.15, exponent=0.7)
    batch = {"log_probs": lp.clone().requires_grad_(), "old_log_probs": old.clone()}
    assert ((lp - old).abs() > 20).any()
    slope = torch.autograd.grad(shape.surrogate(batch).sum(), batch["log_probs"])[0]
    torch.testing.assert_close(shape.ratio(batch), slope, atol=1e-12, rtol=1e-12)  # f(π)/f(π_old) is large where π_old is tiny
    assert not shape.ratio(batch).requires_grad
    if name != "p_div_p":
        same = {"log_probs": lp, "old_log_probs": lp}
        assert len(shape.ratio(same).unique()) == 1


def test_current_policy_and_one() -> None:
    batch = tensors([0.3, 0.9])
    u, slope = value_and_slope(CurrentPolicy(), batch)
    close(u, [math.log(0.3), math.log(0.9)], 1e-12)
    close(slope, [1, 1], 1e-12)
    close(CurrentPolicy().ratio(batch)[0], [1, 1], 1e-12)
    u, slope = value_and_slope(One(), batch)
    close(u, [0.3, 0.9], 1e-12)
    close(slope, [0.3, 0.9], 1e-12)
    close(One().ratio(batch)[0], [0.3, 0.9], 1e-12)
    assert not CurrentPolicy().ratio(batch).requires_grad


def test_one_is_the_shape_none() -> None:
    batch = tensors(GRID)
    assert torch.equal(One().surrogate(batch), Shaped("none").surrogate(batch))


@pytest.mark.parametrize(
    ("reference", "stream"),
    [
        (OldPolicy(), "old_log_probs"),
        (ShapedRatio("p_logp"), "old_log_probs"),
        (Shaped("reject"), "uniforms"),
        (Shaped("target_prob"), "target_probs"),
    ],
)
@pytest.mark.parametrize("method", ["surrogate", "ratio"])
def test_missing_stream_is_named(reference: Reference, stream: str, method: str) -> None:
    with pytest.raises(KeyError, match=stream):
        getattr(reference, method)(tensors([0.5]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "cubic"}, r"fusion\.shaping\.name='cubic'.*p_div_p.*target_prob"),
        ({"gamma": 0.0}, r"fusion\.shaping\.gamma=0\.0"),
        ({"gamma": -0.1}, r"fusion\.shaping\.gamma=-0\.1"),
        ({"gamma": float("nan")}, r"fusion\.shaping\.gamma"),
        ({"minimum": 0.7, "maximum": 0.2}, r"fusion\.shaping\.minimum=0\.7.*maximum=0\.2"),
    ],
)
def test_bad_shapes_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shaped(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "none"}, r"fusion\.shaping\.on='none' is unknown"),  # plain r is OldPolicy
        ({"name": "reject"}, r"fusion\.shaping\.on='reject'.*none, p_div_p, square_root, pow, logp, p_logp"),
        ({"name": "p_div_p", "gamma": 0.0}, r"fusion\.shaping\.gamma=0\.0"),
    ],
)
def test_bad_ratio_shapes_are_refused(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShapedRatio(**keys)


def test_descriptions_tell_references_apart() -> None:
    references = [OldPolicy(), CurrentPolicy(), One(), *(Shaped(name) for name in SHAPES if name != "pow")]
    references += [ShapedRatio(name) for name in RATIO_SHAPES[1:] if name != "pow"]
    described = [reference.describe() for reference in references]
    assert len(set(described)) == len(references)
    assert "0.3" in Shaped("p_div_p", gamma=0.3).describe()
