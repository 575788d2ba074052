"""verl 0.9.1: engine workers alone. Everything is imported where it is used: start-up checks ask for names alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

BACKENDS = ("engine",)
FORGETS_PICTURES = True  # its vLLM servers drop features of pictures when weights arrive
# Of a model: verl overrides them where transformers 5 does not read them, which has them in a dictionary rope_parameters.
LOST_OVERRIDES: tuple[str, ...] = ("rope_theta", "rope_scaling")
VLLM_ON_CPU = ("0.24.0", "constraints-verl09-vllm.txt", "make test-verl09-vllm", ".venv-verl09-vllm")  # as in verl07
HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
CRITIC_SETTINGS = "critic_settings"


def missing_part() -> str | None:
    """What verl lacks to run here, with the remedy; None: nothing."""
    from unify_posttrain.backend import plugin

    if plugin.installed():
        return None
    return (
        "verl did not load the plugin of this package (entry point verl.plugins): install it in this environment, pip install -e ."
    )


def base_task_runner() -> type:
    from verl.trainer.main_ppo_v0 import BaseTaskRunner

    return BaseTaskRunner


def data_builders() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """verl's builders of a data set and of its sampler."""
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler

    return create_rl_dataset, create_rl_sampler


def message_key(prompt_key: str) -> dict[str, str]:
    """What verl's data set is told when it makes messages of a row: the column, since it makes them of others, too."""
    return {"key": prompt_key}


def completed(config: Any) -> None:
    """Give a configuration, in place, what the older version has and this package reads: a critic's sharding below its model.
    `adapted` takes it back to where this version has it. It is the same in both places, so that one that was adapted and is
    completed again is what it was: checkpoints are compared with either (`runs.continuity.settings`)."""
    from omegaconf import open_dict

    if "critic" in config:
        critic = config.critic
        with open_dict(critic):
            critic.fsdp = _joined(critic.fsdp, critic.model.get("fsdp_config"))
            critic.model.fsdp_config = critic.fsdp


def adapted(config: Any) -> Any:
    """The configuration as this version wants it: a critic's sharding stands beside its model, which is described as an actor's."""
    from dataclasses import fields

    from omegaconf import open_dict
    from verl.workers.config import HFModelConfig

    critic, known = config.critic, {field.name for field in fields(HFModelConfig)} | {"_target_"}
    with open_dict(critic):
        sharding = critic.model.pop("fsdp_config", None)
        if sharding is not None:
            critic.fsdp = _joined(critic.fsdp, sharding)
        for name in set(critic.model) - known:
            critic.model.pop(name)
    return config


def _joined(node: Any, more: Any | None) -> dict[str, Any]:
    """A node with the keys of another one over its own."""
    from omegaconf import OmegaConf

    return {**OmegaConf.to_container(node), **(OmegaConf.to_container(more) if more is not None else {})}


def engine_fixes() -> type:
    """What verl's engine must do otherwise, as a base class in front of it."""

    class EngineFixes:
        """Has the tower of a Qwen-VL answer with the features of pictures alone.

        transformers 5 gives several outputs. verl reads the features among them, but not where a micro-batch shows nothing and
        the tower runs on a blank picture, so that ranks wait for nobody: there it takes the mean of whatever it was given.
        """

        def _build_module(self) -> Any:
            module = super()._build_module()
            if module.config.model_type in ("qwen2_vl", "qwen2_5_vl"):
                module.model.visual.register_forward_hook(lambda tower, given, found: getattr(found, "pooler_output", found))
            return module

    return EngineFixes


@contextmanager
def value_head(load: Callable[..., Any], model_config: Any) -> Iterator[None]:
    """verl's loader of a critic asks for flash attention: have it loaded by `load(path, dtype, config, trust)` instead."""

    def loader(local_path: str, torch_dtype: Any, model_config: Any, trust_remote_code: bool) -> Any:
        return load(local_path, torch_dtype, model_config, trust_remote_code)

    with patch("verl.utils.model.load_valuehead_model", loader):
        yield


def tell_critic(trainer: Any, critic: Any) -> None:
    """Have verl's trainer hand its critic node to the critic's worker, beside the parts of an engine that it makes of it."""
    from verl.utils.config import omega_conf_to_dataclass

    if trainer.use_critic:  # the model of one that is not there cannot be described
        trainer._critic_extra_context = {CRITIC_SETTINGS: omega_conf_to_dataclass(critic)}


def critic_parts(config: Any) -> tuple[Any, Any]:
    """What the trainer hands to a critic's worker.

    Returns:
        verl's critic node, and a TrainingWorkerConfig.
    """
    return config.extra_context[CRITIC_SETTINGS], config


def rollout_manager(trainer: Any) -> Any:
    """The manager of agent loops, with the servers that it lends: here they belong to another one."""
    manager, servers = trainer.async_rollout_manager, trainer.llm_server_manager
    manager.server_handles = servers.server_handles
    manager.start_profile, manager.stop_profile = servers.start_profile, servers.stop_profile
    return manager


def wait_for_dump(trainer: Any) -> None:
    """verl writes samples in a thread: wait for it, since more is appended to the file, and a run may be asked to leave."""
    for future in trainer._dump_futures:
        future.result()


def loop_arguments(given: dict[str, Any], silent: Any) -> dict[str, Any]:
    """What an agent loop of a single turn is made with: no type of model, by which verl chooses rules for the seams between turns.
    Those of Qwen want a newline to be one token of the vocabulary, and a single turn has no seams."""
    return {name: value for name, value in given.items() if name != "hf_model_type"}


def loop_fixes() -> type:
    """What an agent loop of several turns asks for that this version has under another name, as a base class in front of verl's."""

    class LoopFixes:
        """Renders a prompt as in verl 0.7.1: the tokens of messages, with what asks for an answer."""

        async def apply_chat_template(self, messages: list[dict], **given: Any) -> list[int]:
            return await self.ct_build_initial_tokens(messages, **given)

    return LoopFixes


def rope_inputs(input_ids: Any, named: Any) -> dict[str, Any]:
    """What `get_rope_index` of a model that sees is given beside ids, mask and grids: of which kind each token is.

    Args:
        input_ids: (B, L).
        named: a processor, or a model's configuration; either knows the ids of pictures' and videos' tokens.

    Returns:
        `mm_token_type_ids` (B, L), 1 for tokens of pictures, 2 for those of videos, 0 for text.
    """
    return {"mm_token_type_ids": (input_ids == named.image_token_id).int() + 2 * (input_ids == named.video_token_id).int()}


def naming_devices(module: Any, device_uuid: Callable[[Any], str]) -> Any:
    """Nothing: the socket of weights is named by job, replica and rank here."""
    return nullcontext()


def keep_weights() -> None:
    """Have vLLM multiply by a layer's weight as it is. On CPU it packs a copy otherwise and frees the weight, and there would be
    none to load the next ones into."""
    import torch
    from vllm.model_executor.layers import utils

    def multiply_as_it_is(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = multiply_as_it_is


async def start_load_balancer(manager: Any) -> None:
    """Nothing: it comes with the servers."""
