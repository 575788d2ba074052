"""verl's loggers (`trainer.logger`): what each needs, checked before Ray starts, and where each writes: the folder of the run.

`console` and `file` (metrics.jsonl) are verl's own; the others are packages that verl imports when they are asked for. Their keys
come from the environment alone. W&B without a network: WANDB_MODE=offline, and later `wandb sync RUN/wandb/offline-run-*`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import urlsplit

from omegaconf import DictConfig

from unify_posttrain.runs.listeners import variables

WANDB_HOST = "https://api.wandb.ai"
WITHOUT_KEY = ("offline", "disabled", "dryrun")  # values of WANDB_MODE


@dataclass(frozen=True)
class Logger:
    """What a logger needs: a module (with the package that brings it), and variables of the environment."""

    module: str | None = None
    package: str | None = None
    variables: tuple[str, ...] = ()


LOGGERS = {
    "console": Logger(),
    "file": Logger(),
    "tensorboard": Logger("tensorboard", "tensorboard"),
    "wandb": Logger("wandb", "wandb"),
    "mlflow": Logger("mlflow", "mlflow"),
    "swanlab": Logger("swanlab", "swanlab"),
    "clearml": Logger("clearml", "clearml"),
    "trackio": Logger("trackio", "trackio"),
    "vemlp_wandb": Logger(
        "volcengine_ml_platform",
        "volcengine-ml-platform",
        ("VOLC_ACCESS_KEY_ID", "VOLC_SECRET_ACCESS_KEY", "MLP_TRACKING_REGION"),
    ),
}


def chosen_loggers(config: DictConfig) -> list[str]:
    """`trainer.logger` as a list; verl takes a single name as well."""
    given = config.trainer.logger
    return [given] if isinstance(given, str) else list(given or ())


def check_loggers(config: DictConfig, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse a logger that cannot start. Imports none of them, and reads of a key only whether it is there.

    Raises:
        ValueError: an unknown name, a package that is not installed, or a key that is not in the environment; with the remedy.
    """
    for name in chosen_loggers(config):
        if name not in LOGGERS:
            raise ValueError(f"trainer.logger: {name!r} is unknown; choose among {', '.join(LOGGERS)}")
        needs = LOGGERS[name]
        if needs.module is not None and find_spec(needs.module) is None:
            raise ValueError(
                f"trainer.logger has {name}, but {needs.package} is not installed: pip install {needs.package}, or leave it out: "
                f"trainer.logger={_without(config, name)}"
            )
        absent = [each for each in needs.variables if not environment.get(each)]
        if absent:
            raise ValueError(f"trainer.logger has {name}, but {' and '.join(absent)} is not in the environment; export it")
        if name == "wandb" and not _wandb_may_start(environment):
            raise ValueError(
                "trainer.logger has wandb, but WANDB_API_KEY is not in the environment; export it, run `wandb login`, set "
                f"WANDB_MODE=offline to upload later, or leave it out: trainer.logger={_without(config, name)}"
            )


def _without(config: DictConfig, name: str) -> str:
    return f"[{','.join(each for each in chosen_loggers(config) if each != name)}]"


def _wandb_may_start(environment: Mapping[str, str]) -> bool:
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_MODE") in WITHOUT_KEY:
        return True
    host = urlsplit(environment.get("WANDB_BASE_URL", WANDB_HOST)).hostname
    file = Path(environment.get("NETRC", "~/.netrc")).expanduser()
    try:
        return host in netrc(str(file)).hosts  # where `wandb login` keeps it
    except (OSError, NetrcParseError):
        return False


@contextmanager
def logger_folders(config: DictConfig) -> Iterator[None]:
    """Let every logger write into the run's folder while the run lasts; what the user has set in the environment stays.

    The run may be one of several in this process (a sweep), so the environment is put back.
    """
    run_dir = Path(config.trainer.run_dir).resolve()
    folders = {
        "VERL_FILE_LOGGER_PATH": run_dir / "metrics.jsonl",
        "TENSORBOARD_DIR": run_dir / "tensorboard",
        "WANDB_DIR": run_dir,  # wandb makes a folder `wandb` in it
        "SWANLAB_LOG_DIR": run_dir / "swanlab",
        "MLFLOW_TRACKING_URI": f"sqlite:///{run_dir / 'mlflow.db'}",
    }
    with variables({name: str(place) for name, place in folders.items() if name not in os.environ}):
        yield
