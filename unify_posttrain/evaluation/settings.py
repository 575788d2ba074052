"""What an evaluation is: conf/evaluate.yaml, completed with the settings of a run, checked, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.evaluation.checkpoints import chosen_steps, load_run_config
from unify_posttrain.evaluation.engines import EngineSettings
from unify_posttrain.evaluation.models import Model, named_models
from unify_posttrain.evaluation.prompts import PromptSettings
from unify_posttrain.evaluation.protocols import Benchmark, chosen_benchmarks
from unify_posttrain.measures.statistics import Bootstrap
from unify_posttrain.rewards.protection import Protection

# Keys of conf/evaluate.yaml that are null unless set, and where they stand in the configuration of a run.
OF_THE_RUN = {
    "engine": "actor_rollout_ref.rollout.name",
    "seed": "fusion.seed",
    "max_prompt_length": "data.max_prompt_length",
    "filter_overlong_prompts": "data.filter_overlong_prompts",
    "max_response_length": "data.max_response_length",
    "max_context": "actor_rollout_ref.rollout.max_model_len",
    "apply_chat_template_kwargs": "data.apply_chat_template_kwargs",
    "custom_chat_template": "actor_rollout_ref.model.custom_chat_template",
    "dtype": "actor_rollout_ref.rollout.dtype",
    "max_batch": "actor_rollout_ref.rollout.max_num_seqs",
    "override_config": "actor_rollout_ref.model.override_config",
    "correct_threshold": "fusion.success_threshold",
}
MAY_BE_NULL = ("max_context", "custom_chat_template")
EMPTY_IF_NULL = ("apply_chat_template_kwargs", "override_config")


@dataclass(frozen=True)
class Evaluation:
    """Everything that :func:`unify_posttrain.evaluation.conduct.conduct` needs; see conf/evaluate.yaml for the meanings.

    `run` is the folder whose checkpoints `models` are, if any; `export_dtype` that of their weights; `allow_pickle` whether
    models may come as files of torch.save; `likelihood` whether the loss of the worked answers is measured, too.
    """

    output: Path
    overwrite: bool
    allow_pickle: bool
    models: tuple[Model, ...]
    run: Path | None
    export_dtype: str
    benchmarks: tuple[Benchmark, ...]
    prompts: PromptSettings
    engine: EngineSettings
    seed: int
    max_response_length: int
    threshold: float
    chunk_size: int
    threads: int
    likelihood: bool
    protection: Protection
    bootstrap: Bootstrap
    published: tuple[Mapping[str, Any], ...]

    @classmethod
    def from_config(cls, config: DictConfig) -> Evaluation:
        """Complete and check a configuration.

        Raises:
            ValueError: a contradiction, an unknown name, or something missing; names key, value and remedy.
        """
        if (config.model is None) == (config.run is None):
            raise ValueError("give either model=FOLDER (or a name on the hub) or run=FOLDER of a training, not both or neither")
        run = None if config.run is None else Path(str(config.run)).expanduser()
        trained = None if run is None else load_run_config(run)
        settings = _completed(config, trained)
        for key in ("chunk_size", "threads"):
            if config[key] < 1:
                raise ValueError(f"{key}={config[key]} must be at least 1")
        return cls(
            output=Path(str(config.output)),
            overwrite=bool(config.overwrite),
            allow_pickle=bool(config.allow_pickle),
            models=tuple(_models(config, run, trained)),
            run=run,
            export_dtype=str(config.export.dtype),
            benchmarks=tuple(chosen_benchmarks(config, trained)),
            prompts=PromptSettings(
                max_length=settings["max_prompt_length"],
                drop_overlong=settings["filter_overlong_prompts"],
                template_options=settings["apply_chat_template_kwargs"],
                template=settings["custom_chat_template"],
            ),
            engine=EngineSettings(
                name=settings["engine"],
                dtype=settings["dtype"],
                max_context=settings["max_context"] or settings["max_prompt_length"] + settings["max_response_length"],
                max_batch=settings["max_batch"],
                override_config=settings["override_config"],
                vllm=settings["vllm"],
            ),
            seed=settings["seed"],
            max_response_length=settings["max_response_length"],
            threshold=float(settings["correct_threshold"]),
            chunk_size=config.chunk_size,
            threads=config.threads,
            likelihood=bool(config.likelihood),
            protection=_protection(config, trained),
            bootstrap=Bootstrap(**_plain(config.statistics)),
            published=tuple(_plain(config.published)),
        )


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _completed(config: DictConfig, trained: DictConfig | None) -> dict[str, Any]:
    """The keys that are null unless set: from the command line, else the run, else `without_run`."""
    settings = {}
    for key, place in OF_THE_RUN.items():
        value = _plain(config[key])
        if value is None:
            value = _plain(config.without_run[key] if trained is None else OmegaConf.select(trained, place))
        if value is None and key in EMPTY_IF_NULL:
            value = {}
        if value is None and key not in MAY_BE_NULL:
            raise ValueError(f"{key} is not set, and the run's configuration has no {place}; set {key}=…")
        settings[key] = value
    settings["vllm"] = _plain(config.vllm)
    if settings["vllm"] is None:
        settings["vllm"] = {**_plain(config.without_run.vllm), **({} if trained is None else _vllm_of(trained))}
    return settings


def _protection(config: DictConfig, trained: DictConfig | None) -> Protection:
    """What is said here, else the run's, else that of evaluations without a run."""
    of_the_run = None if trained is None else OmegaConf.select(trained, "reward.protection", default=None)
    return Protection.from_node(
        {**_plain(config.without_run.protection), **(_plain(of_the_run) or {}), **(_plain(config.protection) or {})}
    )


def _vllm_of(trained: DictConfig) -> dict[str, Any]:
    """What a run tells about running its model: how it is split, and changes to its configuration (rope, context)."""
    rollout = trained.actor_rollout_ref.rollout
    overrides = _plain(OmegaConf.select(rollout, "engine_kwargs.vllm.hf_overrides"))
    size = {"tensor_parallel_size": rollout.tensor_model_parallel_size, "enforce_eager": rollout.enforce_eager}
    return {**size, "hf_overrides": overrides} if overrides else size


def _models(config: DictConfig, run: Path | None, trained: DictConfig | None) -> list[Model]:
    if run is None or trained is None:
        return named_models(_plain(config.model))
    steps = chosen_steps(run, _plain(config.steps))
    base = str(trained.actor_rollout_ref.model.path)
    return [Model(f"step_{step}", str(run) if step else base, step) for step in steps]
