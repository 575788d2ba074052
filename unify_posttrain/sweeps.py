"""Names of the jobs of a sweep (`-m`, Hydra's multirun), so that no two of them write into the same folder.

A job is known by its overrides: starting the same sweep again gives every job its own folder back, whatever its place in the list,
and a sweep that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.redaction import redacted_overrides

# What may change when a sweep is started again without making it another one.
NOT_IN_NAME = (
    "dry_run",
    "hardware",
    "trainer.experiment_name",
    "trainer.logger",
    "trainer.progress",
    "trainer.resume_mode",
    "trainer.run_dir",
)
FOLDERS = ("trainer.run_dir", "trainer.default_local_dir", "trainer.validation_data_dir", "trainer.rollout_data_dir")
LABEL_LENGTH = 80  # characters; a path's part may have 255 bytes
DIGEST_LENGTH = 8  # hexadecimal digits: two of a thousand jobs collide with probability 1e-4


def job_label(overrides: Sequence[str]) -> str:
    """A folder name for the job with these overrides: readable, and by its digest unlike any other's.

    >>> job_label(["algorithm=hpt", "actor_rollout_ref.actor.optim.lr=1e-5", "+dry_run=true"])
    'algorithm_hpt-lr_1e-5-88c68f0b'
    """
    own = sorted(each for each in overrides if each.lstrip("+~").partition("=")[0] not in NOT_IN_NAME)
    shown = redacted_overrides(own)  # a name is seen by whoever lists the folder; the digest still tells two such jobs apart
    parts = sorted((each.lstrip("+~").partition("=") for each in shown), key=lambda part: ("." in part[0], part))  # groups first
    readable = "-".join(f"{key.rpartition('.')[2]}_{value}" for key, _, value in parts)
    safe = re.sub(r"[^\w.+-]+", "_", readable)[:LABEL_LENGTH]  # no comma or equals sign: Hydra would read them on a command line
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:DIGEST_LENGTH]
    return f"{safe}-{digest}"


def current_job() -> str | None:
    """The label of the sweep's job that runs in this process; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return job_label(list(HydraConfig.get().overrides.task))


def sweep_job(name: str) -> str:
    """Resolver `${sweep_job:NAME}`: the name itself, and in a sweep the name with the job's label (once)."""
    label = current_job()
    return name if label is None or str(name).endswith(label) else f"{name}-{label}"


def check_sweep(config: DictConfig) -> None:
    """Refuse a folder that the jobs of a sweep would share.

    Raises:
        ValueError: names the key, and how to make it one per job.
    """
    label = current_job()
    if label is None:
        return
    for key in FOLDERS:
        folder = OmegaConf.select(config, key)
        if folder and label not in str(folder):
            raise ValueError(
                f"{key}={folder} would be shared by all jobs of the sweep; leave it out, or let its name hold the job: "
                f"{key}='${{sweep_job:{folder}}}'"
            )
