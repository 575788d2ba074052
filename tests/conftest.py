"""Shared by all tests: one thread, repeatable hypothesis, two hand-made batches, composed settings.

Helpers are session fixtures that return functions: they work under any import mode, and hypothesis may call them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unify_posttrain.algorithms import Algorithm, Settings, build_algorithm
from unify_posttrain.config import compose_config

torch.set_num_threads(1)
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis_settings.load_profile("repeatable")

Batch = dict[str, Tensor]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _batch(prob: list, old: list, mask: list, advantages: list[float], **streams: list) -> Batch:
    """Streams of a batch whose row 0 is the demonstration; float64, `log_probs` carries the gradient."""
    response_mask = torch.tensor(mask)
    prefix_mask = torch.zeros_like(response_mask, dtype=torch.bool)
    prefix_mask[0] = response_mask[0].bool()
    return {
        "log_probs": torch.tensor(prob, dtype=torch.float64).log().requires_grad_(),
        "old_log_probs": torch.tensor(old, dtype=torch.float64).log(),
        "response_mask": response_mask,
        "prefix_mask": prefix_mask,
        "advantages": torch.tensor(advantages, dtype=torch.float64).unsqueeze(-1) * response_mask,
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in streams.items()},
    }


# Scores 1, 1, 0 in one group that holds the demonstration: mean 2/3, so A = 1/3, 1/3, -2/3 without deviation.
_MIXED = [1 / 3, 1 / 3, -2 / 3]


@pytest.fixture(scope="session")
def fixture_f() -> Callable[[], Batch]:
    """Fixture F of the specification, section 8: call it for fresh tensors. T = L_max = 4."""

    def build() -> Batch:
        return _batch(
            prob=[[0.5, 0.1, 0.9, 1], [0.8, 0.4, 0.5, 1], [0.6, 0.3, 1, 1]],
            old=[[0.4, 0.1, 0.9, 1], [0.5, 0.5, 0.5, 1], [0.6, 0.6, 1, 1]],
            mask=[[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]],
            advantages=_MIXED,
        )

    return build


@pytest.fixture(scope="session")
def fixture_g() -> Callable[[], Batch]:
    """Fixture G of the specification, section 8; entropies of masked positions are NaN. T = L_max = 4."""
    nan = float("nan")

    def build() -> Batch:
        return _batch(
            prob=[[0.5, 0.02, 0.9, 0.3], [0.8, 0.6, 0.4, 1], [0.7, 0.25, 0.5, 0.9]],
            old=[[0.5, 0.02, 0.9, 0.3], [0.8, 0.5, 0.4, 1], [0.9, 0.25, 0.5, 0.9]],
            mask=[[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]],
            advantages=_MIXED,
            entropys=[[0.2, 1, 0.4, 0.8], [0.5, 0.7, 0.3, nan], [1.2, 0.6, nan, nan]],
        )

    return build


@cache
def _composed(*overrides: str) -> DictConfig:
    return compose_config(overrides)


@pytest.fixture(scope="session")
def composed() -> Callable[..., DictConfig]:
    """composed("algorithm=luffy", …) -> the whole configuration (cached: do not change it)."""
    return _composed


@pytest.fixture(scope="session")
def settings() -> Callable[..., Settings]:
    """settings("algorithm=luffy", …) -> what an algorithm is built from, composed from conf/train.yaml."""

    def build(*overrides: str) -> Settings:
        actor = _composed(*overrides).actor_rollout_ref.actor
        return Settings.from_actor(OmegaConf.to_container(actor, resolve=True))

    return build


@pytest.fixture(scope="session")
def algorithm() -> Callable[..., Algorithm]:
    """algorithm("algorithm=luffy", …) -> the algorithm as the trainer and the actor build it."""

    def build(*overrides: str) -> Algorithm:
        actor = _composed(*overrides).actor_rollout_ref.actor
        return build_algorithm(OmegaConf.to_container(actor, resolve=True))

    return build
