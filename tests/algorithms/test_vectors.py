"""The specification's vectors (section 8) through the algorithms as conf/ composes them.

F and G are the hand-made batches of tests/conftest.py: row 0 the demonstration, rows 1 and 2 rollouts of which the first is
solved; mixed advantages A = 1/3, 1/3, -2/3. On F, of which these numbers are used again and again:

    r   row 1: 1.6, .8, 1 (sum 3.4)    row 2: 1, .5 (sum 1.5)          p, row 0: .5, .1, .9
    NLL row 0: .693147 + 2.302585 + .105361 = 3.101093, mean 1.033698
    f = p/(p + .1), row 0: .833333 + .5 + .9 = 2.233333
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.config import steps_of_episodes
from unify_posttrain.experience.advantages import ScoredRows
from unify_posttrain.experience.replay import ReplayEntry
from unify_posttrain.experience.rules import Group, Prompt
from unify_posttrain.objective import Term, compute_loss

Batch = dict[str, Tensor]
Build = Callable[..., Algorithm]
NORM = "seq-mean-token-sum-norm"


def number(value: Tensor | float, expected: float) -> None:
    assert float(value) == pytest.approx(expected, abs=1e-6)


def loss_of(built: Algorithm, batch: Batch, **keys: object) -> Tensor:
    return compute_loss(built.terms, batch, **keys)[0].detach()


def with_advantages(batch: Batch, values: list[float]) -> Batch:
    return {**batch, "advantages": torch.tensor(values, dtype=torch.float64).unsqueeze(-1) * batch["response_mask"]}


def weighted(batch: Batch, advantages: list[float], rl: list[float], sft: list[float]) -> Batch:
    """The batch with a batch plan's weights; `rl` holds those of rollouts and of off-policy demonstrations."""
    weights = {"rl_weight": torch.tensor(rl), "off_weight": torch.tensor(rl), "sft_weight": torch.tensor(sft)}
    return {**with_advantages(batch, advantages), **weights}


def rows(batch: Batch, *index: int) -> Batch:
    return {name: value[list(index)] for name, value in batch.items()}


# --- rollouts only, on rows 1 and 2 of F with A = .5, -.5 ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # clipped at 1.2 and .8: -.5*(1.2 + .8 + 1) = -1.5 and .5*(1 + .8) = .9
        ("ppo", -0.12),  # (-1.5 + .9)/5 tokens
        ("grpo", -0.025),  # (-1.5/3 + .9/2)/2 rows
        ("dapo", -0.128),  # clipped at 1.28: -.5*(1.28 + .8 + 1) = -1.54; (-1.54 + .9)/5
        ("dr_grpo", -0.11875),  # unclipped: (-.5*3.4 + .5*1.5)/(2 rows * 4)
        ("relift", -0.11875),
        ("chord", -0.12),
    ],
)
def test_rollouts_of_f(tiny: Build, fixture_f: Callable[[], Batch], name: str, expected: float) -> None:
    batch = rows(weighted(fixture_f(), [0, 0.5, -0.5], [0.0, 1.0, 1.0], [0.0] * 3), 1, 2)
    number(loss_of(tiny(name), batch), expected)


def test_dapo_is_what_the_paper_lists(composed: Callable) -> None:
    config = composed("algorithm=dapo")
    actor = config.actor_rollout_ref.actor
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.use_kl_loss, actor.entropy_coeff) == (0.2, 0.28, False, 0)
    assert (config.fusion.agg.rl, config.algorithm.norm_adv_by_std_in_grpo) == ("token-mean", True)
    assert config.algorithm.filter_groups.enable and config.algorithm.filter_groups.max_num_gen_batches >= 1
    # overlong: the last fifth of the response is penalised, down to -1
    buffer = config.reward.reward_kwargs.overlong_buffer_cfg
    assert config.reward.reward_manager.name == "dapo"
    assert config.reward.reward_kwargs.max_resp_len == config.data.max_response_length == 64
    assert (buffer.enable, buffer.len, buffer.penalty_factor) == (True, 12, 1.0)


