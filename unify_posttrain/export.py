"""Export a checkpoint of a run to a folder that transformers and vLLM load.

    python -m unify_posttrain.export outputs/runs/hpt                      # the latest one, to outputs/runs/hpt/export/step_N
    python -m unify_posttrain.export outputs/runs/hpt step=100 dtype=bfloat16 output=hpt-100
    HF_TOKEN=… python -m unify_posttrain.export run=outputs/runs/hpt push_to_hub=me/hpt-7b

FSDP shards are merged (on CPU; memory for the model in its own precision), full weights copied; the result is loaded once to see
that no weight is missing and all are numbers. Of the shards, which are pickles, only tensors are read. Settings: conf/export.yaml.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from omegaconf import DictConfig

from unify_posttrain.config import conf_dir, register_resolvers, run_command

logger = logging.getLogger(__name__)

register_resolvers()

# Hydra's options that take a value (python -m unify_posttrain.export --help)
HYDRA_OPTIONS = (
    "--cfg",
    "-c",
    "--package",
    "-p",
    "--info",
    "-i",
    "--config-path",
    "-cp",
    "--config-name",
    "-cn",
    "--config-dir",
    "-cd",
)


def with_run_key(arguments: Sequence[str]) -> list[str]:
    """The arguments with a run folder that stands alone written as `run=…`, quoted for Hydra."""
    named = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        free = not argument.startswith("-") and before not in HYDRA_OPTIONS
        alone = free and ("=" not in argument or Path(argument).is_dir())
        escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
        named.append(f"run='{escaped}'" if alone else argument)
    return named


@hydra.main(config_path=str(conf_dir()), config_name="export", version_base=None)
def _main(config: DictConfig) -> None:
    from unify_posttrain.evaluation.exporting import export, push
    from unify_posttrain.output import write

    try:
        if config.run is None:
            raise ValueError("run is not set; give the folder of a run, e.g. python -m unify_posttrain.export outputs/runs/hpt")
        output = None if config.output is None else Path(str(config.output))
        folder = export(Path(str(config.run)), config.step, output, str(config.dtype), bool(config.overwrite))
        write(str(folder))
        if config.push_to_hub is not None:
            write(push(folder, str(config.push_to_hub), bool(config.private)))
    except ValueError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Entry point of `unify-export`."""
    sys.argv[1:] = with_run_key(sys.argv[1:])
    run_command(_main, "export")


if __name__ == "__main__":
    main()
