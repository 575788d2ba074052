"""Shared by all tests: no GPU, one thread, repeatable hypothesis, hand-made and random batches, composed settings.

Helpers are session fixtures that return functions: they work under any import mode, and hypothesis may call them.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tests.composing import remember
from tests.devices import hide_gpus
from tests.rewards.processes import workers_of_this_process
from unify_posttrain.algorithms import Algorithm, Settings, build_algorithm
from unify_posttrain.config import compose_config
from unify_posttrain.objective import Term, compute_loss, count_members

gc.set_threshold(50_000)  # instead of 700: composed configurations are many small objects, hardly any of them in cycles
hide_gpus()  # importing torch does not look for them, verl does when it is imported
torch.set_num_threads(1)
remember()  # some tests compose while they are collected
hypothesis_settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis_settings.load_profile("repeatable")

Batch = dict[str, Tensor]


def pytest_collection_finish() -> None:
    """Thousands of collected tests and the imports of verl would be searched for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of `make test`; other ways to distribute are xdist's."""
    if config.getoption("dist") != "loadfile":
        return None
    from tests.scheduling import OneEndToEnd

    return OneEndToEnd(config, log)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Code under test leaves variables to its own process; commands that later tests start would inherit them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def the_environment_is_as_before_the_module() -> Iterator[None]:
    """What a module's own fixtures start, such as Ray, leaves some, too."""
    with environment_kept():
        yield


@pytest.fixture(autouse=True)
def the_environment_is_as_it_was() -> Iterator[None]:
    with environment_kept():
        yield


@pytest.fixture(scope="module", autouse=True)
def no_worker_outlives_its_tests() -> Iterator[None]:
    """Pools are kept for the next call; two processes for every pool of every module would fill the machine.

    What is there before a module's tests is searched for garbage no more: verl asks for a search several times in every update, and
    after thousands of tests one would take a second.
    """
    gc.freeze()
    yield
    for name, kept in (("unify_posttrain.rewards.math", "pools"), ("unify_posttrain.rewards.calling", "gatherers")):
        if name in sys.modules:
            getattr(sys.modules[name], kept).close()
    if workers_of_this_process():
        gc.collect()
    assert workers_of_this_process() == set(), "a pool that the tests of this module made is neither closed nor garbage"


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


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., Batch]:
    """random_batch(seed, rows, width): every stream, rows of every length (0 too) and every kind, some of weight 0."""

    def build(seed: int, rows: int, width: int, dtype: torch.dtype = torch.float64) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

        positions = torch.arange(width)
        ends = torch.randint(0, width + 1, (rows, 1), generator=generator)
        hints = torch.randint(0, width + 1, (rows, 1), generator=generator)
        kind = torch.randint(0, 4, (rows, 1), generator=generator)  # 0, 1 rollout; 2 demonstration; 3 hint, then own tokens
        inside = positions < ends
        is_hint = inside & (positions < hints) & (kind == 3)
        table = torch.tensor([0.0, 0.125, 0.5, 1.0], dtype=torch.float64)
        streams = {
            "log_probs": uniform(rows, width, low=0.01).log(),
            "old_log_probs": uniform(rows, width, low=0.01).log(),
            "ref_log_prob": uniform(rows, width, low=0.01).log(),
            "entropys": uniform(rows, width, high=3.0),
            "advantages": uniform(rows, width, low=-2.0, high=2.0),
            "uniforms": uniform(rows, width),
            "target_probs": uniform(rows, width, low=0.01),
            "rl_weight": table[torch.randint(0, 4, (rows,), generator=generator)],
            "off_weight": table[torch.randint(0, 4, (rows,), generator=generator)],
            "sft_weight": table[torch.randint(0, 4, (rows,), generator=generator)],
            "scores": uniform(rows, low=-1.0),
            "batch_entropy": uniform(1, high=3.0).expand(rows),
        }
        solved = (streams["scores"] >= 0).double()
        return {
            **{name: value.to(dtype) for name, value in {**streams, "solved": solved, "unsolved": 1 - solved}.items()},
            "response_mask": (inside & ~is_hint).long(),
            "prefix_mask": is_hint | (inside & (kind == 2)),
        }

    return build


@pytest.fixture(scope="session")
def loss_and_gradient() -> Callable[..., tuple[Tensor, Tensor]]:
    """loss_and_gradient(terms, batch, parts, ranks, scales): global loss and its (B, T) gradient on `log_probs`.

    `parts` are the rows of each micro-batch (default: one). Part i belongs to rank i % ranks: counts are added over
    ranks, each loss is multiplied by the number of ranks and gradients are averaged, as under FSDP.
    """

    def run(
        terms: Sequence[Term],
        batch: Batch,
        parts: Sequence[Tensor] | None = None,
        ranks: int = 1,
        scales: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        leaf = batch["log_probs"].detach().clone().requires_grad_()
        batch = {**batch, "log_probs": leaf}
        parts = [torch.arange(len(leaf))] if parts is None else parts
        pieces = [{name: value[part] for name, value in batch.items()} for part in parts]
        counted = [count_members(terms, piece) for piece in pieces]
        counts = {
            key: type(first)(*(sum(piece[key][i] for piece in counted) for i in range(2))) for key, first in counted[0].items()
        }
        total, gradients = torch.zeros((), dtype=leaf.dtype), [torch.zeros_like(leaf) for _ in range(ranks)]
        for number, piece in enumerate(pieces):
            loss, _ = compute_loss(terms, piece, counts, scales)
            total = total + loss.detach()
            gradients[number % ranks] += torch.autograd.grad(loss * ranks, leaf)[0]
        return total, sum(gradients) / ranks

    return run


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a smallest Qwen2.5-VL with its processor."""
    from tests.tiny_vision import SETTINGS
    from unify_posttrain.tasks.tiny_model import build_base_model

    return build_base_model(tmp_path_factory.mktemp("seeing") / "tiny_qwen2_5_vl", SETTINGS)


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
