"""What the doctor examines: a machine, or a machine and a run on it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.rollout.vllm_cpu_checks import declares_ranks
from unify_posttrain.shapes import model_shape
from unify_posttrain.startup.memory_plan import declared_shape


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        config: the composed configuration; None: the machine alone.
        before_ray: the caller starts a Ray cluster of its own afterwards.
    """

    config: DictConfig | None = None
    before_ray: bool = False

    def select(self, key: str, default: object = None) -> object:
        return default if self.config is None else OmegaConf.select(self.config, key, default=default)

    @property
    def gpus_needed(self) -> int | None:
        """Per node; 0 for configurations that declare their ranks to Ray or use the engine of CPUs."""
        if self.config is None:
            return None
        if self.select("actor_rollout_ref.rollout.name") == "hf" or declares_ranks(self.config):
            return 0
        return int(self.config.trainer.n_gpus_per_node)

    @property
    def packs(self) -> bool | None:
        """Whether flash attention is needed: for packed rows, and by verl unless another attention is named."""
        if self.config is None:
            return None
        attention = self.select("actor_rollout_ref.model.override_config.attn_implementation", "flash_attention_2")
        return bool(self.gpus_needed) and (
            bool(self.select("actor_rollout_ref.model.use_remove_padding")) or "flash" in str(attention)
        )

    @property
    def run_dir(self) -> Path:
        default = Path(os.environ.get("UNIFY_HOME") or "outputs") / "runs"
        return Path(str(self.select("trainer.run_dir", default)))

    @property
    def extras(self) -> tuple[str, ...]:
        """Of pyproject.toml; flash attention has a check of its own. An environment's packages are the extra of its name."""
        wanted = ("vllm",) if self.gpus_needed and self.select("actor_rollout_ref.rollout.name") == "vllm" else ()
        if self.config is None:
            return wanted
        shape = model_shape(str(self.select("actor_rollout_ref.model.path")), declared_shape(self.config))
        environment = self.select("environment.name")
        sees = () if shape is None or shape.sight is None else ("vl",)
        return (*wanted, *sees, *(() if environment is None else (str(environment),)))
