"""verl 0.7.1: both backends. Everything is imported where it is used: start-up checks ask for names alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

BACKENDS = ("legacy", "engine")
FORGETS_PICTURES = False  # its vLLM servers keep features of pictures when weights arrive
LOST_OVERRIDES: tuple[str, ...] = ()  # settings of a model that verl overrides where transformers does not read them
VLLM_ON_CPU = ("0.12.0", "constraints-vllm.txt", "make test-vllm", ".venv-vllm")  # tested; its versions; what installs them, where
HEAD_DIMS = (32, 64, 96, 128, 160, 192, 224, 256)  # of that vLLM's attention on CPU


def missing_part() -> str | None:
    """What verl lacks to run here, with the remedy: nothing."""
    return None


def base_task_runner() -> type:
    from verl.trainer.main_ppo import TaskRunner

    return TaskRunner


def data_builders() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """verl's builders of a data set and of its sampler."""
    from verl.trainer.main_ppo import create_rl_dataset, create_rl_sampler

    return create_rl_dataset, create_rl_sampler


def message_key(prompt_key: str) -> dict[str, str]:
    """What verl's data set is told when it makes messages of a row: nothing, it knows the column of the prompt."""
    return {}


def completed(config: Any) -> None:
    """Give a composed configuration what this package reads: it is all there."""


def adapted(config: Any) -> Any:
    """The configuration as this version wants it, which is as conf/ has it."""
    return config


def engine_fixes() -> type:
    """What verl's engine must do otherwise, as a base class in front of it."""
    import torch
    from torch.distributed.tensor import DTensor
    from verl.utils.device import get_device_id
    from verl.utils.fsdp_utils import load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
    from verl.utils.model import convert_weight_keys
    from verl.utils.torch_dtypes import PrecisionType

    class EngineFixes:
        """Computes and sends in the precision of the configuration: verl has bfloat16 written into both."""

        def forward_step(self, *args: Any, **kwargs: Any) -> Any:
            precision = PrecisionType.to_dtype((self.engine_config.mixed_precision or {}).get("param_dtype", "bf16"))
            theirs = torch.autocast

            def autocast(*args: Any, **kwargs: Any) -> Any:
                if kwargs.get("dtype") != torch.bfloat16:  # a model's own
                    return theirs(*args, **kwargs)
                return nullcontext() if precision == torch.float32 else theirs(*args, **{**kwargs, "dtype": precision})

            with patch.object(torch, "autocast", autocast):
                return super().forward_step(*args, **kwargs)

        def get_per_tensor_param(self, **_: Any) -> tuple[Iterator[tuple[str, torch.Tensor]], None]:
            load_fsdp_model_to_gpu(self.module)
            params = convert_weight_keys(self.module.state_dict(), getattr(self.module, "_fsdp_wrapped_module", self.module))
            if self._is_offload_param:
                offload_fsdp_model_to_cpu(self.module)
            device = get_device_id()
            whole = ((n, p.to(device).full_tensor() if isinstance(p, DTensor) else p) for n, p in params.items())
            return whole, None

    return EngineFixes


@contextmanager
def value_head(load: Callable[..., Any], model_config: Any) -> Iterator[None]:
    """verl's engine builds a critic with the class that config.json names, of a base model the language model: have it built by
    `load(path, dtype, config, trust)` instead."""

    class Loader:
        @staticmethod
        def from_pretrained(pretrained_model_name_or_path: str, torch_dtype: Any, config: Any, trust_remote_code: bool) -> Any:
            return load(pretrained_model_name_or_path, torch_dtype, config, trust_remote_code)

    hf_config = model_config.hf_config
    hf_config.num_labels, hf_config.classifier_dropout = 1, 0.0
    hf_config.hidden_dropout, hf_config.summary_dropout_prob = "0", 0.0
    with patch("verl.utils.model.get_hf_auto_model_class", lambda hf_config: Loader):
        yield


def critic_parts(config: Any) -> tuple[Any, Any]:
    """What the trainer hands to a critic's worker: verl's critic node, from it the parts of an engine.

    Returns:
        the node, and a TrainingWorkerConfig.
    """
    from verl.workers.config import HFModelConfig, TrainingWorkerConfig

    model = config.model
    same = (
        "path tokenizer_path override_config external_lib trust_remote_code use_shm use_remove_padding "
        "enable_gradient_checkpointing enable_activation_offload"
    )
    described = HFModelConfig(**{name: getattr(model, name) for name in same.split()})
    object.__setattr__(model.fsdp_config, "strategy", config.strategy)  # verl's engine reads it there, and it is FSDP1's unless set
    return config, TrainingWorkerConfig(
        model_type="value_model",
        model_config=described,
        engine_config=model.fsdp_config,
        optimizer_config=config.optim,
        checkpoint_config=config.checkpoint,
    )


def tell_critic(trainer: Any, critic: Any) -> None:
    """Nothing: the trainer hands its critic node to the critic's worker."""


def rollout_manager(trainer: Any) -> Any:
    """The manager of agent loops, which has the servers."""
    return trainer.async_rollout_manager


def wait_for_dump(trainer: Any) -> None:
    """Samples are written when verl's `_dump_generations` returns."""


def loop_arguments(given: dict[str, Any], silent: Any) -> dict[str, Any]:
    """What an agent loop of a single turn is made with: `silent`, a tokenizer whose template writes nothing, in place of its own.

    verl renders two user messages in a row here, to know the system prompt that loops with tools cut off. Templates that want the
    roles to alternate (Gemma's) refuse them, and a single turn cuts nothing off.
    """
    return {**given, "tokenizer": silent}


def loop_fixes() -> type:
    """Nothing: this version's agent loops render a prompt by `apply_chat_template`."""

    class LoopFixes:
        """None."""

    return LoopFixes


def rope_inputs(input_ids: Any, named: Any) -> dict[str, Any]:
    """What `get_rope_index` of a model that sees is given beside ids, mask and grids: nothing."""
    return {}


def naming_devices(module: Any, device_uuid: Callable[[Any], str]) -> Any:
    """While it lasts, vLLM's adapter in that module names its device, and the socket of its weights after it, by this function."""
    return patch.object(module, "get_device_uuid", device_uuid)


def keep_weights() -> None:
    """Nothing: on CPU vLLM 0.12 keeps the weights that it was given."""


async def start_load_balancer(manager: Any) -> None:
    """Between agent loops and servers."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopManager

    await AgentLoopManager._init_global_load_balancer(manager)