# --- demonstrations only, row 0 of F ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("sft", {}, 1.033698),
        ("dft", {}, 0.223886),  # (.5*.693147 + .1*2.302585 + .9*.105361)/3
        ("sft", {"sft_form": "phi"}, 0.130001),  # weights p(1-p) .25, .09, .09: (.173287 + .207233 + .009483)/3
        ("psft", {}, -1.083333),  # r = .5/.4, 1, 1, all below 1.28: -(1.25 + 1 + 1)/3
        ("psft", {"actor": {"clip_ratio_high": 0.2}}, -1.066667),  # -(1.2 + 1 + 1)/3
    ],
)
def test_likelihood_forms_on_f(tiny: Build, fixture_f: Callable[[], Batch], name: str, changes: dict, expected: float) -> None:
    built, batch = tiny(name, **changes), rows(fixture_f(), 0)
    loss, metrics = compute_loss(built.terms, batch)
    number(loss.detach(), expected)
    number(metrics["demo_nll"], 1.033698)  # logged beside every form


def test_psft_stops_at_the_clip(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    batch = rows(fixture_f(), 0)
    batch["log_probs"] = batch["log_probs"].detach().requires_grad_()
    for high, first in ((0.28, -1.25), (0.2, 0.0)):  # d(-r)/dlp = -r, or nothing beyond the bound
        loss, _ = compute_loss(tiny("psft", actor={"clip_ratio_high": high}).terms, batch)
        gradient = torch.autograd.grad(loss, batch["log_probs"])[0][0] * 3
        torch.testing.assert_close(gradient.tolist(), [first, -1.0, -1.0, 0.0])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("token-mean", 0.4), ("seq-mean-token-mean", 0.625), ("seq-mean-token-sum", 1.0)],
)
def test_two_demonstrations_under_each_aggregation(tiny: Build, mode: str, expected: float) -> None:
    # NLL .1 .2 .3 .4 and 1: 2/5 tokens, (.25 + 1)/2, (1 + 1)/2
    number(loss_of(tiny("sft", agg={"sft": mode}), two_demonstrations()), expected)


def two_demonstrations() -> Batch:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    return {
        "log_probs": torch.tensor([[-0.1, -0.2, -0.3, -0.4], [-1.0, 0, 0, 0]], dtype=torch.float64),
        "entropys": torch.tensor([[0.5] * 4, [1.0, 9, 9, 9]], dtype=torch.float64),
        "response_mask": mask,
        "prefix_mask": mask.bool(),
    }


