"""Look at what a run did: to its weights, to its advantages, to what its model could do before.

    python -m unify_posttrain.analyze recovery base=FOLDER tuned=FOLDER mode=[vector,direction] top=[0.1,1.0] evaluate=[gp_ood]
    python -m unify_posttrain.analyze angles base=FOLDER tuned=[FOLDER,FOLDER] layers=0-9,12    # beside null lines
    python -m unify_posttrain.analyze spectrum base=FOLDER tuned=FOLDER                         # singular values, energies
    python -m unify_posttrain.analyze advantages run=outputs/runs/ppo
    python -m unify_posttrain.analyze forgetting sft=gp-sft rl=[gp-ppo-500,gp-ppo-1100]         # evaluations, by name
    python -m unify_posttrain.analyze --cfg job what=angles                  # every setting; meanings in conf/analyze.yaml

The first bare word is short for what=WORD. Stopped at any time, the same command goes on at the next matrix. Results: JSON, a
page in Markdown with a verdict, and figures in the output folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unify_posttrain.config import conf_dir, register_resolvers, run_command
from unify_posttrain.export import HYDRA_OPTIONS

logger = logging.getLogger(__name__)

CONFIG = "analyze"
TEXTS = ("layers", "modules")  # values that Hydra would read as a sweep, or not at all: 0-9,12 and regular expressions
PLAIN = tuple("'\"[{$")  # what a value begins with that somebody has written for Hydra

register_resolvers()


def with_what_key(arguments: Sequence[str]) -> list[str]:
    """The arguments with the first bare word written as `what=…`, and layers and modules quoted for Hydra."""
    found, named = False, []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        free = not argument.startswith("-") and before not in HYDRA_OPTIONS
        key, equals, value = argument.partition("=")
        if free and not equals and not found:
            found = True
            named.append(f"what={_quoted(argument)}")
        elif free and key in TEXTS and value not in ("", "null") and not value.startswith(PLAIN):
            named.append(f"{key}={_quoted(value)}")
        else:
            named.append(argument)
    return named


def _quoted(text: str) -> str:
    if text.isidentifier():
        return text
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


@hydra.main(config_path=str(conf_dir()), config_name=CONFIG, version_base=None)
def _main(config: DictConfig) -> None:
    from unify_posttrain.output import write

    try:
        write(run(config))
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(config: DictConfig) -> Iterator[str]:
    """Do what `what` says; yields what people read at the end.

    Raises:
        ValueError: a setting or a file that cannot be used.
    """
    from unify_posttrain.analysis import settings

    what, output = settings.chosen_what(config), Path(str(config.output))
    if config.dry_run and what in ("recovery", "angles", "spectrum"):
        from unify_posttrain.analysis.weights.estimate import plan

        yield from plan(settings.recovery(config) if what == "recovery" else settings.comparison(config))
        return
    if what == "recovery":
        yield from _recovery(config)
    elif what == "advantages":
        yield from _advantages(config)
    elif what == "forgetting":
        from unify_posttrain.analysis.forgetting_report import report, verdict

        yield from (line for run in report(settings.forgetting(config))["seeds"] for line in verdict(run))
    else:
        from unify_posttrain.analysis.weights.conduct import compare
        from unify_posttrain.analysis.weights.verdicts import verdict as said

        yield from said(compare(settings.comparison(config)))
    yield f"results: {output / f'{what}.md'}"


def _advantages(config: DictConfig) -> Iterator[str]:
    from unify_posttrain.analysis import settings
    from unify_posttrain.analysis.advantages import analyse, verdict

    if config.run is None:
        raise ValueError("run is not set; give the folder of a run with a rollout dump, e.g. run=outputs/runs/grpo")
    folder = Path(str(config.run)).expanduser()
    rollouts = None if config.rollouts is None else Path(str(config.rollouts)).expanduser()
    results = analyse(folder, rollouts, settings.credit_of(config, folder), Path(str(config.output)), bool(config.overwrite))
    yield verdict(results["steps"], results["credit"])


def _recovery(config: DictConfig) -> Iterator[str]:
    from unify_posttrain.analysis import settings
    from unify_posttrain.analysis.weights.recovery import recover
    from unify_posttrain.analysis.weights.verdicts import recovery_verdict

    recovery = settings.recovery(config)
    evaluate = None if config.evaluate is None else partial(_evaluate, _evaluation(config))
    results = recover(recovery, evaluate)
    yield from recovery_verdict(results)
    if evaluate is None:
        yield (
            f"{len(recovery.folders)} models in {recovery.output / 'restored'}; the same command with evaluate=[BENCHMARK,…] "
            "measures them beside base and tuned, without restoring again"
        )


def _evaluation(config: DictConfig) -> DictConfig:
    """The configuration of the evaluation, composed before anything is computed, so that its mistakes cost nothing.

    Raises:
        ValueError: a setting that does not fit.
    """
    from hydra.core.global_hydra import GlobalHydra

    from unify_posttrain.evaluate import compose_evaluation

    running = GlobalHydra.instance().hydra  # of this command: composing another one takes its place
    try:
        composed = compose_evaluation()
    finally:
        GlobalHydra.instance().hydra = running
    try:
        evaluation = composed.copy()
        evaluation.merge_with(config.evaluation or {})
    except (OmegaConfBaseException, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"evaluation={config.evaluation}: {said}; give keys of conf/evaluate.yaml, e.g. {{engine: hf}}") from error
    evaluation.benchmarks = OmegaConf.to_container(config.evaluate) if OmegaConf.is_config(config.evaluate) else config.evaluate
    evaluation.output = str(Path(str(config.output)) / "evaluation")
    _completed(evaluation, {"tuned": Path(str(config.tuned))})  # its own checks of benchmarks and engine
    return evaluation


def _completed(evaluation: DictConfig, models: Mapping[str, Path]) -> Any:
    from unify_posttrain.evaluation.settings import Evaluation

    evaluation.model = {label: str(folder) for label, folder in models.items()}
    return Evaluation.from_config(evaluation)


def _evaluate(evaluation: DictConfig, models: Mapping[str, Path]) -> Mapping[str, Any]:
    """Evaluate the models as python -m unify_posttrain.evaluate does; the first is what the others are compared with."""
    from unify_posttrain.evaluation.conduct import conduct

    return conduct(_completed(evaluation, models))


def main() -> None:
    """Entry point of `unify-analyze`."""
    sys.argv[1:] = with_what_key(sys.argv[1:])
    run_command(_main, CONFIG)


if __name__ == "__main__":
    main()
