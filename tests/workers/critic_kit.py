"""A FusionCritic (or verl's critic) on a tiny random model in one process, and batches to update it with."""

from __future__ import annotations

from functools import cache

import torch
from omegaconf import OmegaConf
from transformers import Qwen2Config, Qwen2ForTokenClassification
from verl import DataProto
from verl.workers.config import FSDPCriticConfig

from unify_posttrain.config import compose_config

from .actor_kit import RESPONSE, VOCABULARY, built, make_batch, start_group

FOLDER_FREE = (
    "algorithm=ppo",
    "actor_rollout_ref.model.path=unused",
    "data.max_prompt_length=6",
    "data.max_response_length=10",
    "data.train_batch_size=12",
    "actor_rollout_ref.rollout.n=1",
    "critic.ppo_mini_batch_size=12",
    "critic.ppo_micro_batch_size_per_gpu=12",
    "critic.grad_clip=1e9",
)


def recording(critic_class: type, module: str = "") -> type:
    """The critic, keeping the gradient of every optimizer step instead of taking it: each is a function of the batch alone."""

    class Recording(critic_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gradients: list[dict[str, torch.Tensor]] = []

        def _optimizer_step(self):
            def full(gradient):
                return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()

            owner = self.engine.module if module else self.critic_module
            named = {name: full(p.grad) for name, p in owner.named_parameters() if p.grad is not None}
            self.gradients.append(named)
            return torch.sqrt(sum(g.double().square().sum() for g in named.values()))

    return Recording


def make_value_model() -> Qwen2ForTokenClassification:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, max_position_embeddings=64, tie_word_embeddings=False, num_labels=1, classifier_dropout=0.0,
    )  # fmt: skip
    return Qwen2ForTokenClassification(config).float()


@cache
def composed_critic(*overrides: str) -> dict:
    return OmegaConf.to_container(compose_config([*FOLDER_FREE, *overrides]).critic, resolve=True)


def critic_config(*overrides: str) -> FSDPCriticConfig:
    """`critic` as the worker gets it. Its model description, which would be read from disk, is left out."""
    return built({**composed_critic(*overrides), "model_config": {}})


def make_critic(*overrides: str, critic_class: type | None = None, module=None, record: bool = True):
    start_group()
    if critic_class is None:
        from unify_posttrain.workers.fusion_critic import FusionCritic as critic_class  # verl 0.7.1 has what it extends
    module = make_value_model() if module is None else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    return (recording(critic_class) if record else critic_class)(critic_config(*overrides), module, optimizer)


def make_value_batch(rows: int, seed: int = 0) -> DataProto:
    """Rollouts of 1 to T tokens with old values and returns; about half of the values may not move further by the clip."""
    batch = make_batch(rows, demonstrations=0, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    mask = batch.batch["response_mask"]
    batch.batch["values"] = 0.3 * torch.randn(rows, RESPONSE, generator=generator) * mask
    batch.batch["returns"] = torch.randn(rows, RESPONSE, generator=generator) * mask
    return batch