# --- HPT: row 0 of F is the demonstration of a gated prompt, rows 1-2 a group with A = .5, -.5 -----------------------


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("hpt_released", {"sum_norm_divisor": 1, "sft_loss_coef": 1.0}, 0.796198),  # -.95/4 + 1.033698
        ("hpt_released", {"sft_loss_coef": 1.0}, 1.004010),  # K = 8 published ranks: -.95/32 + 1.033698
        ("hpt_released", {}, 4.105103),  # λ = 1 in each of M = 4 micro-batches: -.95/32 + 4*1.033698
        ("hpt", {}, 0.457474),  # (-.95/(2 rows * 4) + 1.033698)/2: one prompt of two in each
        ("hpt", {"hpt": {"term_scale": "own"}}, 0.914948),  # -.11875 + 1.033698
        ("hpt", {"sft_loss_coef": 0.3}, 0.095680),  # (-.11875 + .310109)/2
    ],
)
def test_hpt_on_f(tiny: Build, fixture_f: Callable[[], Batch], name: str, changes: dict, expected: float) -> None:
    built = tiny(name, group_size=2, **changes)
    plan = built.experience.plan([Group("a", 0, 2, True, True), Group("b", 1, 2, True, True)])
    batch = weighted(fixture_f(), [0, 0.5, -0.5], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    number(loss_of(built, batch, scales=built.scales(plan)), expected)


def test_hpt_middle_zone_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    built = tiny("hpt_released", sum_norm_divisor=1)
    batch = weighted(fixture_f(), [1, 0.5, -0.5], [1.0] * 3, [0.0] * 3)
    number(compute_loss(built.terms, batch)[1]["off_loss"], -0.558333)  # -2.233333/4, A = 1


def test_hpt_soft_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    """Weights from the plan: one of seven solved beside a verified demonstration is c = 2, type 2: (.125, 0, .5)."""
    built = tiny("hpt_released", sum_norm_divisor=1, sft_loss_coef=1.0, hpt={"strategy": "soft", "soft_type": 2})
    (group,) = built.experience.plan([Group("a", 1, 7, True, True)])
    on, off, sft = group.weight("rl"), group.weight("off"), group.weight("sft")
    assert (on, off, sft) == (0.125, 0.0, 0.5)
    batch = weighted(fixture_f(), [1 / 3, 1 / 3, -2 / 3], [off, on, on], [sft, 0.0, 0.0])
    number(loss_of(built, batch), 0.512682)  # .125*(-3.4/3 + 2*1.5/3)/4 + .5*1.033698


# --- LUFFY -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [  # Σ -A f = -.744444, Σ -A r = -3.4/3 + 2*1.5/3 = -.133333; together -.877778, over 8 tokens
        ({"agg": {"rl": "sum-norm"}}, -0.219444),  # /4
        ({"agg": {"rl": "token-mean"}}, -0.109722),  # /8
        ({}, -0.073148),  # /(3 rows * 4)
        ({"agg": {"rl": "sum-norm"}, "shaping": {"name": "none"}}, -0.158333),  # f = p: (-1.5/3 - .133333)/4
        # weights of the two classes: (2*-.744444 + .5*-.133333)/4
        ({"agg": {"rl": "sum-norm"}, "luffy": {"prefix_adv_weight": 2.0, "on_adv_weight": 0.5}}, -0.388889),
        # clip of rollouts alone: -3/3 + 2*(1 + .8)/3 = .2; (-.744444 + .2)/4
        ({"agg": {"rl": "sum-norm"}, "clip": "ppo"}, -0.136111),
        # f at most .85: -(.833333 + .5 + .85)/3 = -.727778; (-.727778 - .133333)/4
        ({"agg": {"rl": "sum-norm"}, "shaping": {"maximum": 0.85}}, -0.215278),
        # log r on rollouts: -(.470004 - .223144)/3 + 2*-.693147/3 = -.544385; (-.744444 - .544385)/4
        ({"agg": {"rl": "sum-norm"}, "shaping": {"on": "logp"}}, -0.322207),
    ],
)
def test_luffy_on_f(tiny: Build, fixture_f: Callable[[], Batch], changes: dict, expected: float) -> None:
    number(loss_of(tiny("luffy", **changes), fixture_f()), expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [  # f = .833333 + .166667 + .9 + .75 = 2.65; r = 3.2 and 1.777778: -(2.65 + 3.2)/3 + 2*1.777778/3 = -.764815
        ({"agg": {"rl": "token-mean"}}, -0.084979),  # /9
        ({}, -0.063735),  # /(3 rows * 4)
        # without the tokens that were above .85 (.9 of row 0, .9 of row 2): -(1.75 + 3.2)/3 + 2*1/3 = -.983333, /7
        ({"agg": {"rl": "token-mean"}, "shaping": {"all_maximum": 0.85}}, -0.140476),
    ],
)
def test_luffy_on_g(tiny: Build, fixture_g: Callable[[], Batch], changes: dict, expected: float) -> None:
    number(loss_of(tiny("luffy", **changes), fixture_g()), expected)


def test_luffy_gradient_per_token_on_g(tiny: Build, fixture_g: Callable[[], Batch]) -> None:
    # row 0: -A .1 p/(p + .1)^2 = -.05/.36/3, -.002/.0144/3, -.09/1/3, -.03/.16/3; rows 1 and 2: -A r
    batch = fixture_g()
    loss, _ = compute_loss(tiny("luffy", agg={"rl": "token-mean"}).terms, batch)
    gradient = torch.autograd.grad(loss, batch["log_probs"])[0] * 9
    expected = [
        [-0.046296, -0.046296, -0.03, -0.0625],
        [-0.333333, -0.4, -0.333333, 0],
        [0.518519, 0.666667, 0, 0],
    ]
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_prefix_rft_on_g(tiny: Build, fixture_g: Callable[[], Batch]) -> None:
    # Row 0 as a prefix: ceil(.2*4) = 1 of its tokens is trained, the second (H = 1), with r = 1: -1/3.
    # Row 1: r = 1, 1.2, 1 within the clip: -3.2/3. Row 2: max(.777778, .8)*2/3 + 1*2/3 = 1.2. Sum -.2 over 3 rows * 4
    number(loss_of(tiny("prefix_rft"), fixture_g()), -0.016667)
    # all prefix tokens: -4/3 instead of -1/3
    number(loss_of(tiny("prefix_rft", prefix_rft={"entropy_top": None}), fixture_g()), -0.1)


