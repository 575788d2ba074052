"""What a run reads before it trains: tokenizer, processor and the rows of its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from verl.utils.dataset.rl_dataset import get_dataset_class
from verl.utils.fs import copy_to_local

from unify_posttrain.backend.seams import data_builders
from unify_posttrain.startup.data_checks import DataReport
from unify_posttrain.startup.dataset import FusionDataset
from unify_posttrain.startup.tokenizers import load_processor, load_tokenizer


@dataclass(frozen=True)
class RunInputs:
    """
    Attributes:
        tokenizer, processor: of the policy; the latter is None for a model of text.
        train, val: datasets.
    """

    tokenizer: Any
    processor: Any
    train: Any
    val: Any

    @classmethod
    def load(cls, config: DictConfig, checked: DataReport | None = None) -> RunInputs:
        """Read them; rows that the checks have read as this run would are not read again."""
        model = config.actor_rollout_ref.model
        folder = copy_to_local(model.path, use_shm=model.get("use_shm", False))
        tokenizer, processor = load_tokenizer(config, folder), load_processor(config, folder)
        if checked is not None and checked.datasets and get_dataset_class(config.data) is FusionDataset:
            return cls(tokenizer, processor, *checked.datasets)

        def dataset(split: str) -> Any:
            return data_builders()[0](
                config.data[f"{split}_files"],
                config.data,
                tokenizer,
                processor,
                is_train=split == "train",
                max_samples=config.data.get(f"{split}_max_samples", -1),
            )

        return cls(tokenizer, processor, dataset("train"), dataset("val"))
