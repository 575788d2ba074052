"""What algorithms refuse, with the key in the message, and the spellings that reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.algorithms import ALGORITHMS, FusionConfig, Settings, build_algorithm
from unify_posttrain.objective import SHAPES, Shaped
from unify_posttrain.trainer.checks import check_config


def changed(settings: Settings, path: str, value: Any) -> Settings:
    """Settings with one value of the fusion node replaced, e.g. changed(s, "hpt.strategy", "soft")."""
    *parents, name = path.split(".")
    if not parents:
        return replace(settings, fusion=replace(settings.fusion, **{name: value}))
    node = replace(getattr(settings.fusion, parents[0]), **{name: value})
    return replace(settings, fusion=replace(settings.fusion, **{parents[0]: node}))


def test_seed_keys_reach_the_gate(settings: Callable[..., Settings]) -> None:
    hpt = settings("algorithm=hpt", "trainer.unify_strategy=soft", "trainer.switch_gate=2", "trainer.switch_gate_off=3").fusion.hpt
    assert (hpt.strategy, hpt.switch_gate, hpt.switch_gate_off) == ("soft", 2, 3)
    default = settings("algorithm=hpt").fusion.hpt
    assert (default.strategy, default.switch_gate, default.switch_gate_off) == ("switch", 0, None)
    assert settings("algorithm=hpt", "fusion.hpt.switch_gate=-1").fusion.hpt.switch_gate == -1


def test_two_spellings_that_disagree_are_refused(composed: Callable) -> None:
    with pytest.raises(ValueError, match=r"trainer\.switch_gate=2 and fusion\.hpt\.switch_gate=3"):
        check_config(composed("algorithm=hpt", "trainer.switch_gate=2", "fusion.hpt.switch_gate=3"))


def test_legacy_shape_carries_its_gamma(settings: Callable[..., Settings]) -> None:
    base = changed(settings("algorithm=luffy"), "shaping.name", "p_div_p_0.3")
    assert ALGORITHMS["luffy"](base).terms[1].loss.reference == Shaped("p_div_p", gamma=0.3)


# --- checks ----------------------------------------------------------------------------------------------------------


def test_unknown_algorithm_lists_the_known(settings: Callable[..., Settings]) -> None:
    actor = {
        **vars(settings("algorithm=hpt")),
        "fusion": changed(settings("algorithm=hpt"), "algorithm", "hptt").fusion,
    }
    with pytest.raises(ValueError, match=rf"'hptt' is unknown; choose one of {', '.join(sorted(ALGORITHMS))}$"):
        build_algorithm(actor)


def test_unknown_fusion_key_of_a_command_line_names_the_nearest(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"fusion\.sft_loss_coeff is unknown; did you mean fusion\.sft_loss_coef\?"):
        settings("algorithm=hpt", "+fusion.sft_loss_coeff=1")


@pytest.mark.parametrize(
    ("parent", "name", "message"),
    [
        ("hpt", "switch_gat", r"fusion\.hpt\.switch_gat is unknown; did you mean fusion\.hpt\.switch_gate\?"),
        ("demo", "zzzzz", r"fusion\.demo\.zzzzz is unknown; known keys: missing, overlong"),
    ],
)
def test_unknown_nested_key_is_named(composed: Callable, parent: str, name: str, message: str) -> None:
    node = OmegaConf.to_container(composed("algorithm=hpt").fusion, resolve=True)
    node[parent][name] = 1
    with pytest.raises(ValueError, match=message):
        FusionConfig.from_node(node)


def test_absent_fusion_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"fusion\.algorithm is not set"):
        FusionConfig.from_node({"seed": 0})


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("grpo", "clip", "cispo", r"fusion\.clip='cispo'.*none, ppo"),
        ("grpo", "entropy_on", "demo", r"fusion\.entropy_on='demo'.*on, all"),
        ("grpo", "agg.rl", "mean", r"fusion\.agg.*'mean'"),
        ("grpo", "agg.entropy", "mean", r"fusion\.agg.*'mean'"),
        ("hpt", "agg.sft", "mean", r"fusion\.agg.*'mean'"),
        ("hpt", "sum_norm_divisor", 0, r"fusion\.sum_norm_divisor=0"),
        ("hpt", "demo.missing", "pad", r"fusion\.demo\.missing='pad'.*rl, skip, error"),
        ("hpt", "demo.overlong", "cut", r"fusion\.demo\.overlong='cut'"),
        ("hpt", "demo.select", "best", r"fusion\.demo\.select='best'"),
        ("hpt", "hpt.term_scale", "half", r"fusion\.hpt\.term_scale='half'.*share, own"),
        ("hpt", "hpt.strategy", "balance", r"unify_strategy='balance'"),
        ("hpt", "hpt.switch_gate", 9, r"switch_gate=9"),
        ("hpt", "hpt.switch_gate", None, r"switch_gate=None"),
        ("hpt", "hpt.switch_gate", "two", r"switch_gate=two"),
        ("hpt", "hpt.switch_gate_off", -2, r"switch_gate_off=-2"),
        ("hpt", "hpt.gate_rate", 2.0, r"fusion\.hpt\.gate_rate=2\.0"),
        ("hpt", "hpt.off_advantage", "one", r"fusion\.hpt\.off_advantage='one'"),
        ("hpt", "group_size", 1, r"rollout\.n=1"),
        ("luffy", "group_size", 1, r"rollout\.n=1"),
        ("luffy", "baseline", "demo", r"fusion\.baseline='demo'"),
        ("luffy", "shaping.name", "cubic", r"fusion\.shaping\.name='cubic'"),
        ("luffy", "shaping.name", "p_div_p_x", r"fusion\.shaping\.name='p_div_p_x'"),
        ("luffy", "shaping.gamma", 0.0, r"fusion\.shaping\.gamma=0\.0"),
        ("sft", "demo.missing", "rl", r"fusion\.demo\.missing=rl.*skip or error"),
    ],
)
def test_bad_values_are_refused_before_anything_starts(
    settings: Callable[..., Settings], name: str, path: str, value: Any, message: str
) -> None:
    """Specification 0: a bad configuration raises ValueError naming the key before any worker starts."""
    with pytest.raises(ValueError, match=message):
        _ = ALGORITHMS[name](changed(settings(f"algorithm={name}"), path, value)).terms


def test_bad_soft_type_is_refused_before_anything_starts(settings: Callable[..., Settings]) -> None:
    base = changed(settings("algorithm=hpt"), "hpt.strategy", "soft")
    with pytest.raises(ValueError, match=r"fusion\.hpt\.soft_type=7"):
        ALGORITHMS["hpt"](changed(base, "hpt.soft_type", 7))


# Streams that somebody puts into a batch; reading another one would stop the first update with a KeyError.
PRODUCED = {
    *("advantages", "old_log_probs", "ref_log_prob"),  # verl's stages
    *("rl_weight", "sft_weight"),  # the mixer
    *("uniforms", "solved", "unsolved", "scores"),  # the trainer's BatchMixer
    "target_probs",  # demonstrations, if the data has the column
    "batch_entropy",  # the log-prob stage
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_reads_a_stream_that_nobody_makes(settings: Callable[..., Settings], shape: str) -> None:
    """A shape is either refused before anything starts, or what it reads is in the batch."""
    try:
        terms = ALGORITHMS["luffy"](changed(settings("algorithm=luffy"), "shaping.name", shape)).terms
    except ValueError as error:
        assert "fusion.shaping.name" in str(error)
        return
    assert {name for term in terms for name in term.streams} <= PRODUCED


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_no_algorithm_reads_a_stream_that_nobody_makes(settings: Callable[..., Settings], name: str) -> None:
    for phase in ALGORITHMS[name](settings(f"algorithm={name}")).phases:
        terms = (*phase.algorithm.terms, *phase.algorithm.replay_terms)
        assert {stream for term in terms for stream in term.streams} <= PRODUCED


def test_sft_refuses_kl(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"actor\.use_kl_loss=true"):
        ALGORITHMS["sft"](replace(settings("algorithm=sft"), use_kl_loss=True))
