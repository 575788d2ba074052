"""A run that is resumed or requeued goes on in its trackers, too, instead of beginning another run there.

W&B and SwanLab take an id and make the run if it does not exist: they get the run's own (`runs.lineage`). MLflow gives ids itself;
the one that it gave is kept in the run folder. A new run in a used folder, and a branch of one, have ids of their own.
TensorBoard reads whatever lies in the run's folder, ClearML goes on with the last task of the same name, both by themselves.
Trackio and vemlp_wandb have no way through verl. What the user has set in the environment stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unify_posttrain.runs.beginning import note_tracker
from unify_posttrain.runs.lineage import read_run
from unify_posttrain.runs.listeners import variables

RUN_ID = {"wandb": "WANDB_RUN_ID", "swanlab": "SWANLAB_RUN_ID", "mlflow": "MLFLOW_RUN_ID"}
RESUME = {"wandb": "WANDB_RESUME", "swanlab": "SWANLAB_RESUME"}


@contextmanager
def tracker_runs(run_dir: Path, run: str | None) -> Iterator[None]:
    """Tell the trackers, through the environment, which run this is.

    Args:
        run: the run's own id.
    """
    record = read_run(run_dir) or {}
    given = {name: record.get("trackers", {}).get(name, run if name in RESUME else None) for name in RUN_ID}
    added: dict[str, str] = {}
    for name, value in given.items():
        if value is None or RUN_ID[name] in os.environ:
            continue
        added[RUN_ID[name]] = value
        if name in RESUME and RESUME[name] not in os.environ:
            added[RESUME[name]] = "allow"
    try:
        with variables(added):
            yield
    finally:
        if "wandb" in sys.modules:  # it reads the environment once; the next job of a sweep in this process has another id
            import wandb

            wandb.finish(exit_code=0)  # as verl does when it lets go of the logger
            wandb.teardown()


def note_runs(loggers: Mapping[str, Any], run_dir: Path) -> None:
    """After verl has started its loggers: keep the id that MLflow has given."""
    if "mlflow" in loggers and RUN_ID["mlflow"] not in os.environ:
        import mlflow

        active = mlflow.active_run()
        if active is not None:
            note_tracker(run_dir, "mlflow", active.info.run_id)


def goes_on_in_mlflow() -> bool:
    """Whether MLflow is to go on with a run."""
    return RUN_ID["mlflow"] in os.environ
