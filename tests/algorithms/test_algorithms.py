"""Algorithms as conf/ composes them: terms, experience, scales, and the golden batches through the built objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from tests.algorithms.cases import CASES, WITHOUT_ROLLOUTS
from unify_posttrain.algorithms import ALGORITHMS, METHODS, Algorithm, Settings, build_algorithm
from unify_posttrain.algorithms.reading import settings_read
from unify_posttrain.config import conf_dir
from unify_posttrain.experience import BatchPlan
from unify_posttrain.experience.rules import Group
from unify_posttrain.objective import (
    KL,
    NoStabiliser,
    PolicyGradient,
    PPOClip,
    Shaped,
    Term,
    compute_loss,
)

NO_ENTROPY = "actor_rollout_ref.actor.entropy_coeff=0"


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


def test_every_method_has_its_case_and_its_conf_file(composed: Callable) -> None:
    assert set(CASES) == {cls.name for cls in METHODS}
    assert all(cls.name == name for name, cls in ALGORITHMS.items())
    assert all(composed(f"algorithm={name}").fusion.algorithm == name for name in ALGORITHMS)
    assert {path.stem for path in (conf_dir() / "algorithm").glob("*.yaml")} == set(ALGORITHMS)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_the_default_configuration_makes(algorithm: Callable[..., Algorithm], name: str) -> None:
    built, case = algorithm(f"algorithm={name}"), CASES[name]
    assert type(built) is ALGORITHMS[name]
    assert [described(term) for term in built.terms] == list(case.terms)
    assert {term.aggregation.horizon for term in built.terms} == {64}  # data.max_response_length of task=arithmetic
    rule = built.experience
    assert (rule.describe(), built.advantage.describe()) == (case.rows, case.advantage)
    assert (rule.rollouts(True), rule.rollouts(False), rule.most_rows) == (*case.rollouts, case.most_rows)
    needs = {
        "target": rule.needs_target,
        "hint": rule.needs_hint,
        "reference": built.needs_reference,
        "critic": built.needs_critic,
        "entropy": built.needs_entropy,
    }
    assert {key for key, needed in needs.items() if needed} == case.needs


@pytest.mark.parametrize("name", sorted(CASES))
def test_headline_settings(composed: Callable, name: str) -> None:
    config = composed(f"algorithm={name}", "model=qwen2_5_math_7b")
    assert (config.actor_rollout_ref.actor.optim.lr, config.fusion.max_grad_norm) == (CASES[name].lr, CASES[name].max_grad_norm)


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
    assert terms["rl"].loss.stabiliser == PPOClip(0.2, 0.28)  # the dual bound is a setting of its own
    assert terms["off"].loss.stabiliser == NoStabiliser()  # demonstrations are never PPO-clipped
    assert (terms["kl"].loss, terms["kl"].coefficient, terms["kl"].members.key) == (KL("k2"), 0.02, "on")
    assert terms["entropy"].members.key == "trained"


def test_lambda_and_shape_reach_their_terms(settings: Callable[..., Settings]) -> None:
    base = settings("algorithm=hpt").changed({"sft_loss_coef": 0.3, "shaping": {"maximum": 0.9}}, {}, "test")
    terms = {term.name: term for term in ALGORITHMS["hpt"](base).terms}
    assert terms["sft"].coefficient == 0.3
    assert terms["off"].loss.reference == Shaped("p_div_p", gamma=0.1, maximum=0.9)


# --- golden batches through the built algorithm --------------------------------------------------------------------


def routed(batch: dict, rl: list[float], sft: list[float], advantages: list[float]) -> dict[str, Tensor]:
    values = torch.tensor(advantages, dtype=torch.float64).unsqueeze(-1) * batch["response_mask"]
    return {
        **batch,
        "rl_weight": torch.tensor(rl),
        "off_weight": 0 * torch.tensor(sft),
        "sft_weight": torch.tensor(sft),
        "advantages": values,
    }


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


def test_the_critic_of_ppo(composed: Callable) -> None:
    config = composed("algorithm=ppo", "model=qwen2_5_math_7b", "hardware=node_8gpu")
    assert (config.algorithm.adv_estimator, config.algorithm.gamma, config.algorithm.lam) == ("gae", 1.0, 1.0)
    assert config.critic.optim.lr == 1e-5 and config.critic.model.path == config.actor_rollout_ref.model.path
    assert config.critic.use_dynamic_bsz and config.critic.model.use_remove_padding
    assert config.critic.forward_max_token_len_per_gpu == config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu


def test_hpt_scales_are_shares_of_prompts(settings: Callable[..., Settings]) -> None:
    base = settings("algorithm=hpt").changed({"hpt": {"switch_gate_off": 2}}, {}, "test")
    groups = [Group(str(i), s, 8, True, True) for i, s in enumerate([0, 0, 1, 5, 8])]
    hpt = ALGORITHMS["hpt"](base)
    assert hpt.scales(hpt.experience.plan(groups)) == pytest.approx({"rl": 2 / 5, "off": 1 / 5, "sft": 2 / 5})
    own = ALGORITHMS["hpt"](base.changed({"hpt": {"term_scale": "own"}}, {}, "test"))
    assert own.scales(own.experience.plan(groups)) == {}
    # soft, k = 3 of 7 verified (.5, .5, .125) and k = 7 (1, 0, 0): a prompt counts in every term that weighs it
    soft = ALGORITHMS["hpt"](base.changed({"hpt": {"strategy": "soft"}}, {}, "test"))
    plan = soft.experience.plan([Group("a", 3, 7, True, True), Group("b", 7, 7, True, True)])
    assert soft.scales(plan) == {"rl": 1.0, "off": 0.5, "sft": 0.5}
    assert hpt.scales(BatchPlan(())) == {"rl": 0.0, "off": 0.0, "sft": 0.0}


# --- experience ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "needs_target", "with_target", "without"),
    [  # rollouts asked for, n = 8, where settings change them
        (("algorithm=ppo", "actor_rollout_ref.rollout.n=1"), False, 1, 1),
        (("algorithm=hpt", "trainer.unify_strategy=soft"), True, 7, 8),
        (("algorithm=hpt", "trainer.unify_strategy=no"), False, 8, 8),
        (("algorithm=luffy", "fusion.demo.missing=skip"), True, 7, 0),
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


@pytest.mark.parametrize("name", sorted(CASES))
def test_zones_of_every_experience_sum_to_the_prompts(algorithm: Callable[..., Algorithm], name: str) -> None:
    experience = algorithm(f"algorithm={name}").experience
    groups = [Group(str(i), 0, experience.rollouts(bool(i)), bool(i), bool(i)) for i in range(2)]
    plan = experience.plan(groups)
    assert sum(plan.zones().values()) == 2
    assert plan.zones()["skipped"] == (name in WITHOUT_ROLLOUTS)


@pytest.mark.parametrize("name", sorted(CASES))
def test_weights_are_of_terms_that_exist(algorithm: Callable[..., Algorithm], name: str) -> None:
    """A plan that names a term which the objective does not have would train nothing, in silence."""
    built = algorithm(f"algorithm={name}")
    rule = built.experience
    groups = [Group(str(s), s, rule.rollouts(True), True, True) for s in range(rule.rollouts(True) + 1)]
    named = {term for group in rule.plan(groups) for term in group.weights}
    assert named and named <= {term.name for term in built.terms}
    assert set(built.weighted_terms) <= named | {"off"}  # the gate's middle zone is empty by default


# --- settings that are read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CASES))
def test_settings_that_are_read_exist_and_move_the_algorithm(composed: Callable, name: str) -> None:
    config = composed(f"algorithm={name}")
    keys = settings_read(build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True)))
    missing = object()
    assert not [key for key in keys if OmegaConf.select(config, key, default=missing) is missing]
    own = {key for key in keys if key.split(".")[1] in ALGORITHMS[name].nodes}
    assert bool(own) == bool(ALGORITHMS[name].nodes)
