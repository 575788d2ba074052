"""Evaluate models, or the checkpoints of a run, on benchmarks.

    python -m unify_posttrain.evaluate model=Qwen/Qwen2.5-Math-7B benchmarks=[aime24,math500]
    python -m unify_posttrain.evaluate model=[base,outputs/runs/hpt/export/step_500] benchmarks=[amc] name=hpt   # paired tests
    python -m unify_posttrain.evaluate run=outputs/runs/hpt                     # its checkpoints, validation files: a curve
    python -m unify_posttrain.evaluate run=outputs/runs/hpt steps=[0,500] benchmarks=[aime24,outputs/data/my.parquet]
    python -m unify_posttrain.evaluate --cfg job                                     # every setting; meanings in conf/evaluate.yaml

Prompts, seeds and the reward function are the trainer's: with its sampling settings the accuracy is the trainer's own. Stopped at
any time, the same command goes on where it was. Results: results.json, results.md, figures, and samples.html, in which samples can
be looked through with the pictures that they show, in the output folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir, register_resolvers, run_command
from unify_posttrain.devices import set_openmp
from unify_posttrain.output import write
from unify_posttrain.runs.files import write_text

if TYPE_CHECKING:
    from unify_posttrain.evaluation.settings import Evaluation

CONFIG = "evaluate"


def register_config() -> None:
    """Give Hydra the primary file alone. Beside the folder conf/model/, Hydra would take `model=…` for a choice of that group."""
    register_resolvers()
    ConfigStore.instance().store(name=CONFIG, node=OmegaConf.load(conf_dir() / f"{CONFIG}.yaml"))


register_config()


def compose_evaluation(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration as the command line would compose it, e.g. `compose_evaluation(["model=folder", "benchmarks=[amc]"])`."""
    if GlobalHydra.instance().is_initialized():
        GlobalHydra.instance().clear()
    with hydra.initialize(config_path=None, version_base=None):
        return hydra.compose(config_name=CONFIG, overrides=list(overrides))


@hydra.main(config_path=None, config_name=CONFIG, version_base=None)
def _main(config: DictConfig) -> None:
    try:
        set_openmp(config.openmp)
    except ValueError as error:
        sys.exit(f"error: {error}")
    from unify_posttrain.evaluation.conduct import conduct
    from unify_posttrain.evaluation.settings import Evaluation
    from unify_posttrain.evaluation.tables import show

    try:
        evaluation = Evaluation.from_config(config)
        results = conduct(evaluation)
        page = write_page(evaluation)
    except ValueError as error:
        sys.exit(f"error: {error}")
    show(results, evaluation.output)
    write(f"samples to look through: {page}")


def write_page(evaluation: Evaluation) -> Path:
    """Write the page of an evaluation's samples, with what its problems ask.

    Args:
        evaluation: that was conducted; pictures are opened beside its data files and in the corpora that it searched.
    """
    from unify_posttrain.evaluation.benchmarks import read_problems
    from unify_posttrain.reporting.evaluation_page import NAME, build_evaluation_page
    from unify_posttrain.reporting.evaluations import Question

    questions, folders = {}, []
    for benchmark in evaluation.benchmarks:
        folders += [file.parent for file in benchmark.files]
        retriever = (benchmark.environment or {}).get("retriever") or {}
        folders += [Path(retriever["corpus"])] if retriever.get("corpus") else []
        for problem in read_problems(benchmark.files, benchmark.max_samples, benchmark.sample_seed, benchmark.sources):
            asked = Question(str(problem.messages[-1]["content"]), str(problem.ground_truth), problem.pictures)
            questions[benchmark.name, problem.row] = asked
    path = evaluation.output / NAME
    write_text(path, build_evaluation_page(evaluation.output, questions, folders))
    return path


def main() -> None:
    """Entry point of `unify-evaluate`."""
    run_command(_main, CONFIG)


if __name__ == "__main__":
    main()
