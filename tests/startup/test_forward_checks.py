"""Which replacements of the output head are refused before anything starts, and that GPU settings are not among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from unify_posttrain.startup.forward_checks import check_fused_kernels

FUSED = "actor_rollout_ref.model.use_fused_kernels=true"
GPU = ("hardware=gpu_1", "fusion.logits_chunk=null")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("fusion.logits_chunk=1",),
        (FUSED,),  # float32, one rank per row
        ("hardware=gpu_1",),
        ("hardware=node_8gpu", "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"),
        (*GPU, FUSED, "actor_rollout_ref.model.fused_kernel_options.impl_backend=triton"),
    ],
)
def test_right_settings_pass(composed: Callable[..., DictConfig], overrides: tuple[str, ...]) -> None:
    check_fused_kernels(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("fusion.logits_chunk=0",), r"fusion\.logits_chunk=0 must be a number of tokens"),
        (("fusion.logits_chunk=true",), r"fusion\.logits_chunk=True must be"),
        (("fusion.logits_chunk=2.5",), r"fusion\.logits_chunk=2\.5 must be"),
        (("fusion.logits_chunk=64", FUSED), r"both replace the output head; set one"),
        (("fusion.logits_chunk=64", "actor_rollout_ref.actor.calculate_sum_pi_squared=true"), r"no logits for .*sum_pi_squared"),
        ((FUSED, "actor_rollout_ref.model.fused_kernel_options.impl_backend=null"), r"impl_backend=None.*set it to torch"),
        ((FUSED, "actor_rollout_ref.model.fused_kernel_options.impl_backend=triton"), r"triton needs CUDA"),
        ((FUSED, "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"), r"size=2 takes the wrong label"),
        ((*GPU, FUSED), r"dtype=bfloat16 returns log-probs rounded.*logits_chunk=1024"),
        ((FUSED, "actor_rollout_ref.model.use_liger=true"), r"use_liger=true disagree"),
    ],
)
def test_wrong_settings_name_key_and_remedy(composed: Callable[..., DictConfig], overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_fused_kernels(composed(*overrides))


@pytest.mark.parametrize(
    ("description", "switch", "message"),
    [
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "fusion.logits_chunk=8", r"softcapping=30\.0.*set it to null"),
        ({"model_type": "granite", "logits_scaling": 8.0}, FUSED, r"logits_scaling=8\.0.*set it to false"),
        ({"model_type": "gpt_neox"}, FUSED, r"do not know models of type gpt_neox"),
        ({"model_type": "gpt_neox"}, "fusion.logits_chunk=8", None),
        ({"model_type": "qwen2", "logit_scale": 1.0}, FUSED, None),
        ({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "fusion.logits_chunk=null", None),
    ],
)
def test_models_that_change_their_logits(composed, tmp_path: Path, description: dict, switch: str, message: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(description), encoding="utf-8")
    config = composed(switch, f"actor_rollout_ref.model.path={tmp_path}")
    if message is None:
        check_fused_kernels(config)
    else:
        with pytest.raises(ValueError, match=message):
            check_fused_kernels(config)