def test_rl_with_sft_loss_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    # A of the rollouts alone, .5 and -.5: (-.5*3.4 + .5*1.5)/(2 rows * 4) = -.11875, + 1.033698; clipped -.075
    batch = with_advantages(fixture_f(), [0, 0.5, -0.5])
    number(loss_of(tiny("rl_with_sft_loss"), batch), 0.914948)
    number(loss_of(tiny("rl_with_sft_loss", sft_loss_coef=0.5), batch), 0.398099)
    number(loss_of(tiny("rl_with_sft_loss", clip="ppo"), batch), 0.958698)


# --- ReLIFT ----------------------------------------------------------------------------------------------------------


def test_relift_fine_tuning_loss(tiny: Build) -> None:
    # NLL .4 and H (4*.5 + 1)/5 = .6 over five tokens: .4 - .001*.6; with the default α = 1e-4: .4 - .00006
    for alpha, expected in ((0.001, 0.3994), (1e-4, 0.39994), (0.0, 0.4)):
        terms = tiny("relift", relift={"entropy_coeff": alpha}).replay_terms
        number(compute_loss(terms, two_demonstrations())[0], expected)
    assert tiny("relift").relift.entropy_coeff == 1e-4


def test_relifts_entropy_has_its_own_aggregation(tiny: Build) -> None:
    # SFT per sequence: (.25 + 1)/2 = .625; entropy per token .6 or per sequence (.5 + 1)/2 = .75
    for mode, entropy in (("token-mean", 0.6), ("seq-mean-token-mean", 0.75)):
        terms = tiny("relift", agg={"sft": "seq-mean-token-mean", "entropy": mode}, relift={"entropy_coeff": 0.1}).replay_terms
        number(compute_loss(terms, two_demonstrations())[0], 0.625 - 0.1 * entropy)


def test_relift_buffer(tiny: Build) -> None:
    # M = 4, newest first: [1, 2, 3] waits; with [4, 5] it fires on 4, 5, 1, 2 and leaves 3; an empty step leaves it there
    buffer = tiny("relift", relift={"sft_data_size": 4}).replay
    taken = []
    for step, hard in enumerate(([1, 2, 3], [4, 5], []), start=1):
        buffer.add(ReplayEntry(row, (7,), (8, 2), step) for row in hard)
        taken.append([entry.row_id for entry in buffer.take(step)])
    assert taken == [[], [4, 5, 1, 2], []]
    assert [entry["row_id"] for entry in buffer.state["entries"]] == [3]


# --- SRFT on G -------------------------------------------------------------------------------------------------------
#   H: rows .6, .5, .9.  NLL of row 0: .693147 + 3.912023 + .105361 + 1.203973 = 5.914503
#   -lp of row 1: .223144 + .510826 + .916291 = 1.650260;  lp of row 2: -.356675 - 1.386294 = -1.742969
#   L_sft = .5 e^-.6 * 5.914503/4 = .405744;  L_demo = -2.65/3/4 tokens = -.220833
#   L_on = (.1 e^.5 * 1.650260 - 1.742969)/5 tokens = (.272082 - 1.742969)/5 = -.294177


def srft_batch(batch: Batch) -> Batch:
    solved = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    return {**batch, "solved": solved, "unsolved": 1 - solved, "batch_entropy": torch.full((3,), 5.7 / 9, dtype=torch.float64)}


