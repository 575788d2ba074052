"""Write a task's data, and build the tiny base model where the model group asks for one.

    python -m unify_posttrain.prepare task=arithmetic                              # data and, by default, its base model
    python -m unify_posttrain.prepare task=countdown model=tiny_qwen2_countdown    # data and base model
    python -m unify_posttrain.prepare task=arithmetic model=qwen3_4b               # data only
    python -m unify_posttrain.prepare task=openr1_math                             # a public data set, from the hub or a local copy
    python -m unify_posttrain.prepare task=benchmarks 'prepare.task.sets=[aime24,math500]'
    python -m unify_posttrain.prepare task=convert prepare.task.source=rows.jsonl prepare.task.columns.prompt=question \\
        prepare.task.columns.ground_truth=answer                                   # any file, by naming its columns

All is cached: equal settings and sources do nothing, different ones rebuild. Public sets end with a report: rows read, dropped (and
why) and kept, lengths in tokens if `prepare.task.tokenizer` is given; the same stands in `manifest.json`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir, register_resolvers, run_command, threads_per_rank

logger = logging.getLogger(__name__)

register_resolvers()

Progress = Callable[[int, int, float], None]


def prepare_data(config: DictConfig) -> dict[str, Path]:
    """Write the data of `prepare.task`; returns file name -> path.

    Raises:
        ValueError: the task group has nothing to prepare, or its settings are contradictory.
    """
    from unify_posttrain.tasks import PREPARERS

    settings = _settings(config, "task")
    if settings is None:
        raise ValueError("this task group prepares no data: it reads data.train_files and data.val_files of your own")
    if settings["name"] not in PREPARERS:
        raise ValueError(f"prepare.task.name={settings['name']!r} is unknown; choose one of {', '.join(sorted(PREPARERS))}")
    return PREPARERS[settings["name"]](Path(settings["folder"]), settings)


def prepare_model(config: DictConfig, progress: Progress | None = None) -> Path | None:
    """Build the base model of `prepare.model`; None if the model group names an existing model."""
    import torch

    from unify_posttrain.tasks.tiny_model import build_base_model

    settings = _settings(config, "model")
    # Two threads on two cores spin against each other as soon as anything else runs; one core is enough for this model.
    torch.set_num_threads(threads_per_rank(1))
    return None if settings is None else build_base_model(Path(settings["folder"]), settings, progress)


def wants_base_model(config: DictConfig) -> bool:
    """Whether a base model belongs to this task: the quick start's two have tiny ones, every other task has one if it is pretrained
    on that very task; public data sets have real ones."""
    from unify_posttrain.tasks import GENERATED

    task = OmegaConf.select(config, "prepare.task.name")
    return task in GENERATED or (task is not None and task == OmegaConf.select(config, "prepare.model.pretraining.task"))


def _settings(config: DictConfig, part: str) -> dict[str, Any] | None:
    node = OmegaConf.select(config, f"prepare.{part}")
    return None if node is None else OmegaConf.to_container(node, resolve=True)  # type: ignore[return-value]


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base=None)
def _main(config: DictConfig) -> None:
    from rich.progress import Progress as Bar

    try:
        files = prepare_data(config)
        for name, path in files.items():
            logger.info("%s: %s", name, path)
        _print_reports(files)
        if not wants_base_model(config):
            return
        with Bar(transient=True) as bar:
            task = bar.add_task("pretraining the tiny base model", total=None)

            def advance(step: int, total: int, loss: float) -> None:
                bar.update(task, completed=step, total=total, description=f"pretraining the tiny base model, loss {loss:.3f}")

            model = prepare_model(config, advance)
        if model is not None:
            logger.info("base model: %s", model)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _print_reports(files: Mapping[str, Path]) -> None:
    from rich.console import Console

    from unify_posttrain.preparation.report import tables
    from unify_posttrain.preparation.store import manifest_of

    console = Console()
    for manifest in dict.fromkeys(manifest_of(path) for path in files.values()):
        for table in tables(manifest):
            console.print(table)


def main() -> None:
    """Entry point of `unify-prepare`."""
    run_command(_main)


if __name__ == "__main__":
    main()
