"""What would keep a job from running here, before it takes the machine: one line per check, green, yellow or red.

    python -m unify_posttrain.doctor                                             # the machine alone
    python -m unify_posttrain.doctor algorithm=hpt model=qwen2_5_math_7b hardware=node_8gpu    # and what this run needs of it
    python -m unify_posttrain.doctor … --json                                    # for programs
    python -m unify_posttrain.doctor … --before-ray                              # the caller starts a Ray cluster afterwards

Takes what unify_posttrain.train takes, changes nothing, touches no GPU, and ends within 20 seconds; exit code 1 if anything is red.
"""

from __future__ import annotations

import sys
import time

from rich.console import Console

from unify_posttrain.config import compose_config
from unify_posttrain.doctoring.findings import Status, worst
from unify_posttrain.doctoring.printing import as_json, show

JSON, BEFORE_RAY, HELP = "--json", "--before-ray", ("--help", "-h")


def main() -> None:
    """Entry point of `unify-doctor`."""
    begun = time.monotonic()
    options = {argument for argument in sys.argv[1:] if argument.startswith("-")}
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if options & set(HELP):
        sys.stdout.write(f"{__doc__}\n")
        return
    unknown = options - {JSON, BEFORE_RAY}
    if unknown:
        sys.exit(f"error: {', '.join(sorted(unknown))} is unknown; choose one of {JSON}, {BEFORE_RAY}, --help")
    from unify_posttrain.doctoring.examination import Subject, examine

    try:
        config = compose_config(overrides) if overrides else None
    except (ValueError, KeyError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")
    findings = examine(Subject(config, BEFORE_RAY in options))
    seconds = time.monotonic() - begun
    if JSON in options:
        sys.stdout.write(as_json(findings, seconds) + "\n")
    else:
        show(findings, seconds, Console(file=sys.stdout, highlight=False))
    sys.exit(1 if worst(findings) is Status.RED else 0)


if __name__ == "__main__":
    main()