def test_srft_on_g(tiny: Build, fixture_g: Callable[[], Batch]) -> None:
    total, metrics = compute_loss(tiny("srft").terms, srft_batch(fixture_g()))
    number(metrics["sft_loss"], 0.405744)
    number(metrics["off_loss"], -0.220833)
    number(metrics["rl_loss"] + metrics["neg_loss"], -0.294177)
    number(total.detach(), -0.109267)
    # logged weights are means over their tokens: .5 e^-.6 and .1 e^.5
    number(metrics["sft_weight"], 0.274406)
    number(metrics["rl_weight"], 0.164872)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"srft": {"counts": "released"}}, 0.144163),  # .405744 + (-.883333 + .272082 - 1.742969)/9
        ({"agg": {"rl": "sum-norm"}}, -0.182812),  # .405744 + (-.883333 + .272082 - 1.742969)/4
        ({"srft": {"counts": "by_sign"}}, -0.595880),  # .405744 - .220833 + .272082/3 - 1.742969/2
        # .5 Σ e^-H NLL/4 = .5*2.618259/4; .1 Σ e^H -lp = .263344: .327282 - .220833 + (.263344 - 1.742969)/5
        ({"srft": {"entropy_scope": "token"}}, -0.189476),
        # mean H of the nine tokens 5.7/9 = .633333: .5*.530819*1.478626 - .220833 + (.1*1.883878*1.650260 - 1.742969)/5
        ({"srft": {"entropy_scope": "batch"}}, -0.114807),
        ({"srft": {"weight_cap": 0.12}}, -0.124077),  # .405744 - .220833 + (.12*1.650260 - 1.742969)/5
        ({"srft": {"neg_prob_floor": 0.5}}, 0.167992),  # p = .25 leaves: .405744 - .220833 + (.272082 - .356675)/5
        ({"srft": {"neg_coef": 0.5}}, 0.065030),  # .405744 - .220833 + (.272082 - .871485)/5
        ({"shaping": {"name": "none"}}, -0.031767),  # L_demo = -(.5 + .02 + .9 + .3)/3/4 = -.143333
        # L_on of p: (-.164872*1.8 + .95)/5; of r: (-.164872*3.2 + 1.777778)/5; of log r: (-.164872*.182322 - .251314)/5
        ({"srft": {"on_form": "prob"}}, 0.315557),
        ({"srft": {"on_form": "ratio"}}, 0.434948),
        ({"srft": {"on_form": "log_ratio"}}, 0.128636),
    ],
    ids=str,
)
def test_srft_variants_on_g(tiny: Build, fixture_g: Callable[[], Batch], changes: dict, expected: float) -> None:
    number(loss_of(tiny("srft", **changes), srft_batch(fixture_g())), expected)


@pytest.mark.parametrize(("entropy", "w_s", "w_r"), [(0.0, 0.5, 0.1), (2.0, 0.067668, 0.738906)])
def test_srft_weights(tiny: Build, fixture_g: Callable[[], Batch], entropy: float, w_s: float, w_r: float) -> None:
    batch = {**srft_batch(fixture_g()), "entropys": torch.full((3, 4), entropy, dtype=torch.float64)}
    weights = {term.name: term.loss.weight(batch) for term in tiny("srft").terms}
    number(weights["sft"][0, 0], w_s)
    number(weights["rl"][1, 0], w_r)


# --- UFT -------------------------------------------------------------------------------------------------------------


def test_uft_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    """Rows 1 and 2 of F after a common hint p = .5, .1, .8: -.12 + .001*.03 + .001*NLL = -.118897."""
    batch = rows(with_advantages(fixture_f(), [0, 0.5, -0.5]), 1, 2)
    hint = torch.tensor([[0.5, 0.1, 0.8]] * 2, dtype=torch.float64).log()
    shape, rubbish = torch.zeros(2, 3), torch.full((2, 3), 3.0, dtype=torch.float64)
    gap = 0.25  # k3(d) = e^-d + d - 1 = .03 by Newton's method; d = lp - lp_ref of every suffix token
    for _ in range(20):
        gap -= (math.exp(-gap) + gap - 1 - 0.03) / (1 - math.exp(-gap))
    hinted = {
        "log_probs": torch.cat([hint, batch["log_probs"]], dim=1),
        "old_log_probs": torch.cat([-rubbish, batch["old_log_probs"]], dim=1),  # nobody reads a hint's
        "advantages": torch.cat([rubbish, batch["advantages"]], dim=1),
        "ref_log_prob": torch.cat([-rubbish, batch["log_probs"] - gap], dim=1).detach(),
        "response_mask": torch.cat([shape.long(), batch["response_mask"]], dim=1),
        "prefix_mask": torch.cat([shape == 0, batch["prefix_mask"]], dim=1),
    }
    loss, metrics = compute_loss(tiny("uft", uft={"hint_coef": 0.001}).terms, hinted)
    number(metrics["rl_loss"], -0.12)
    number(metrics["kl_loss"], 0.03)
    number(metrics["hint_loss"], 1.072959)  # (.693147 + 2.302585 + .223144)/3
    number(metrics["hint_p"], 1.4 / 3)
    number(loss.detach(), -0.118897)
    # the paper's sum weighs a hint by its length: .693147 + 2.302585 + .223144 per row
    paper = compute_loss(tiny("uft", agg={"hint": "seq-mean-token-sum"}).terms, hinted)[1]
    number(paper["hint_loss"], 3.218876)


