"""What an evaluation is: conf/evaluate.yaml, completed with the settings of a run, checked, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.evaluation.checkpoints import chosen_steps, load_run_config
from unify_posttrain.evaluation.engines import EngineSettings
from unify_posttrain.evaluation.models import Model, named_models, safe_name
from unify_posttrain.evaluation.prompts import PromptSettings
from unify_posttrain.measures.statistics import Bootstrap
from unify_posttrain.rewards.protection import Protection

VALIDATION = "validation"  # name of the benchmark that a run's own validation files are
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
SAMPLING = ("n", "temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its protocol.

    Attributes:
        name: in tables and file names.
        files: parquet files.
        n, temperature, top_p, top_k: of its samples.
        group: benchmarks whose mean is shown.
        reward: node {path, name, reward_kwargs} of the reward function.
        answers: node {path, name} of the function that finds the answer where the reward gives none.
        max_samples, sample_seed: choice of problems as training's `data.val_max_samples`; None: all.
    """

    name: str
    files: tuple[Path, ...]
    n: int
    temperature: float
    top_p: float
    top_k: int
    group: str
    reward: Mapping[str, Any]
    answers: Mapping[str, Any]
    max_samples: int | None = None
    sample_seed: int | None = None

    def __post_init__(self) -> None:
        where = f"benchmark {self.name}"
        if self.n < 1:
            raise ValueError(f"{where}: n={self.n} must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{where}: temperature={self.temperature} must be >= 0 and top_p={self.top_p} in (0, 1]")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"{where}: n={self.n} samples at temperature=0 are all the same; set n=1 or a temperature above 0")


@dataclass(frozen=True)
class Evaluation:
    """Everything that :func:`unify_posttrain.evaluation.conduct.conduct` needs; see conf/evaluate.yaml for the meanings.

    `run` is the folder whose checkpoints `models` are, if any; `export_dtype` that of their weights; `allow_pickle` whether
    models may come as files of torch.save.
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
            benchmarks=tuple(_benchmarks(config, trained)),
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


def _benchmarks(config: DictConfig, trained: DictConfig | None) -> list[Benchmark]:
    wanted = _plain(config.benchmarks)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not wanted:
        if trained is None:
            known = ", ".join(config.define.benchmarks)
            raise ValueError(f"benchmarks={wanted}: give names ({known}) or parquet files, e.g. benchmarks=[math500]")
        wanted = [VALIDATION]
    found = [_benchmark(config, str(name), trained) for name in wanted]
    names = [benchmark.name for benchmark in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"benchmarks={list(wanted)}: {repeated[0]} is there twice; name each once, and rename files of equal names"
        )
    return found


def _benchmark(config: DictConfig, name: str, trained: DictConfig | None) -> Benchmark:
    if name in config.define.benchmarks:
        node = _plain(config.define.benchmarks[name])
    elif name == VALIDATION and trained is not None:
        node = _validation(config, trained)
    elif name.endswith(".parquet"):
        node = {**_plain(config.file), "files": [name]}
        name = safe_name(Path(name).stem)
    else:
        known = ", ".join([*config.define.benchmarks, *([] if trained is None else [VALIDATION])])
        raise ValueError(f"benchmarks: {name!r} is unknown; choose among {known}, or give a .parquet file")
    if node["reward"] is None and trained is not None:
        node["reward"] = _plain(trained.reward.custom_reward_function)
    if node["reward"] is None:
        raise ValueError(
            f"benchmark {name} has no reward function; set file.reward={{path: …, name: …}} (as in define.rewards), or give "
            "run=FOLDER"
        )
    given = {key: config[key] for key in SAMPLING if config[key] is not None}
    return Benchmark(name=safe_name(name), **{**node, **given, "files": tuple(Path(file) for file in node["files"])})


def _validation(config: DictConfig, trained: DictConfig) -> dict[str, Any]:
    """A run's own validation: its files, its sampling, its reward."""
    files, values = _plain(trained.data.val_files), trained.actor_rollout_ref.rollout.val_kwargs
    reward = _plain(trained.reward.custom_reward_function)
    alike = (
        benchmark.answers
        for benchmark in config.define.benchmarks.values()
        if (benchmark.reward.path, benchmark.reward.name) == (reward.get("path"), reward.get("name"))
    )
    most = OmegaConf.select(trained, "data.val_max_samples")
    return {
        "files": [files] if isinstance(files, str) else files,
        **{key: values[key] for key in SAMPLING},
        "group": VALIDATION,
        "reward": reward,
        "answers": _plain(next(alike, config.file.answers)),
        "max_samples": None if most is None or most < 0 else most,
        "sample_seed": trained.data.seed if OmegaConf.select(trained, "data.shuffle") else None,
    }
