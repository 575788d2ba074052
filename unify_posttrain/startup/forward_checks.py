"""Start-up checks of the output head: `fusion.logits_chunk`, and verl's fused kernels, which hold for some settings only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.untrusted.documents import read_object

logger = logging.getLogger(__name__)

CHUNK = "fusion.logits_chunk"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
BACKEND = "actor_rollout_ref.model.fused_kernel_options.impl_backend"
# Keys of a model's config.json by which it changes what its output head returns (Gemma 2, Cohere, Granite).
TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
WITHOUT_LM_HEAD = ("gpt_neox",)


def check_fused_kernels(config: DictConfig) -> None:
    """Raise on a replacement of the output head that would give wrong log-probs, or none.

    verl's fused kernels (0.7.1) have the right gradients, of log-probs and entropies; their `torch` form is right where the actor
    computes in float32 and rows are not split over Ulysses ranks. `fusion.logits_chunk` has neither limit.

    Raises:
        ValueError: names key, value and remedy.
    """
    chunk, fused = OmegaConf.select(config, CHUNK), bool(OmegaConf.select(config, FUSED))
    if chunk is not None:
        _check_chunk(config, chunk, fused)
    if fused:
        _check_verls_kernels(config)
    if chunk is None and not fused:
        return
    key = FUSED if fused else f"{CHUNK}={chunk}"
    model = _description(str(config.actor_rollout_ref.model.path))
    for name in TRANSFORMS:
        if model.get(name) not in (None, 1, 1.0):
            remedy = "set it to false" if fused else "set it to null"
            raise ValueError(f"{key}: the model scales or caps its logits ({name}={model[name]}), which this skips; {remedy}")


def _check_chunk(config: DictConfig, chunk: Any, fused: bool) -> None:
    if isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"{CHUNK}={chunk} must be a number of tokens, at least 1, or null")
    if fused:
        raise ValueError(f"{CHUNK}={chunk} and {FUSED}=true both replace the output head; set one of them")
    if OmegaConf.select(config, "actor_rollout_ref.actor.calculate_sum_pi_squared"):
        raise ValueError(
            f"{CHUNK}={chunk} leaves no logits for actor_rollout_ref.actor.calculate_sum_pi_squared=true; set it to null"
        )


def _check_verls_kernels(config: DictConfig) -> None:
    actor, backend = config.actor_rollout_ref.actor, OmegaConf.select(config, BACKEND)
    dtype = str(OmegaConf.select(config, "actor_rollout_ref.actor.fsdp_config.dtype"))
    instead = f"set {FUSED}=false, and {CHUNK}=1024 for the same saving"
    if backend not in ("torch", "triton"):
        raise ValueError(f"{BACKEND}={backend}: the model would not be changed and its output lack log-probs; set it to torch")
    if actor.ulysses_sequence_parallel_size > 1:
        raise ValueError(
            f"{FUSED}=true with ulysses_sequence_parallel_size={actor.ulysses_sequence_parallel_size} takes the wrong label for "
            f"the last token of every rank (verl issues 3512, 3723); {instead}"
        )
    if backend == "torch" and dtype not in ("float32", "fp32"):
        raise ValueError(
            f"{FUSED}=true with fsdp_config.dtype={dtype} returns log-probs rounded to it, of which ratios are taken (verl pull "
            f"request 5662); {instead}"
        )
    if backend == "triton" and config.actor_rollout_ref.rollout.name == "hf":
        raise ValueError(f"{BACKEND}=triton needs CUDA; set it to torch")
    if OmegaConf.select(config, "actor_rollout_ref.model.use_liger"):
        raise ValueError(f"{FUSED}=true and actor_rollout_ref.model.use_liger=true disagree (verl issue 1720); set one of them")
    kind = _description(str(config.actor_rollout_ref.model.path)).get("model_type")
    if kind in WITHOUT_LM_HEAD:
        raise ValueError(f"{FUSED}=true: verl's kernels do not know models of type {kind}; {instead}")
    if backend == "triton":
        logger.warning("%s=triton has not been compared with the plain form by this release; %s=1024 has", BACKEND, CHUNK)


def _description(path: str) -> dict[str, Any]:
    """config.json of a model folder; of a name on the hub nothing is known yet (the worker then checks the model itself)."""
    file = Path(path).expanduser() / "config.json"
    return read_object(file) if file.is_file() else {}