def letters(built: Algorithm, total: int, step: int, row_id: int) -> str:
    """The hint of a prompt whose solution has so many sentences of one letter; the same for all rollouts."""
    prompt = Prompt(row_id, sentences=tuple("abcdefghijklmnop"[:total]), encode=lambda text: [ord(letter) for letter in text])
    prefixes = built.experience.response_prefixes(prompt, step)
    assert len(set(prefixes)) == 1 and len(prefixes) == built.fusion.group_size
    assert not prefixes[0].trained
    return "".join(map(chr, prefixes[0].ids))


@pytest.mark.parametrize(
    ("step", "row_id", "total", "hint"),
    [  # draws of the specification, num = 5, seed 0: 4, 3 and 1 buckets
        (1, 0, 8, "abcdef"),  # cuts of 8: 0 2 3 5 6 8
        (150, 7, 8, "abcde"),
        (250, 11, 8, "ab"),
        (1, 0, 12, "abcdefghij"),  # cuts of 12: 0 2 5 7 10 12
        (150, 7, 12, "abcdefg"),
        (250, 11, 12, "ab"),
        (301, 0, 8, ""),  # p(301) = 0
        (1, 0, 0, ""),  # an empty list is no hint
    ],
)
def test_uft_draws(tiny: Build, step: int, row_id: int, total: int, hint: str) -> None:
    assert letters(tiny("uft", horizon=64), total, step, row_id) == hint


@pytest.mark.parametrize(("step", "hint"), [(1, "abcde"), (50, "abcd"), (100, "abc"), (250, ""), (400, "")])
def test_uft_stages(tiny: Build, step: int, hint: str) -> None:
    assert letters(tiny("uft", horizon=64, uft={"hint_mode": "stage"}), 5, step, 0) == hint  # one less every 300//6 steps


def test_uft_without_hints_is_clipped_grpo(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    built = tiny("uft", actor={"kl_loss_coef": 0.0}, uft={"hint_mode": "none"})
    assert letters(built, 8, 1, 0) == ""
    batch = rows(with_advantages(fixture_f(), [0, 0.5, -0.5]), 1, 2)
    number(loss_of(built, {**batch, "ref_log_prob": batch["old_log_probs"]}), -0.12)


# --- Online SFT ------------------------------------------------------------------------------------------------------


def online_row(l: float, l_ref: float, length: int, score: float) -> Batch:  # noqa: E741 - the paper's symbol
    """A rollout of one update: π_old is π_θ. log-likelihoods are spread evenly; a row of padding below."""
    mask = torch.tensor([[1] * length, [0] * length])
    return {
        "log_probs": torch.full((2, length), l / length, dtype=torch.float64, requires_grad=True),
        "old_log_probs": torch.full((2, length), l / length, dtype=torch.float64),
        "ref_log_prob": torch.full((2, length), l_ref / length, dtype=torch.float64),
        "response_mask": mask,
        "token_level_scores": torch.tensor([score, 0.0], dtype=torch.float64),
    }


def online_slope(built: Algorithm, batch: Batch) -> tuple[float, float]:
    """Loss and dL/dl of the first row, rewards and advantages as the algorithm makes them of its score (1 solved, 0 not)."""
    scores, mask = batch["token_level_scores"], batch["response_mask"].bool()
    streams = {"mask": mask, "old_log_probs": batch["old_log_probs"], "ref_log_prob": batch["ref_log_prob"]}
    scored = ScoredRows(scores, ["a", "padding"], np.zeros(2, dtype=np.int8), **streams)
    advantage = built.advantage
    full = {**batch, "advantages": advantage(scored).unsqueeze(-1) * mask, "scores": advantage.rewards(scored)}
    loss, _ = compute_loss(built.terms, full)
    assert advantage.metrics(scored)["fusion/kl_seq"] == pytest.approx(1.0)  # k1 = 2 over two rows
    return loss.item(), torch.autograd.grad(loss, batch["log_probs"])[0][0, 0].item()


@pytest.mark.parametrize(
    ("beta", "solved", "length", "norm", "pseudo", "slope"),
    [  # l = -20, l_ref = -22; pseudo: w = (R - .1*2)/-20, loss -(w l + w l^2/2); dL/dl = -(R - .1*2 - .1)
        (0.1, 1.0, 5, "none", 7.2, -0.7),
        (0.1, 0.0, 5, "none", -10.8, 1.3),  # R = -1
        (0.0, 1.0, 5, "none", 9.0, -1.0),
        (0.1, 1.0, 10, "consistent", 0.0, -0.088),  # l = -2, k1 = .2: -(1 - .02 - .1)/10
    ],
)
def test_online_sft_table(tiny: Build, beta: float, solved: float, length: int, norm: str, pseudo: float, slope: float) -> None:
    own = {"beta": beta, "length_norm": norm}
    batch = online_row(-20.0, -22.0, length, solved)
    published = tiny("online_sft", online_sft={**own, "form": "pseudo"})
    assert online_slope(published, batch) == pytest.approx((pseudo, slope), abs=1e-6)
    # the analytic form with baseline β has that gradient; without a baseline it differs by β ∇l (invariant 8)
    per_length = length if norm == "consistent" else 1
    with_beta = online_slope(tiny("online_sft", online_sft={**own, "baseline": "beta"}), batch)[1]
    without = online_slope(tiny("online_sft", online_sft=own), batch)[1]
    assert with_beta == pytest.approx(slope, abs=1e-12)
    assert without - slope == pytest.approx(-beta / per_length, abs=1e-12)


def scored(scores: list[float], k1: list[float], uids: list[str], success: list[float] | None = None) -> ScoredRows:
    """One token per row, l_ref = 0."""
    values = torch.tensor(scores, dtype=torch.float64)
    old = torch.tensor(k1, dtype=torch.float64).unsqueeze(-1)
    solved = values if success is None else torch.tensor(success, dtype=torch.float64)
    streams = {"mask": torch.ones(len(scores), 1, dtype=torch.bool), "old_log_probs": old, "ref_log_prob": torch.zeros_like(old)}
    return ScoredRows(values, uids, np.zeros(len(scores), dtype=np.int8), success=solved, **streams)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [  # R = 1, -1, 1 and k1 = 2, 0, -1, β = .1: penalised .8, -1, 1.1
        ("none", [0.8, -1.0, 1.1]),
        ("beta", [0.7, -1.1, 1.0]),
        ("rloo", [0.75, -1.95, 1.2]),  # .8 - (.1)/2, -1 - 1.9/2, 1.1 - (-.2)/2
        ("group_mean", [0.5, -1.3, 0.8]),  # mean .3
        ("batch_whiten", [0.440225, -1.144585, 0.704360]),  # .5, -1.3 and .8 over sqrt(2.58/2) + 1e-6
    ],
)
def test_online_sft_baselines(tiny: Build, baseline: str, expected: list[float]) -> None:
    advantage, given = tiny("online_sft", online_sft={"baseline": baseline}).advantage, scored([1, 0, 1], [2, 0, -1], ["a"] * 3)
    assert advantage(given).tolist() == pytest.approx(expected, abs=1e-6)
    assert advantage.compares == (baseline in ("rloo", "group_mean"))
    assert advantage.metrics(given) == {"fusion/kl_seq": pytest.approx(1 / 3)}


