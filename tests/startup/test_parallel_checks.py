"""Sharding, offload and adapters: what cannot work is refused before Ray starts, what can is let through."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from unify_posttrain.config import compose_config
from unify_posttrain.startup import parallel_checks
from unify_posttrain.startup.parallel_checks import ACTOR, MODEL, check_parallelism

CPU, GPU = "hardware=cpu", "hardware=node_8gpu"


@pytest.mark.parametrize(
    "overrides",
    [
        (CPU,),
        (CPU, "trainer.n_gpus_per_node=4"),
        (GPU,),
        (GPU, f"{ACTOR}.strategy=fsdp2"),
        (GPU, f"{ACTOR}.ulysses_sequence_parallel_size=4"),
        (GPU, f"{ACTOR}.fsdp_config.param_offload=true", f"{ACTOR}.fsdp_config.optimizer_offload=true"),
        (GPU, f"{ACTOR}.strategy=fsdp2", f"{ACTOR}.fsdp_config.offload_policy=true"),
        (GPU, f"{MODEL}.lora_rank=16"),
    ],
)
def test_what_works_is_let_through(overrides: tuple[str, ...]) -> None:
    check_parallelism(compose_config(list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((GPU, f"{ACTOR}.strategy=megatron"), r"strategy=megatron .*choose one of fsdp, fsdp2"),
        ((GPU, f"{ACTOR}.ulysses_sequence_parallel_size=3"), "size=3 does not divide the 8 ranks"),
        ((GPU, f"{ACTOR}.ulysses_sequence_parallel_size=0"), "size=0 does not divide the 8 ranks"),
        (
            (GPU, f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{MODEL}.use_remove_padding=false"),
            f"splits packed rows.*set {MODEL}.use_remove_padding=true",
        ),
        ((CPU, f"{MODEL}.use_remove_padding=true"), "use_remove_padding=true has no meaning on CPU: packed rows need flash"),
        ((CPU, f"{ACTOR}.fsdp_config.param_offload=true"), "param_offload=true has no meaning on CPU"),
        ((CPU, f"{ACTOR}.fsdp_config.optimizer_offload=true"), "optimizer_offload=true has no meaning on CPU"),
        ((CPU, f"{ACTOR}.fsdp_config.offload_policy=true"), "pinned memory needs CUDA"),
        ((CPU, f"{MODEL}.enable_activation_offload=true"), "enable_activation_offload=true has no meaning on CPU"),
        ((CPU, f"{MODEL}.lora_rank=8"), "lora_rank=8: rollout.name=hf takes whole weights"),
        ((CPU, f"{MODEL}.lora_adapter_path=adapters/a"), "lora_adapter_path=adapters/a: rollout.name=hf"),
    ],
)
def test_what_cannot_work_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_parallelism(compose_config(list(overrides)))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_checks, "find_spec", lambda name: None)
    config = compose_config([GPU])
    OmegaConf.update(config, f"{MODEL}.lora_rank", 8)
    with pytest.raises(ValueError, match=r"lora_rank=8 needs the package peft.*pip install peft"):
        check_parallelism(config)
