"""Which workers run a model, on which version of verl, and what the engine workers cannot do; docs/backends.md says why."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.backend import seams

ACTOR, MODEL, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout"
HALF = ("float16", "fp16", "16")


def check_versions() -> None:
    """
    Raises:
        ValueError: verl is not there, or in a version that nothing here was tested with.
    """
    found, tested = seams.installed(), " or ".join(seams.TESTED)
    install = "pip install 'unify-posttrain[verl07]' (or [verl09])"
    if found is None:
        raise ValueError(f"verl is not installed; {install}")
    if found not in seams.TESTED:
        raise ValueError(f"verl {found} is installed, this release extends verl {tested}: {install}")


def check_backend(config: DictConfig) -> None:
    """
    Raises:
        ValueError: a backend that the installed verl does not have, or a setting that the chosen one would ignore or cannot serve.
    """
    backend = config.trainer.backend
    if backend not in (seams.LEGACY, seams.ENGINE):
        raise ValueError(f"trainer.backend={backend}: choose one of {seams.LEGACY}, {seams.ENGINE}, by backend=…")
    if backend not in seams.BACKENDS:
        raise ValueError(f"backend={backend}: verl {seams.installed()} has engine workers only; use backend={seams.ENGINE}")
    if (missing := seams.missing_part()) is not None:
        raise ValueError(missing)
    if backend != seams.ENGINE:
        return
    for key, refused, why in _refused(config):
        value = OmegaConf.select(config, key, default=None)
        if refused(value):
            raise ValueError(f"{key}={value} with backend={backend}: {why}")


def _refused(config: DictConfig) -> list[tuple]:
    dynamic = bool(config.actor_rollout_ref.actor.use_dynamic_bsz)
    half = "its engine has no loss scaling here; use bfloat16 or float32, or backend=legacy"
    adapters = "verl's engine has not been tried with adapters; use backend=legacy, or train all weights"
    lost = (
        "transformers 5 would not read it there, without a word, and train another model; take a model whose config.json has it, "
        "or verl 0.7.1"
    )
    given = [f"{model}.override_config.{name}" for model in (MODEL, "critic.model") for name in seams.LOST_OVERRIDES]
    return [
        *((key, lambda value: value is not None, lost) for key in given),
        (
            f"{MODEL}.use_fused_kernels",
            bool,
            "verl 0.7.1's engine cuts the wrong columns out of what the kernels return; set it to false, and "
            "fusion.logits_chunk=1024 for the same saving",
        ),
        (f"{MODEL}.lora_rank", bool, adapters),
        (f"{MODEL}.lora.rank", bool, adapters),
        (f"{MODEL}.lora_adapter_path", bool, adapters),
        (f"{ACTOR}.fsdp_config.dtype", lambda value: str(value) in HALF, half),
        (f"{ACTOR}.fsdp_config.mixed_precision.param_dtype", lambda value: str(value) in HALF, half),
        (f"{ACTOR}.fsdp_config.qat.enable", bool, "the scales of quantised weights are not renewed after a step; set it to false"),
        (
            f"{ACTOR}.freeze_vision_tower",
            bool,
            "verl's engine trains the tower all the same; set it to false or use backend=legacy",
        ),
        (f"{ACTOR}.calculate_sum_pi_squared", bool, "nothing computes it here; set it to false"),
        (
            f"{ROLLOUT}.log_prob_use_dynamic_bsz",
            lambda value: bool(value) != dynamic,
            f"verl's engine worker wants it as {ACTOR}.use_dynamic_bsz={str(dynamic).lower()}; set both alike",
        ),
    ]