def test_online_sft_groups_do_not_see_each_other(tiny: Build) -> None:
    advantage = tiny("online_sft", online_sft={"baseline": "rloo", "beta": 0.0}).advantage
    together = advantage(scored([1, 0, 0, 1, 1], [0] * 5, ["a", "b", "a", "b", "b"]))
    # a: 1, -1 -> 2, -2; b: -1, 1, 1 -> -1 - 1, 1 - 0, 1 - 0
    assert together.tolist() == pytest.approx([2.0, -2.0, -2.0, 1.0, 1.0])


def test_online_sft_rewards(tiny: Build) -> None:
    # a solved answer with an overlong penalty of .5, an unsolved one with .25; a model's logits stay
    rows_ = scored([0.5, -0.25], [0, 0], ["a", "a"], success=[1.0, 0.0])
    assert tiny("online_sft").advantage.rewards(rows_).tolist() == [0.5, -1.25]
    assert tiny("online_sft", online_sft={"correct_reward": 2.0}).advantage.rewards(rows_).tolist() == [1.5, -1.25]
    assert tiny("online_sft", online_sft={"task": "model"}).advantage.rewards(rows_).tolist() == [0.5, -0.25]


def test_steps_of_the_tldr_run() -> None:
    # 30000 prompts, 16 a step; a part of a step counts as one, and there is at least one
    assert (steps_of_episodes(30000, 16), steps_of_episodes(33, 16), steps_of_episodes(1, 16)) == (1875, 3, 1)


