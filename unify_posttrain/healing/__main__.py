"""Does reinforcement bring back what fine-tuning forgot? A chain of commands, and one page of what came of it.

    python -m unify_posttrain.healing                                      # everything in conf/heals.yaml; hours
    python -m unify_posttrain.healing seeds=[0] methods=[grpo] kl=[0.0]    # a part now, the rest later
    python -m unify_posttrain.healing page=docs/heals.md                   # with a copy of the page once all is there
    python -m unify_posttrain.healing --cfg job                            # every setting, with its meaning in the file

Each step is a command of this package. Finished steps are not repeated; failed ones are tried again next time.
"""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from unify_posttrain.config import conf_dir, register_resolvers, run_command

register_resolvers()


@hydra.main(config_path=str(conf_dir()), config_name="heals", version_base=None)
def _main(config: DictConfig) -> None:
    from unify_posttrain.healing.conduct import conduct, show
    from unify_posttrain.healing.plan import Healing
    from unify_posttrain.output import write

    try:
        healing = Healing.from_config(config)
        code = conduct(healing)
        write(line for line in show(healing))
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    sys.exit(code)


def main() -> None:
    """Entry point of the command."""
    run_command(_main, "heals")


if __name__ == "__main__":
    main()
