"""Which backend runs where, and what is refused with its reason before anything starts."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf, open_dict
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from verl.utils.model import update_model_config

from unify_posttrain.backend import seams
from unify_posttrain.config import compose_config
from unify_posttrain.startup.backend_checks import check_backend, check_versions
from unify_posttrain.startup.checks import check_config

MODEL, ACTOR = "actor_rollout_ref.model", "actor_rollout_ref.actor"


@pytest.fixture(scope="module")
def engine():
    return compose_config(["algorithm=grpo", "backend=engine", "hardware=gpu_1"])


def test_one_word_chooses(engine) -> None:
    assert engine.trainer.backend == "engine" and compose_config(["algorithm=grpo"]).trainer.backend == "legacy"
    check_backend(engine)


def test_settings_of_other_versions_are_no_difference_between_backends(engine) -> None:
    """The same settings mean the same: what the group adds is the choice itself."""
    plain = OmegaConf.to_container(compose_config(["algorithm=grpo", "backend=legacy", "hardware=gpu_1"]))
    chosen = OmegaConf.to_container(engine)
    assert (chosen["trainer"].pop("backend"), plain["trainer"].pop("backend")) == ("engine", "legacy")
    assert chosen["trainer"].pop("use_v1") is False  # of 0.9.1, which has it true
    plain["trainer"].pop("use_v1", None)
    assert chosen == plain


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (f"{MODEL}.use_fused_kernels", True, r"wrong columns .* fusion\.logits_chunk=1024"),
        (f"{MODEL}.lora_rank", 8, "not been tried with adapters"),
        (f"{MODEL}.lora_adapter_path", "a", "not been tried with adapters"),
        (f"{ACTOR}.fsdp_config.dtype", "float16", "no loss scaling"),
        (f"{ACTOR}.fsdp_config.mixed_precision", {"param_dtype": "fp16"}, "no loss scaling"),
        (f"{ACTOR}.fsdp_config.qat.enable", True, "scales"),
        (f"{ACTOR}.freeze_vision_tower", True, "trains the tower all the same"),
        (f"{ACTOR}.calculate_sum_pi_squared", True, "nothing computes it"),
        ("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz", "other", "set both alike"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_and_the_other_backend_is_not_asked(engine, key, value, why) -> None:
    config = engine.copy()
    with open_dict(config):
        given = not config.actor_rollout_ref.actor.use_dynamic_bsz if value == "other" else value
        OmegaConf.update(config, key, given, force_add=True)
    with pytest.raises(ValueError, match=why) as caught:
        check_backend(config)
    assert str(caught.value).startswith(key) and "with backend=engine" in str(caught.value)
    if "legacy" in seams.BACKENDS:
        config.trainer.backend = "legacy"
        check_backend(config)


def test_an_unknown_backend_and_one_that_this_verl_does_not_have(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = engine.copy()
    config.trainer.backend = "megatron"
    with pytest.raises(ValueError, match=r"trainer\.backend=megatron: choose one of legacy, engine"):
        check_backend(config)
    config.trainer.backend = "legacy"
    monkeypatch.setattr(seams, "BACKENDS", ("engine",))
    monkeypatch.setattr(seams, "installed", lambda: "0.9.1")
    with pytest.raises(ValueError, match=r"verl 0\.9\.1 has engine workers only; use backend=engine"):
        check_backend(config)


def test_whoever_names_no_backend_is_told_which_one_this_verl_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a setting of that verl would be refused beside it: the backend's group has what goes with it."""
    config = compose_config(["algorithm=grpo"])
    OmegaConf.update(config, "trainer.use_v1", True, force_add=True)  # as verl 0.9.1 has it
    monkeypatch.setattr(seams, "BACKENDS", ("engine",))
    with pytest.raises(ValueError, match=r"^backend=legacy: verl .* has engine workers only; use backend=engine$"):
        check_config(config)


def test_a_plugin_that_verl_did_not_load_is_noticed(engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "missing_part", lambda: "verl did not load the plugin")
    with pytest.raises(ValueError, match="did not load the plugin"):
        check_backend(engine)


@pytest.mark.parametrize(
    ("found", "said"), [(None, r"verl is not installed; .*verl07"), ("0.8.0", r"verl 0\.8\.0 is installed, .* 0\.7\.1 or 0\.9\.1")]
)
def test_two_sets_of_versions_are_tested_and_others_refused(found, said, monkeypatch: pytest.MonkeyPatch) -> None:
    check_versions()
    monkeypatch.setattr(seams, "installed", lambda: found)
    with pytest.raises(ValueError, match=said):
        check_versions()


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_rotary_base_that_transformers_5_would_not_read_is_refused(algorithm: str) -> None:
    """The published settings of Qwen2.5-Math override it, for the policy and its critic."""
    config = compose_config([f"algorithm={algorithm}", "model=qwen2_5_math_1_5b", "hardware=gpu_1", "backend=engine"])
    described = Qwen2Config(rope_theta=10_000.0)
    update_model_config(described, OmegaConf.to_container(config.actor_rollout_ref.model.override_config, resolve=True))
    if base(described) == 40_000.0:
        check_backend(config)
        return
    with pytest.raises(ValueError, match=r"override_config\.rope_theta=40000\.0.*would not read it there"):
        check_backend(config)
    config.actor_rollout_ref.model.override_config.rope_theta = None
    check_backend(config)


def base(config: Qwen2Config) -> float:
    """The rotary base that the model is built with: its second frequency is base^(-2 / dimensions of a head)."""
    dimensions = config.hidden_size // config.num_attention_heads
    return round(float(Qwen2RotaryEmbedding(config).inv_freq[1]) ** (-dimensions / 2), -2)
