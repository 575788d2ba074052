"""verl 0.7.1 prepares every model with `apply_monkey_patch`, which pythia passes only with what conf/model/pythia_1b.yaml adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils.model import update_model_config

from tests.rewards.tiny_classifier import build_pythia
from unify_posttrain.config import compose_config


def test_pythia_passes_verls_preparation(tmp_path: Path) -> None:
    folder = build_pythia(tmp_path, head=False)
    with pytest.raises(AttributeError, match="text_config"):
        apply_monkey_patch(AutoModelForCausalLM.from_pretrained(folder), use_remove_padding=False)
    model = compose_config(["algorithm=online_sft", "model=pythia_1b", "task=tldr"]).actor_rollout_ref.model
    config = AutoConfig.from_pretrained(folder)
    update_model_config(config, OmegaConf.to_container(model.override_config))
    apply_monkey_patch(AutoModelForCausalLM.from_pretrained(folder, config=config), use_remove_padding=model.use_remove_padding)
