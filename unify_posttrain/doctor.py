"""What would keep a job from running here, before it takes the machine: one line per check, green, yellow or red.

    python -m unify_posttrain.doctor                                             # the machine alone
    python -m unify_posttrain.doctor algorithm=hpt model=qwen2_5_math_7b hardware=node_8gpu    # and what this run needs of it
    python -m unify_posttrain.doctor … --json                                    # for programs
    python -m unify_posttrain.doctor … --before-ray                              # the caller starts a Ray cluster afterwards

Takes what unify_posttrain.train takes, changes nothing, touches no GPU, and ends within 20 seconds; exit code 1 if anything is red.
"""

from __future__ import annotations

import io
import sys
import time

JSON, BEFORE_RAY, HELP = "--json", "--before-ray", ("--help", "-h")


def main() -> None:
    """Entry point of `unify-doctor`."""
    from unify_posttrain.output import guarded_output

    with guarded_output():
        _main()


def _main() -> None:
    begun = time.monotonic()
    options = {argument for argument in sys.argv[1:] if argument.startswith("-")}
    overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if options & set(HELP):
        sys.stdout.write(f"{__doc__}\n")
        return
    unknown = options - {JSON, BEFORE_RAY}
    if unknown:
        sys.exit(f"error: {', '.join(sorted(unknown))} is unknown; choose one of {JSON}, {BEFORE_RAY}, --help")
    try:
        from rich.console import Console

        from unify_posttrain.config import compose_config
        from unify_posttrain.doctoring.examination import Subject, examine
        from unify_posttrain.doctoring.findings import Finding, Status, red, worst
        from unify_posttrain.doctoring.printing import as_json, show
    except ModuleNotFoundError as error:  # the commonest fault: an interpreter without the environment
        sys.exit(f"error: {error.name} is not installed for {sys.executable}; activate the environment, or make install")
    broken: list[Finding] = []
    try:
        config = compose_config(overrides) if overrides else None
    except (ValueError, KeyError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")
    except Exception as error:  # without verl nothing can be composed; the machine can be looked at all the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        config, broken = None, [red("configuration", reason, "correct what is red above; HYDRA_FULL_ERROR=1 shows all of it")]
    findings = [*examine(Subject(config, BEFORE_RAY in options)), *broken]
    seconds = time.monotonic() - begun
    if JSON in options:
        sys.stdout.write(as_json(findings, seconds) + "\n")
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 is one of the findings
        show(findings, seconds, Console(file=sys.stdout, highlight=False))
    sys.exit(1 if worst(findings) is Status.RED else 0)


if __name__ == "__main__":
    main()
