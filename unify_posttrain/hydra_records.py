"""What Hydra leaves beside a run, without secrets: `.hydra/{config,hydra,overrides}.yaml` of a job, `multirun.yaml` of a sweep.

Hydra writes them itself before any code of a command runs, so conf/ switches that off (`hydra.output_subdir: null`) and names this
callback instead. It runs in the process of the job, also where a launcher starts that on another machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.output import guard_logs
from unify_posttrain.redaction import redacted, redacted_overrides, remember

SUBFOLDER = ".hydra"
MULTIRUN = "multirun.yaml"


class RedactingOmegaConf(OmegaConf):
    """OmegaConf for Hydra's sweeper, whose only file it writes."""

    @staticmethod
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        OmegaConf.save(safe_copy(config), f, resolve=resolve)


class RedactedRecords(Callback):
    """Named by `hydra.callbacks.records` of every command that keeps such files."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        basic_sweeper.OmegaConf = RedactingOmegaConf

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        basic_sweeper.OmegaConf = OmegaConf
        file = Path(config.hydra.sweep.dir) / MULTIRUN
        if file.is_file():  # another sweeper may have written it
            OmegaConf.save(safe_copy(OmegaConf.load(file)), file)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        guard_logs()  # a launcher may have started this process without the command's own beginning
        remember(OmegaConf.to_container(config, resolve=False))
        folder = Path(config.hydra.runtime.output_dir) / SUBFOLDER
        folder.mkdir(parents=True, exist_ok=True)
        task = config.copy()
        OmegaConf.set_struct(task, False)
        OmegaConf.set_readonly(task, False)
        task.pop("hydra")
        hydra = OmegaConf.create({"hydra": OmegaConf.to_container(HydraConfig.instance().cfg.hydra, resolve=False)})
        OmegaConf.save(safe_copy(task), folder / "config.yaml")
        OmegaConf.save(safe_copy(hydra), folder / "hydra.yaml")
        overrides = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)  # ${oc.env:…} names a place, not its value
        OmegaConf.save(OmegaConf.create(redacted_overrides(overrides)), folder / "overrides.yaml")


def safe_copy(config: Any) -> DictConfig:
    """A configuration without its secrets; interpolations stay as they are."""
    node = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    safe = redacted(node)
    overrides = safe.get("hydra", {}).get("overrides", {})
    for part, arguments in overrides.items():
        overrides[part] = redacted_overrides(node["hydra"]["overrides"][part]) if isinstance(arguments, list) else arguments
    return OmegaConf.create(safe)
