"""What algorithms refuse, with the key in the message, and the spellings that reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from omegaconf import OmegaConf

from unify_posttrain.algorithms import ALGORITHMS, FusionConfig, Phase, Settings, build_algorithm
from unify_posttrain.objective import SHAPES, PseudoLikelihood, Shaped
from unify_posttrain.startup.checks import check_config


def changed(settings: Settings, path: str, value: Any) -> Settings:
    """Settings with one value of the fusion node replaced, e.g. changed(s, "hpt.strategy", "soft")."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return settings.changed(value, {}, "test")


def spelled(value: Any) -> str:
    """A value in Hydra's grammar: mappings without quotes around keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{spelled(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(spelled, value)) + "]"
    return "null" if value is None else str(value)


def test_seed_keys_reach_the_gate(settings: Callable[..., Settings]) -> None:
    def gate(*overrides: str) -> tuple:
        hpt = settings("algorithm=hpt", *overrides).fusion.own["hpt"]
        return hpt["strategy"], hpt["switch_gate"], hpt["switch_gate_off"]

    assert gate("trainer.unify_strategy=soft", "trainer.switch_gate=2", "trainer.switch_gate_off=3") == ("soft", 2, 3)
    assert gate() == ("switch", 0, None)
    assert gate("fusion.hpt.switch_gate=-1") == ("switch", -1, None)


def test_a_key_of_another_method_does_not_exist(composed: Callable) -> None:
    """No option that does nothing: what one method reads is declared in its own file alone."""
    for override in ("trainer.switch_gate=0", "fusion.sft_loss_coef=0.3", "fusion.hpt.switch_gate=0", "fusion.phases=[]"):
        with pytest.raises(ValueError, match=f"{override.split('=')[0]} does not exist"):
            composed("algorithm=grpo", override)


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
        "fusion": replace(settings("algorithm=hpt").fusion, algorithm="hptt"),
    }
    with pytest.raises(ValueError, match=rf"'hptt' is unknown; choose one of {', '.join(sorted(ALGORITHMS))}$"):
        build_algorithm(actor)


def test_unknown_fusion_key_of_a_command_line_names_the_nearest(settings: Callable[..., Settings]) -> None:
    with pytest.raises(
        ValueError, match=r"fusion\.sft_loss_coeff is unknown to algorithm=hpt; did you mean fusion\.sft_loss_coef\?"
    ):
        ALGORITHMS["hpt"](settings("algorithm=hpt", "+fusion.sft_loss_coeff=1"))


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
        build_algorithm({**composed("algorithm=hpt").actor_rollout_ref.actor, "fusion": node})


def test_absent_fusion_key_is_named(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"fusion\.algorithm is not set"):
        FusionConfig.from_node({"seed": 0})
    with pytest.raises(ValueError, match=r"fusion\.chord is not set; conf/algorithm/chord\.yaml declares it"):
        ALGORITHMS["chord"](settings("algorithm=grpo"))


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
        ("luffy", "luffy.baseline", "demo", r"fusion\.luffy\.baseline='demo'.*group, rollouts"),
        ("grpo", "dual_clip", 0.5, r"fusion\.dual_clip=0\.5 must be > 1"),
        ("rl_with_sft_loss", "adv_estimator", "rloo", r"adv_estimator=rloo.*rollouts alone; set it to grpo"),
        ("luffy", "shaping.name", "cubic", r"fusion\.shaping\.name='cubic'"),
        ("luffy", "shaping.name", "p_div_p_x", r"fusion\.shaping\.name='p_div_p_x'"),
        ("luffy", "shaping.gamma", 0.0, r"fusion\.shaping\.gamma=0\.0"),
        ("sft", "demo.missing", "rl", r"fusion\.demo\.missing=rl.*skip or error"),
        ("dft", "demo.missing", "rl", r"fusion\.demo\.missing=rl.*algorithm=dft.*skip or error"),
        ("grpo", "sft_form", "mle", r"fusion\.sft_form='mle'.*nll, dft, phi, psft"),
        ("grpo", "shaping.on", "reject", r"fusion\.shaping\.on='reject'.*none, p_div_p"),
        ("luffy", "shaping.all_maximum", 1.5, r"fusion\.shaping\.all_maximum=1\.5"),
        ("luffy", "prefix.n_prefix", 9, r"fusion\.prefix\.n_prefix=9 exceeds.*rollout\.n=8"),
        ("luffy", "prefix.strategy", "linear_variance", r"fusion\.prefix\.strategy='linear_variance'"),
        ("srft", "group_size", 1, r"rollout\.n=1: a srft group"),
        ("srft", "srft.on_form", "prop", r"fusion\.srft\.on_form='prop'.*log_prob, prob, ratio, log_ratio"),
        ("srft", "srft.counts", "all", r"fusion\.srft\.counts='all'.*by_source, by_sign, released"),
        ("srft", "srft.entropy_scope", "row", r"fusion\.srft\.entropy_scope='row'"),
        ("srft", "srft.weight_cap", 0.0, r"fusion\.srft\.weight_cap=0\.0"),
        ("srft", "srft.neg_prob_floor", 1.0, r"fusion\.srft\.neg_prob_floor=1\.0"),
        ("srft", "clip", "ppo", r"fusion\.clip, fusion\.shaping\.on and .*algorithm=srft.*none"),
        ("srft", "shaping.on", "logp", r"fusion\.clip, fusion\.shaping\.on and .*algorithm=srft"),
        ("prefix_rft", "prefix_rft.entropy_top", 0.0, r"fusion\.prefix_rft\.entropy_top=0\.0"),
        ("relift", "relift.optimizer", "both", r"fusion\.relift\.optimizer='both'.*separate, shared"),
        ("relift", "relift.lr", 0.0, r"fusion\.relift\.lr=0\.0 must be > 0"),
        ("relift", "relift.grad_clip", -1.0, r"fusion\.relift\.grad_clip=-1\.0"),
        ("relift", "relift.sft_epochs", 0, r"fusion\.relift\.sft_epochs=0"),
        ("relift", "relift.sft_mini_batch_size", 48, r"sft_mini_batch_size=48 must divide fusion\.relift\.sft_data_size=128"),
        ("relift", "relift.sft_data_size", 0, r"fusion\.relift\.sft_data_size=0"),
        ("relift", "relift.max_buffer", 127, r"fusion\.relift\.max_buffer=127"),
        ("relift", "sft_form", "psft", r"fusion\.sft_form=psft.*replay.*use nll"),
        ("uft", "uft.max_new_tokens", 65, r"fusion\.uft\.max_new_tokens=65 must lie in 1\.\.data\.max_response_length=64"),
        ("uft", "uft.max_new_tokens", 0, r"fusion\.uft\.max_new_tokens=0"),
        ("uft", "uft.hint_mode", "r3", r"fusion\.uft\.hint_coef=0\.001: r3 does not train its hints; set it to 0"),
        ("uft", "uft.hint_mode", "binomial", r"fusion\.uft\.hint_mode='binomial'"),
        ("uft", "uft.p_low", 0.96, r"fusion\.uft\.p_low=0\.96 exceeds"),
        ("online_sft", "online_sft.form", "direct", r"fusion\.online_sft\.form='direct'.*analytic, pseudo"),
        ("online_sft", "online_sft.baseline", "mean", r"fusion\.online_sft\.baseline='mean'.*none, beta, rloo"),
        ("online_sft", "online_sft.task", "math", r"fusion\.online_sft\.task='math'.*rule, model"),
        ("online_sft", "online_sft.length_norm", "published", r"length_norm=published.*form=pseudo.*legacy=true"),
        ("online_sft", "online_sft.clip_weight_value", 5.0, r"clip_weight_value=5\.0.*legacy=true"),
        ("online_sft", "online_sft.clip_logprob_min", -5.0, r"clip_logprob_min=-5\.0.*legacy=true"),
        ("online_sft", "clip", "ppo", r"fusion\.clip and fusion\.shaping\.on.*algorithm=online_sft"),
        ("chord", "chord.expert_share", 1.0, r"fusion\.chord\.expert_share=1\.0"),
        ("chord", "chord.peak", 1.5, r"fusion\.chord\.peak=1\.5"),
        ("chord", "chord.warm", -1, r"fusion\.chord\.warm=-1"),
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
    *("rl_weight", "off_weight", "sft_weight"),  # the mixer
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


@pytest.mark.parametrize("name", ["uft", "online_sft"])
def test_what_needs_a_reference_says_so(settings: Callable[..., Settings], name: str) -> None:
    with pytest.raises(ValueError, match=rf"use_kl_loss=false: algorithm={name} needs the reference policy; set it to true"):
        ALGORITHMS[name](replace(settings(f"algorithm={name}"), use_kl_loss=False))


@pytest.mark.parametrize(("key", "said"), [("length_norm", ""), ("clip_weight_value", "=-5"), ("clip_logprob_min", "=-5")])
def test_published_settings_of_online_sft_need_both_switches(settings: Callable[..., Settings], key: str, said: str) -> None:
    base = changed(settings("algorithm=online_sft"), f"online_sft.{key}", "published" if key == "length_norm" else -5.0)
    for switches in ({"form": "pseudo"}, {"legacy": True}):
        with pytest.raises(ValueError, match=rf"fusion\.online_sft\.{key}{said}.*form=pseudo fusion\.online_sft\.legacy=true"):
            ALGORITHMS["online_sft"](base.changed({"online_sft": switches}, {}, "test"))
    both = ALGORITHMS["online_sft"](base.changed({"online_sft": {"form": "pseudo", "legacy": True}}, {}, "test"))
    assert isinstance(both.terms[0].loss, PseudoLikelihood)
    assert both.terms[0].loss != PseudoLikelihood(beta=0.1)


def test_the_pseudo_form_has_its_own_baseline(settings: Callable[..., Settings]) -> None:
    base = settings("algorithm=online_sft").changed({"online_sft": {"form": "pseudo", "baseline": "rloo"}}, {}, "test")
    with pytest.raises(ValueError, match=r"fusion\.online_sft\.baseline=rloo: form=pseudo has the fixed baseline"):
        ALGORITHMS["online_sft"](base)


SFT_PHASE = {"algorithm": "sft", "steps": 3}


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], r"fusion\.phases has 0 entries; give two or more"),
        ([SFT_PHASE], r"fusion\.phases has 1 entries"),
        ([SFT_PHASE, "grpo"], r"fusion\.phases\[1\]='grpo' must be a mapping with the keys algorithm"),
        ([SFT_PHASE, {"algorithm": "grpo", "setps": 3}], r"fusion\.phases\[1\]\.setps is unknown; known keys: algorithm, steps"),
        ([SFT_PHASE, {"algorithm": "grpoo"}], r"fusion\.phases\[1\]\.algorithm='grpoo'; choose one of chord"),
        ([SFT_PHASE, {"algorithm": "ppo"}], r"fusion\.phases\[1\]\.algorithm='ppo'; choose one of chord"),
        ([SFT_PHASE, {"algorithm": "relift"}], r"fusion\.phases\[1\]\.algorithm='relift'"),
        ([SFT_PHASE, {"algorithm": "sft_then_rl"}], r"fusion\.phases\[1\]\.algorithm='sft_then_rl'"),
        ([SFT_PHASE, {}], r"fusion\.phases\[1\]\.algorithm=None"),
        ([SFT_PHASE, {"algorithm": "grpo", "steps": 3}], r"fusion\.phases\[1\] is the last phase.*remove its steps and stall"),
        ([{**SFT_PHASE, "steps": None}, {"algorithm": "grpo"}], r"fusion\.phases\[0\] must say when it ends"),
        ([{**SFT_PHASE, "stall": 2}, {"algorithm": "grpo"}], r"fusion\.phases\[0\] must say when it ends: either steps or stall"),
        ([{**SFT_PHASE, "steps": 0}, {"algorithm": "grpo"}], r"fusion\.phases\[0\]: steps, stall and lr must be positive"),
        ([SFT_PHASE, {"algorithm": "grpo", "lr": -1e-6}], r"fusion\.phases\[1\]: steps, stall and lr must be positive"),
        ([{**SFT_PHASE, "fusion": {"demo": {"missing": "rl"}}}, {"algorithm": "grpo"}], r"missing=rl needs rollouts"),
        ([SFT_PHASE, {"algorithm": "grpo", "fusion": {"clop": "ppo"}}], r"fusion\.phases\[1\]\.fusion\.clop cannot be set"),
        ([SFT_PHASE, {"algorithm": "grpo", "fusion": {"agg": {"rll": 1}}}], r"fusion\.phases\[1\]\.fusion\.agg\.rll cannot be set"),
        ([SFT_PHASE, {"algorithm": "grpo", "fusion": {"seed": 3}}], r"phases\[1\]\.fusion\.seed=3: it holds for the whole run"),
        ([SFT_PHASE, {"algorithm": "grpo", "actor": {"clap": 1}}], r"fusion\.phases\[1\]\.actor\.clap cannot be set"),
    ],
)  # fmt: skip
def test_phases_that_make_no_run(settings: Callable[..., Settings], phases: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ALGORITHMS["sft_then_rl"](settings("algorithm=sft_then_rl", f"fusion.phases={spelled(phases)}"))


@pytest.mark.parametrize(
    "fusion",
    [
        {"demo": {"overlong": "error"}},
        {"demo": {"select": "random"}},
        {"demo": {"max_length": 9}},
        {"shaping": {"name": "target_prob"}},
    ],
)
def test_targets_are_read_alike_in_all_phases(settings: Callable[..., Settings], fusion: dict) -> None:
    """One reader serves the run; a phase that asks for another one would be ignored."""
    (node, (key, value)) = next((name, next(iter(keys.items()))) for name, keys in fusion.items())
    phases = [SFT_PHASE, {"algorithm": "luffy", "fusion": fusion}]
    with pytest.raises(ValueError, match=rf"fusion\.phases\[1\]\.fusion\.{node}\.{key}={value}: .*whole run"):
        ALGORITHMS["sft_then_rl"](settings("algorithm=sft_then_rl", f"fusion.phases={spelled(phases)}"))


def test_phases_must_have_been_composed(settings: Callable[..., Settings]) -> None:
    raw = changed(settings("algorithm=sft_then_rl"), "phases", [{"algorithm": "sft", "steps": 1}, {"algorithm": "grpo"}])
    with pytest.raises(ValueError, match=r"fusion\.phases\[0\] was not composed \(it has no fusion\)"):
        ALGORITHMS["sft_then_rl"](raw)


def test_any_algorithms_may_follow_each_other(settings: Callable[..., Settings]) -> None:
    phases = [
        SFT_PHASE,
        {"algorithm": "luffy", "stall": 2},
        {"algorithm": "hpt", "lr": 3e-6, "fusion": {"hpt": {"switch_gate": 2}}, "actor": {"clip_ratio_high": 0.3}},
    ]
    built = ALGORITHMS["sft_then_rl"](settings("algorithm=sft_then_rl", f"fusion.phases={spelled(phases)}"))
    assert [(phase.algorithm.name, phase.steps, phase.stall, phase.optim["lr"]) for phase in built.phases] == [
        ("sft", 3, None, 2e-5),
        ("luffy", None, 2, 2e-5),
        ("hpt", None, None, 3e-6),
    ]
    hpt = built.phases[2].algorithm
    assert (hpt.hpt.switch_gate, hpt.hpt.term_scale, hpt.settings.clip_ratio_high) == (2, "share", 0.3)


ALONE = sorted(name for name, cls in ALGORITHMS.items() if not cls.single_phase)


@pytest.fixture(scope="module")
def every_phase(settings: Callable[..., Settings]) -> dict[str, Phase]:
    """One run in which every algorithm that can be a phase is one, by name."""
    entries = [{"algorithm": name, **({"steps": 1} if name != ALONE[-1] else {})} for name in ALONE]
    run = ALGORITHMS["sft_then_rl"](settings("algorithm=sft_then_rl", f"fusion.phases={spelled(entries)}"))
    return dict(zip(ALONE, run.phases, strict=True))


@pytest.mark.parametrize("name", ALONE)
def test_a_phase_is_the_algorithm_alone(every_phase: dict[str, Phase], composed: Callable, name: str) -> None:
    """A name means its conf file: terms, rows, advantage, settings, rates and steps of a phase are those of `algorithm=NAME`."""
    wide = ("actor_rollout_ref.rollout.n=8",) if name.startswith("uft") else ()  # its file's 4 hold for a whole run
    config = composed(f"algorithm={name}", *wide)
    actor, phase = config.actor_rollout_ref.actor, every_phase[name]
    alone = build_algorithm(OmegaConf.to_container(actor, resolve=True))
    mine = phase.algorithm
    assert type(mine) is type(alone) and mine.settings == alone.settings
    assert (mine.terms, mine.experience, mine.advantage) == (alone.terms, alone.experience, alone.advantage)
    assert {key: actor.optim[key] for key in phase.optim} == phase.optim
    assert phase.mini_batches == config.data.train_batch_size // actor.ppo_mini_batch_size
    assert (phase.grad_clip, phase.filter_groups) == (actor.grad_clip, config.algorithm.filter_groups)


def test_what_a_phase_cannot_have_is_said(settings: Callable[..., Settings]) -> None:
    """DAPO's file asks for a reward manager, which is built once for a run."""
    run = ALGORITHMS["sft_then_rl"](
        settings("algorithm=sft_then_rl", f"fusion.phases={spelled([SFT_PHASE, {'algorithm': 'dapo'}])}")
    )
    kept = {key: (theirs, ours) for key, theirs, ours in run.phases[1].kept}
    assert kept["reward.reward_manager.name"] == ("dapo", "naive")
    assert not [key for key in kept if key.startswith(("fusion.", "algorithm.filter_groups"))]


def test_sft_refuses_kl(settings: Callable[..., Settings]) -> None:
    with pytest.raises(ValueError, match=r"actor\.use_kl_loss=true"):
        ALGORITHMS["sft"](replace(settings("algorithm=sft"), use_kl_loss=True))
