"""Print what an algorithm is: its rows, its advantage, its terms as a table of the estimator, and every setting that is read.

python -m unify_posttrain.explain algorithm=luffy
python -m unify_posttrain.explain algorithm=all --json
python -m unify_posttrain.explain algorithm=hpt fusion.shaping.gamma=0.3      # any override of the configuration
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from unify_posttrain.config import compose_config
from unify_posttrain.output import cell, guarded_output
from unify_posttrain.provenance import Provenance
from unify_posttrain.redaction import redacted
from unify_posttrain.typos import with_hint

COLUMNS = ("term", "tokens", "mask", "pi_ref", "advantage", "weight", "aggregation", "coefficient")
SETTINGS = ("key", "value", "from")
# Read by the run whatever the algorithm, beside what it reads itself.
OF_EVERY_RUN = (
    "fusion.success_threshold",
    "fusion.success_key",
    "fusion.max_grad_norm",
    "fusion.logits_chunk",
    "fusion.lr_schedule",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.rollout.temperature",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.optim.lr",
    "actor_rollout_ref.actor.grad_clip",
    "trainer.total_training_steps",
)
OF_DEMONSTRATIONS = (
    "fusion.demo.missing",
    "fusion.demo.overlong",
    "fusion.demo.select",
    "fusion.demo.require_verified",
    "fusion.demo.max_length",
    "fusion.allow_tempered_nll",
)


def explain(overrides: Sequence[str]) -> dict[str, Any]:
    """Rows, advantage, terms and settings of the algorithm that the overrides select, as plain data.

    Raises:
        ValueError: the configuration cannot be composed, or the algorithm refuses it.
    """
    return explain_config(compose_config(overrides), overrides)


def explain_config(config: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same of a configuration that has been composed from these overrides."""
    from unify_posttrain.algorithms import build_algorithm

    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    parts = [(phase.algorithm, "" if len(algorithm.phases) == 1 else f"{phase.algorithm.name}: ") for phase in algorithm.phases]
    terms = [_row(term, part, prefix) for part, prefix in parts for term in part.terms]
    terms += [_row(term, part, f"{prefix}replay: ") for part, prefix in parts for term in part.replay_terms]
    rules = [part.experience for part, _ in parts]
    return {
        "algorithm": algorithm.name,
        "paper": algorithm.paper,
        "rows": "; then ".join(f"{prefix}{part.experience.describe()}" for part, prefix in parts),
        "most_rows": max(rule.most_rows for rule in rules),
        "advantage": "; then ".join(f"{prefix}{part.advantage.describe()}" for part, prefix in parts),
        "experience": " then ".join(type(rule).__name__ for rule in rules),
        "needs_target": any(rule.needs_target for rule in rules),
        "needs_hint": any(rule.needs_hint for rule in rules),
        "needs_entropy": any(part.needs_entropy for part, _ in parts),
        "needs_reference": algorithm.needs_reference,
        "needs_critic": algorithm.needs_critic,
        "terms": terms,
        "settings": list(_settings(algorithm, config, overrides)),
    }


def _row(term: Any, algorithm: Any, prefix: str) -> dict[str, Any]:
    from unify_posttrain.objective import PolicyGradient

    loss = term.loss
    gradient = isinstance(loss, PolicyGradient)
    counted = "" if term.counted is None else f" over all {term.counted.key} tokens"
    advantage = loss.describe() if not gradient else f"{loss.advantage:g}" if isinstance(loss.advantage, float) else loss.advantage
    if advantage == "advantages":
        advantage = algorithm.advantage.describe(term.members.tokens)
    token_weight = getattr(loss, "token_weight", None)
    weights = [term.members.row_weight, token_weight if isinstance(token_weight, str | None) else token_weight.describe()]
    bound = term.members.max_probability
    return {
        "term": prefix + term.name,
        "tokens": term.members.tokens + ("" if bound is None else f", π ≤ {bound:g}"),
        "mask": loss.stabiliser.describe() if gradient else "-",
        "pi_ref": loss.reference.describe() if gradient else "-",
        "advantage": advantage,
        "weight": " · ".join(weight for weight in weights if weight) or "1",
        "aggregation": term.aggregation.mode + counted,
        "coefficient": term.coefficient,
    }


def _settings(algorithm: Any, config: DictConfig, overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every setting that is read, with its value and where that comes from. Phases have theirs from their own files."""
    from unify_posttrain.algorithms.reading import settings_read

    provenance = Provenance(overrides)
    if len(algorithm.phases) > 1:
        keys = ["fusion.phases", *OF_EVERY_RUN]
    else:
        keys = sorted(settings_read(algorithm)) + list(OF_EVERY_RUN)
        keys += OF_DEMONSTRATIONS if algorithm.experience.needs_target else ()
    for key in dict.fromkeys(keys):
        value = OmegaConf.select(config, key)
        if key == "fusion.phases":
            value = [{name: each.get(name) for name in ("algorithm", "steps", "stall", "lr") if name in each} for each in value]
        value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        yield {"key": key, "value": redacted(value, key), "from": provenance.source(key)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-explain`."""
    with guarded_output():
        _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> None:
    from unify_posttrain.algorithms import ALGORITHMS

    as_json = "--json" in arguments
    overrides = [argument for argument in arguments if argument != "--json"]
    if any(argument in ("-h", "--help") for argument in overrides):
        sys.stdout.write(__doc__ or "")
        return
    rest = [override for override in overrides if override != "algorithm=all"]
    wanted = [[f"algorithm={name}", *rest] for name in sorted(ALGORITHMS)] if "algorithm=all" in overrides else [overrides]
    try:
        explained = [explain(each) for each in wanted]
    except ValueError as error:
        sys.exit(with_hint(f"error: {error}"))
    if as_json:
        sys.stdout.write(json.dumps(explained if len(explained) > 1 else explained[0], indent=2, ensure_ascii=False) + "\n")
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    for algorithm in explained:
        _print(algorithm, console)


def _print(algorithm: dict[str, Any], console: Console) -> None:
    """All as cells: brackets of a formula are no markup."""
    paper = f" ({algorithm['paper']})" if algorithm["paper"] else ""
    console.print(cell(algorithm["algorithm"] + paper, style="bold"))
    console.print(cell(f"rows       {algorithm['rows']}"))
    console.print(cell(f"advantage  {algorithm['advantage']}"))
    terms = [
        {**term, "coefficient": f"{term['coefficient']:g}" if isinstance(term["coefficient"], float | int) else term["coefficient"]}
        for term in algorithm["terms"]
    ]
    for columns, rows in ((COLUMNS, terms), (SETTINGS, algorithm["settings"])):
        table = Table()
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(cell("null" if row[column] is None else row[column]) for column in columns))
        console.print(table)


if __name__ == "__main__":
    main()