@pytest.mark.parametrize(("names", "value"), [(("k1", "kl"), 0.4), (("k2", "mse"), 0.08), (("k3", "low_var_kl"), 0.070320)])
def test_kl_estimators_of_a_composed_algorithm(tiny: Build, names: tuple[str, str], value: float) -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = {"log_probs": -one, "old_log_probs": -one, "ref_log_prob": -1.4 * one, "advantages": 0 * one, "response_mask": one}
    for name in names:
        built = tiny("uft", actor={"kl_loss_type": name, "kl_loss_coef": 0.5})
        loss, metrics = compute_loss(built.terms, batch)
        number(metrics["kl_loss"], value)
        number(loss, 0.5 * value)


# --- CHORD -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "mu"), [(1, 0.0025), (100, 0.25), (200, 0.5), (400, 0.26), (600, 0.02), (900, 0.02)])
def test_chord_balance(tiny: Build, step: int, mu: float) -> None:
    built = tiny("chord")
    plan = built.experience.plan([Group("a", 1, 8, True, True)])
    assert built.scales(plan, step) == pytest.approx({"rl": 1 - mu, "sft": mu})
    assert built.step_metrics(step) == {"fusion/chord_mu": pytest.approx(mu)}


def test_chord_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    # μ = .5 at step 200: .5*-.12 of the rollouts, .5*.130001 of the demonstration weighted by φ; by plain NLL .5*1.033698
    batch = weighted(fixture_f(), [0, 0.5, -0.5], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0])
    for form, expected in (("phi", 0.005001), ("nll", 0.456849)):
        built = tiny("chord", sft_form=form)
        plan = built.experience.plan([Group("a", 1, 2, True, True)])
        number(loss_of(built, batch, scales=built.scales(plan, 200)), expected)


def test_chord_weights(tiny: Build) -> None:
    (term,) = [term for term in tiny("chord").terms if term.name == "sft"]
    weight = term.loss.weight({"log_probs": torch.tensor([[0.1, 0.5]], dtype=torch.float64).log()})
    assert weight[0].tolist() == pytest.approx([0.09, 0.25])


# --- SFT, then RL ----------------------------------------------------------------------------------------------------


def test_sft_then_rl_on_f(tiny: Build, fixture_f: Callable[[], Batch]) -> None:
    first, second = tiny("sft_then_rl").phases
    batch = with_advantages(fixture_f(), [0, 0.5, -0.5])
    number(loss_of(first.algorithm, rows(batch, 0)), 1.033698)
    number(loss_of(second.algorithm, rows(batch, 1, 2)), -0.025)  # GRPO, as above
    assert (first.steps, first.stall) == (18, None)  # half of the 36 steps of model=tiny_qwen2
    assert (second.steps, second.stall) == (None, None)
    assert (first.optim["lr"], first.optim["lr_warmup_steps_ratio"], second.optim["lr_warmup_steps_ratio"]) == (2e-5, 0.1, 0.0)
    assert (first.mini_batches, second.mini_batches) == (1, 2)


# --- ρ of one token ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "term", "rho"),
    [  # p = .3, π_old = .25, A = .7
        ("sft", "sft", 1.0),
        ("online_sft", "rl", 0.7),  # REINFORCE's
        ("dr_grpo", "rl", 0.84),  # 1.2 * .7
        ("dapo", "rl", 0.84),  # 1.2 lies inside 1.28
        ("hpt", "rl", 0.84),
        ("hpt", "off", 0.13125),  # .1*.3/.4^2 * .7
        ("luffy", "off", 0.13125),
        ("srft", "off", 0.13125),
        ("prefix_rft", "off", 0.84),  # the only token of the prefix is its most uncertain
        ("dft", "sft", 0.3),
        ("psft", "sft", 1.2),
        ("chord", "sft", 0.21),  # .3 * .7
        ("srft", "sft", 0.303265),  # .5 e^-.5
        ("srft", "rl", 0.164872),  # .1 e^.5
        ("srft", "neg", -1.0),
        ("uft", "hint", 1.0),
    ],
)
def test_rho_of_one_token(tiny: Build, name: str, term: str, rho: float) -> None:
    found: Term = {each.name: each for each in tiny(name).terms}[term]
    one = torch.ones(1, 1, dtype=torch.float64)
    batch = {
        "log_probs": one * math.log(0.3),
        "old_log_probs": one * math.log(0.25),
        "advantages": one * 0.7,
        "entropys": one * 0.5,
        "response_mask": one,
        "prefix_mask": one if found.members.tokens == "demo" else 0 * one,
    }
    number(found.loss.rho(batch), rho)
