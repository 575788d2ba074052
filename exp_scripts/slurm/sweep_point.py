"""One run of a sweep: of a training command with several values (Hydra's `key=a,b`) the one with this number, an argument per line.

    python exp_scripts/slurm/sweep_point.py 3 exp_scripts/hpt.sh trainer.experiment_name=gates trainer.switch_gate=0,1 model=a,b

The runs are numbered as Hydra's multirun numbers them: the last key changes first. The name of a run is trainer.experiment_name, or
else the script's, with its own values: the same command finds the same folders again.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from unify_posttrain.sweeps import job_label

NAME = "trainer.experiment_name="


def runs(command: Sequence[str]) -> list[list[str]]:
    """All runs that a command stands for; itself, if nothing in it has several values.

    Raises:
        ValueError: an argument over several lines, which cannot be handed on.
    """
    if any("\n" in argument for argument in command):
        raise ValueError("an argument has several lines; write it in one")
    values = [_values(argument) for argument in command]
    swept = [number for number, options in enumerate(values) if len(options) > 1]
    if not swept:
        return [list(command)]
    given = [argument for argument in command if argument.startswith(NAME)]
    name = given[-1].removeprefix(NAME) if given else Path(command[0]).stem
    return [
        [*(part for part in point if not part.startswith(NAME)), f"{NAME}'{name}-{job_label([point[number] for number in swept])}'"]
        for point in itertools.product(*values)
    ]


def _values(argument: str) -> list[str]:
    """The arguments that one stands for."""
    if "=" not in argument or argument.startswith("-"):
        return [argument]
    override = OverridesParser.create().parse_override(argument)
    if not override.is_sweep_override():
        return [argument]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def main() -> None:
    number, command = int(sys.argv[1]), sys.argv[2:]
    found = runs(command)
    if number >= len(found):
        sys.exit(
            f"unify: error: task {number} of the array, but the sweep has {len(found)} run(s): sbatch --array=0-{len(found) - 1}"
        )
    sys.stdout.write("\n".join(found[number]) + "\n")


if __name__ == "__main__":
    main()
