"""Many short trainings of all algorithms, and one honest table of them: means over seeds with confidence intervals.

    python -m unify_posttrain.study                                                # everything in conf/study.yaml; hours
    python -m unify_posttrain.study tasks=[arithmetic] algorithms=[hpt,grpo] seeds=[0]   # a part now, the rest later
    python -m unify_posttrain.study algorithms=[]                                  # only write the results of what is there
    python -m unify_posttrain.study --cfg job                                      # every setting, with its meaning in the file

Each run is the real training command. Finished runs are not repeated; failed ones are listed and tried again next time.
"""

from __future__ import annotations

import shlex
import sys

import hydra
from omegaconf import DictConfig

from unify_posttrain.config import conf_dir, register_resolvers, run_command

register_resolvers()


@hydra.main(config_path=str(conf_dir()), config_name="study", version_base=None)
def _main(config: DictConfig) -> None:
    from unify_posttrain.study.conduct import conduct
    from unify_posttrain.study.grid import Grid
    from unify_posttrain.study.report import show

    try:
        grid = Grid.from_config(config)
        code = conduct(grid, shlex.join(["python", "-m", "unify_posttrain.study", *sys.argv[1:]]))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    show(grid)
    sys.exit(code)


def main() -> None:
    """Entry point of `unify-study`."""
    run_command(_main, "study")


if __name__ == "__main__":
    main()
