"""Algorithms as conf/ composes them: terms, experience, scales, and the golden batches through the built objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from unify_posttrain.algorithms import ALGORITHMS, Algorithm, Settings
from unify_posttrain.experience import BatchPlan
from unify_posttrain.experience.rules import Group
from unify_posttrain.objective import (
    KL,
    CurrentPolicy,
    ExpEntropy,
    NoStabiliser,
    OldPolicy,
    PolicyGradient,
    PPOClip,
    Probability,
    Shaped,
    Term,
    TopEntropy,
    Uncertainty,
    compute_loss,
)

NO_ENTROPY = "actor_rollout_ref.actor.entropy_coeff=0"


def changed(settings: Settings, path: str, value: Any) -> Settings:
    """Settings with one value of the fusion node replaced, e.g. changed(s, "hpt.strategy", "soft")."""
    *parents, name = path.split(".")
    if not parents:
        return replace(settings, fusion=replace(settings.fusion, **{name: value}))
    node = replace(getattr(settings.fusion, parents[0]), **{name: value})
    return replace(settings, fusion=replace(settings.fusion, **{parents[0]: node}))


def described(term: Term) -> tuple:
    loss = term.loss
    is_pg = isinstance(loss, PolicyGradient)
    weight = [loss.token_weight] if is_pg and loss.token_weight is not None else []
    return (
        term.name,
        (loss.reference, loss.advantage, loss.stabiliser, *weight) if is_pg else type(loss).__name__,
        term.members.key,
        term.normaliser.key,
        term.aggregation.mode,
        term.coefficient,
    )


NORM = "seq-mean-token-sum-norm"
ON = (OldPolicy(), "advantages", NoStabiliser())
CLIPPED = (OldPolicy(), "advantages", PPOClip(0.2, 0.2, 3.0))
OFF = (Shaped("p_div_p", gamma=0.1), "advantages", NoStabiliser())
NLL = (CurrentPolicy(), 1.0, NoStabiliser())
DAPO_CLIP = PPOClip(0.2, 0.28, 3.0)
ENTROPY = ("entropy", "Entropy", "on", "on", "token-mean", -0.001)

EXPECTED = {  # name, (reference, advantage, stabiliser, token weight if any), members, counted, aggregation, coefficient
    "grpo": [
        ("rl", CLIPPED, "on", "on", "seq-mean-token-mean", 1.0),
        ("entropy", "Entropy", "on", "on", "seq-mean-token-mean", -0.001),
    ],
    "dr_grpo": [
        ("rl", ON, "on", "on", NORM, 1.0),
        ("entropy", "Entropy", "on", "on", "token-mean", -0.001),
    ],
    "hpt": [
        ("rl", ON, "on*rl_weight", "on*rl_weight", NORM, 1.0),
        ("off", OFF, "demo*rl_weight", "demo*rl_weight", NORM, 1.0),
        ("sft", NLL, "demo*sft_weight", "demo*sft_weight", "token-mean", 1.0),
        ("entropy", "Entropy", "on", "on", "token-mean", -0.001),
    ],
    "luffy": [
        ("rl", ON, "on", "trained", NORM, 1.0),
        ("off", OFF, "demo", "trained", NORM, 1.0),
        ("entropy", "Entropy", "on", "on", "token-mean", -0.001),
    ],
    "ppo": [
        ("rl", CLIPPED, "on", "on", "token-mean", 1.0),
        ("entropy", "Entropy", "on", "on", "token-mean", -0.001),
    ],
    "sft": [("sft", NLL, "demo", "demo", "token-mean", 1.0)],
    "dft": [("sft", (*NLL, Probability()), "demo", "demo", "token-mean", 1.0)],
    "psft": [("sft", (OldPolicy(), 1.0, PPOClip(0.2, 0.28)), "demo", "demo", "token-mean", 1.0)],
    "sft_then_rl": [("sft", NLL, "demo", "demo", "token-mean", 1.0)],  # of its first phase
    "dapo": [("rl", (OldPolicy(), "advantages", DAPO_CLIP), "on", "on", "token-mean", 1.0)],
    "rl_with_sft_loss": [
        ("rl", CLIPPED, "on", "on", NORM, 1.0),
        ("sft", NLL, "demo*sft_weight", "demo*sft_weight", "token-mean", 1.0),
        ENTROPY,
    ],
    "hpt_released": [
        ("rl", ON, "on*rl_weight", "on*rl_weight", "sum-norm", 1.0),
        ("off", OFF, "demo*rl_weight", "demo*rl_weight", "sum-norm", 1.0),
        ("sft", NLL, "demo*sft_weight", "demo*sft_weight", "token-mean", 1.0),
        ENTROPY,
    ],
    "prefix_rft": [
        ("rl", CLIPPED, "on", "trained", NORM, 1.0),
        ("off", (*CLIPPED, TopEntropy(0.2)), "demo", "trained", NORM, 1.0),
        ENTROPY,
    ],
    "relift": [("rl", ON, "on", "on", NORM, 1.0), ENTROPY],
    "srft": [
        ("sft", (*NLL, ExpEntropy(0.5, -1)), "demo", "demo", "token-mean", 1.0),
        ("off", OFF, "demo", "demo", "token-mean", 1.0),
        ("rl", (*NLL, ExpEntropy(0.1, 1)), "on*solved", "on", "token-mean", 1.0),
        ("neg", (CurrentPolicy(), -1.0, NoStabiliser()), "on*unsolved", "on", "token-mean", 1.0),
    ],
    "uft": [
        ("rl", CLIPPED, "on", "on", "token-mean", 1.0),
        ("hint", NLL, "hint", "hint", "token-mean", 0.001),
        ENTROPY,
        ("kl", "KL", "on", "on", "token-mean", 0.001),
    ],
    "online_sft": [
        ("rl", (CurrentPolicy(), "advantages", NoStabiliser()), "on", "on", "seq-mean-token-sum", 1.0),
        ("kl", "KL", "on", "on", "token-mean", 0.0),
    ],
    "chord": [
        ("rl", CLIPPED, "on", "on", "token-mean", 1.0),
        ("sft", (*NLL, Uncertainty()), "demo*sft_weight", "demo*sft_weight", "token-mean", 1.0),
        ENTROPY,
    ],
}
WITHOUT_ROLLOUTS = {"sft", "dft", "psft", "sft_then_rl"}  # the last one's first phase


def test_every_algorithm_is_expected_here_and_has_a_conf_file(composed: Callable) -> None:
    assert set(EXPECTED) == set(ALGORITHMS)
    assert all(cls.name == name for name, cls in ALGORITHMS.items())
    assert all(composed(f"algorithm={name}").fusion.algorithm == name for name in ALGORITHMS)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_terms_of_the_default_configuration(algorithm: Callable[..., Algorithm], name: str) -> None:
    built = algorithm(f"algorithm={name}")
    assert type(built) is ALGORITHMS[name]
    assert [described(term) for term in built.terms] == EXPECTED[name]
    assert {term.aggregation.horizon for term in built.terms} == {64}  # data.max_response_length of task=arithmetic
    assert built.needs_entropy == (name not in {*WITHOUT_ROLLOUTS, "dapo", "online_sft"})


@pytest.mark.parametrize(
    ("name", "std", "lr"),
    [
        ("grpo", True, 1e-6),
        ("dr_grpo", False, 1e-6),
        ("dapo", True, 1e-6),
        ("ppo", None, 1e-6),
        ("hpt", False, 5e-6),
        ("hpt_released", False, 5e-6),
        ("luffy", False, 1e-6),
        ("prefix_rft", False, 1e-6),
        ("relift", False, 1e-6),
        ("srft", True, 1e-6),
        ("uft", True, 1e-6),
        ("online_sft", None, 1e-6),
        ("chord", True, 1e-6),
        ("rl_with_sft_loss", False, 1e-6),
        ("sft_then_rl", True, 1e-6),
        ("sft", None, 5e-5),
        ("dft", None, 5e-5),
        ("psft", None, 5e-5),
    ],
)
def test_headline_settings(composed: Callable, name: str, std: bool | None, lr: float) -> None:
    config = composed(f"algorithm={name}", "model=qwen2_5_math_7b")
    assert config.actor_rollout_ref.actor.optim.lr == lr
    assert std is None or config.algorithm.norm_adv_by_std_in_grpo is std
    assert config.fusion.max_grad_norm == (80 if name in ("hpt", "hpt_released") else None)


def test_kl_and_clip_are_optional(algorithm: Callable[..., Algorithm]) -> None:
    actor = "actor_rollout_ref.actor"
    built = algorithm(
        "algorithm=hpt",
        "fusion.clip=ppo",
        "fusion.entropy_on=all",
        f"{actor}.clip_ratio_high=0.28",
        f"{actor}.use_kl_loss=true",
        f"{actor}.kl_loss_coef=0.02",
        f"{actor}.kl_loss_type=mse",
    )
    terms = {term.name: term for term in built.terms}
    assert terms["rl"].loss.stabiliser == PPOClip(0.2, 0.28, 3.0)
    assert terms["off"].loss.stabiliser == NoStabiliser()  # demonstrations are never PPO-clipped
    assert (terms["kl"].loss, terms["kl"].coefficient, terms["kl"].members.key) == (KL("k2"), 0.02, "on")
    assert terms["entropy"].members.key == "trained"


def test_lambda_and_shape_reach_their_terms(settings: Callable[..., Settings]) -> None:
    base = settings("algorithm=hpt")
    base = changed(changed(base, "sft_loss_coef", 0.3), "shaping.maximum", 0.9)
    terms = {term.name: term for term in ALGORITHMS["hpt"](base).terms}
    assert terms["sft"].coefficient == 0.3
    assert terms["off"].loss.reference == Shaped("p_div_p", gamma=0.1, maximum=0.9)


# --- golden batches through the built algorithm --------------------------------------------------------------------


def routed(batch: dict, rl: list[float], sft: list[float], advantages: list[float]) -> dict[str, Tensor]:
    values = torch.tensor(advantages, dtype=torch.float64).unsqueeze(-1) * batch["response_mask"]
    return {**batch, "rl_weight": torch.tensor(rl), "sft_weight": torch.tensor(sft), "advantages": values}


def test_hpt_on_fixture_f(algorithm: Callable[..., Algorithm], fixture_f: Callable[[], dict]) -> None:
    # two prompts: row 0 gated, rows 1-2 a group of two with one success. Arithmetic in tests/objective/test_loss.py
    common = ("algorithm=hpt", "data.max_response_length=4", "actor_rollout_ref.rollout.n=2", NO_ENTROPY)
    batch = routed(fixture_f(), [0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0, 0.5, -0.5])
    for overrides, expected in [((), 0.457474), (("fusion.hpt.term_scale=own", "fusion.agg.rl=sum-norm"), 0.796198)]:
        built = algorithm(*common, *overrides)
        plan = built.experience.plan([Group("a", 0, 2, True, True), Group("b", 1, 2, True, True)])
        loss, _ = compute_loss(built.terms, batch, scales=built.scales(plan))
        assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_luffy_on_fixture_g(algorithm: Callable[..., Algorithm], fixture_g: Callable[[], dict]) -> None:
    built = algorithm("algorithm=luffy", "data.max_response_length=4", NO_ENTROPY)
    loss, _ = compute_loss(built.terms, fixture_g())
    assert loss.item() == pytest.approx(-0.063735, abs=1e-6)


def test_ppo_on_fixture_f(algorithm: Callable[..., Algorithm], fixture_f: Callable[[], dict]) -> None:
    built = algorithm("algorithm=ppo", "data.max_response_length=4", NO_ENTROPY)
    # Rows 1-2 as rollouts, A = .5, -.5; ratios 1.6, .8, 1 and 1, .5:
    # -(1.2 + .8 + 1)/2 + (1 + max(.5, .8))/2 = -1.5 + .9 over 5 tokens = -.12
    batch = routed(fixture_f(), [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0, 0.5, -0.5])
    rows = {name: value[1:] for name, value in batch.items()}
    loss, _ = compute_loss(built.terms, rows)
    assert loss.item() == pytest.approx(-0.12, abs=1e-6)


def test_only_ppo_needs_a_critic(composed: Callable) -> None:
    assert {name for name, cls in ALGORITHMS.items() if cls.needs_critic} == {"ppo"}
    config = composed("algorithm=ppo", "model=qwen2_5_math_7b", "hardware=node_8gpu")
    assert (config.algorithm.adv_estimator, config.algorithm.gamma, config.algorithm.lam) == ("gae", 1.0, 1.0)
    assert config.critic.optim.lr == 1e-5 and config.critic.model.path == config.actor_rollout_ref.model.path
    assert config.critic.use_dynamic_bsz and config.critic.model.use_remove_padding
    assert config.critic.forward_max_token_len_per_gpu == config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu


def test_hpt_scales_are_shares_of_prompts(settings: Callable[..., Settings]) -> None:
    base = changed(settings("algorithm=hpt"), "hpt.switch_gate_off", 2)
    groups = [Group(str(i), s, 8, True, True) for i, s in enumerate([0, 0, 1, 5, 8])]
    hpt = ALGORITHMS["hpt"](base)
    assert hpt.scales(hpt.experience.plan(groups)) == pytest.approx({"rl": 2 / 5, "off": 1 / 5, "sft": 2 / 5})
    own = ALGORITHMS["hpt"](changed(base, "hpt.term_scale", "own"))
    assert own.scales(own.experience.plan(groups)) == {}
    # soft, k = 3 of 7 verified (.5, .5, .125) and k = 7 (1, 0, 0): a prompt counts in every term that weighs it
    soft = ALGORITHMS["hpt"](changed(base, "hpt.strategy", "soft"))
    plan = soft.experience.plan([Group("a", 3, 7, True, True), Group("b", 7, 7, True, True)])
    assert soft.scales(plan) == {"rl": 1.0, "off": 0.5, "sft": 0.5}
    assert hpt.scales(BatchPlan(())) == {"rl": 0.0, "off": 0.0, "sft": 0.0}


# --- experience ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "needs_target", "with_target", "without"),
    [  # rollouts asked for, n = 8
        (("algorithm=grpo",), False, 8, 8),
        (("algorithm=dr_grpo",), False, 8, 8),
        (("algorithm=ppo", "actor_rollout_ref.rollout.n=1"), False, 1, 1),
        (("algorithm=hpt",), True, 8, 8),
        (("algorithm=hpt", "trainer.unify_strategy=soft"), True, 7, 8),
        (("algorithm=hpt", "trainer.unify_strategy=no"), False, 8, 8),
        (("algorithm=luffy",), True, 7, 8),
        (("algorithm=luffy", "fusion.demo.missing=skip"), True, 7, 0),
        (("algorithm=sft",), True, 0, 0),
        (("algorithm=dft",), True, 0, 0),
        (("algorithm=psft",), True, 0, 0),
        (("algorithm=sft_then_rl",), True, 0, 0),
        (("algorithm=dapo",), False, 8, 8),
        (("algorithm=hpt_released",), True, 8, 8),
        (("algorithm=srft",), True, 7, 8),
        (("algorithm=rl_with_sft_loss",), True, 7, 8),
        (("algorithm=prefix_rft",), True, 8, 8),  # the prefixed row is generated too
        (("algorithm=relift",), True, 8, 8),
        (("algorithm=uft",), False, 4, 4),
        (("algorithm=online_sft",), False, 8, 8),
        (("algorithm=chord",), True, 8, 8),
    ],
)
def test_rollouts_per_prompt(
    algorithm: Callable[..., Algorithm], overrides: tuple, needs_target: bool, with_target: int, without: int
) -> None:
    experience = algorithm(*overrides).experience
    assert (experience.needs_target, experience.rollouts(True), experience.rollouts(False)) == (
        needs_target,
        with_target,
        without,
    )


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_zones_of_every_experience_sum_to_the_prompts(algorithm: Callable[..., Algorithm], name: str) -> None:
    experience = algorithm(f"algorithm={name}").experience
    groups = [Group(str(i), 0, experience.rollouts(bool(i)), bool(i), bool(i)) for i in range(2)]
    plan = experience.plan(groups)
    assert sum(plan.zones().values()) == 2
    assert plan.zones()["skipped"] == (name in WITHOUT_ROLLOUTS)
