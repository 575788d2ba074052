"""The driver's tokenizer and processor, with the prompt template that verl's workers use.

verl gives actor_rollout_ref.model.custom_chat_template to its agent loops and actor workers, but not to what runs on the driver:
the dataset (length filter) and our demonstrations. Prompts must be rendered alike everywhere, so the driver gets it here. A base
model without a template takes prompts as they are with

    actor_rollout_ref.model.custom_chat_template="{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"

as conf/task/tldr.yaml does. Saved checkpoints carry the template in their tokenizer.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from transformers import AutoConfig, AutoProcessor
from verl.utils import hf_processor, hf_tokenizer
from verl.utils.fs import copy_to_local

from unify_posttrain.rollout.pictures import kept_pixels
from unify_posttrain.startup.engine_pictures import check_engine
from unify_posttrain.tasks.environment import check_processor, image_limits
from unify_posttrain.tasks.episodes import NODE, episode_node
from unify_posttrain.untrusted.remote_code import local_documents, refuse_code

PATH = "actor_rollout_ref.model.path"


def load_tokenizer(config: DictConfig, folder: str | None = None) -> Any:
    """Tokenizer of the policy with the template of the run.

    Args:
        config: the whole configuration.
        folder: local copy of actor_rollout_ref.model.path.

    Raises:
        ValueError: neither the tokenizer nor the configuration has a template, or the folder asks for code that is not trusted.
    """
    path, trust = folder or copy_to_local(config.actor_rollout_ref.model.path), config.actor_rollout_ref.model.trust_remote_code
    documents = None if trust else local_documents(str(path), download=True)
    if documents is not None:
        refuse_code(documents, f"{PATH}={path}", "actor_rollout_ref.model.trust_remote_code")
    tokenizer = hf_tokenizer(path, trust_remote_code=trust)
    template = config.actor_rollout_ref.model.get("custom_chat_template")
    if template is not None:
        tokenizer.chat_template = template
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {config.actor_rollout_ref.model.path} has no chat template; set "
            "actor_rollout_ref.model.custom_chat_template (conf/task/tldr.yaml has one that shows prompts as they are), or add one "
            "to its tokenizer_config.json"
        )
    return tokenizer


def load_processor(config: DictConfig, folder: str) -> Any:
    """Processor of a multimodal policy with the template of the run; None for a text model.

    Raises:
        ValueError: the model sees, and its processor cannot be made (verl would train it on text alone), or would change the
            images of an environment, or the engine would see other pictures; or the model sees nothing of what an environment
            shows.
    """
    trust = config.actor_rollout_ref.model.trust_remote_code
    node = episode_node(config)
    if not sees(folder, trust):
        if node is not None and image_limits(node).images:
            raise ValueError(
                f"{PATH}={folder}: {NODE}.name={node['name']} answers with images, and the model sees none; take a multimodal "
                "model, e.g. model=qwen2_5_vl_7b"
            )
        return None
    processor = hf_processor(folder, trust_remote_code=trust, use_fast=True)
    if processor is None:
        raise ValueError(
            f"{PATH}={folder}: the model sees pictures, and its processor cannot be made ({_why(folder, trust)}); copy the whole "
            "folder, preprocessor_config.json included, and install the extra `vl` (make install)"
        )
    template = config.actor_rollout_ref.model.get("custom_chat_template")
    if template is not None:
        processor.chat_template = template
    check_engine(config, processor, folder)
    if node is not None:
        check_processor(node, *kept_pixels(processor))
    return processor


def sees(folder: str, trust_remote_code: bool = False) -> bool:
    """Whether a model's configuration has a part that sees."""
    described = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return getattr(described, "vision_config", None) is not None


def _why(folder: str, trust_remote_code: bool) -> str:
    """What verl's loader keeps to itself."""
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code, use_fast=True)
    except Exception as error:  # transformers, torchvision and image libraries raise whatever they do
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"verl does not know processors of the class {type(processor).__name__}"
