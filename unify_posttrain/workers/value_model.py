"""The critic's model."""

from __future__ import annotations

import torch
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel


def load_value_model(
    local_path: str, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool, *, seed: int
) -> PreTrainedModel:
    """A language model whose head is replaced by one value per token, drawn from `seed`.

    verl's own loader asks for flash attention whatever the configuration says; this one keeps the attention of `model_config`,
    which verl has set from `critic.model.override_config.attn_implementation`.

    Raises:
        ValueError: transformers has no token-classification model for this architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )
