"""Print an algorithm's terms as a table of the Unified Policy Gradient Estimator.

python -m unify_posttrain.explain algorithm=luffy
python -m unify_posttrain.explain algorithm=all --json
python -m unify_posttrain.explain algorithm=hpt fusion.shaping.gamma=0.3      # any override of the configuration
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from unify_posttrain.config import compose_config
from unify_posttrain.typos import with_hint

COLUMNS = ("term", "tokens", "mask", "pi_ref", "advantage", "weight", "aggregation", "coefficient")


def explain(overrides: Sequence[str]) -> dict[str, Any]:
    """Terms of the algorithm that the overrides select, as plain data."""
    from unify_posttrain.algorithms import build_algorithm

    config = compose_config(overrides)
    algorithm = build_algorithm(OmegaConf.to_container(config.actor_rollout_ref.actor, resolve=True))
    parts = [(phase.algorithm, "" if len(algorithm.phases) == 1 else f"{phase.algorithm.name}: ") for phase in algorithm.phases]
    terms = [_row(term, part, prefix) for part, prefix in parts for term in part.terms]
    terms += [_row(term, part, f"{prefix}replay: ") for part, prefix in parts for term in part.replay_terms]
    return {
        "algorithm": algorithm.name,
        "paper": algorithm.paper,
        "experience": " then ".join(type(part.experience).__name__ for part, _ in parts),
        "needs_target": any(part.experience.needs_target for part, _ in parts),
        "needs_hint": any(part.experience.needs_hint for part, _ in parts),
        "needs_entropy": any(part.needs_entropy for part, _ in parts),
        "needs_reference": algorithm.needs_reference,
        "needs_critic": algorithm.needs_critic,
        "terms": terms,
    }


def _row(term: Any, algorithm: Any, prefix: str) -> dict[str, Any]:
    from unify_posttrain.objective import PolicyGradient

    loss = term.loss
    gradient = isinstance(loss, PolicyGradient)
    counted = "" if term.counted is None else f" over all {term.counted.key} tokens"
    advantage = type(loss).__name__.lower()
    if gradient:
        advantage = algorithm.advantage if loss.advantage == "advantages" else f"{loss.advantage:g}"
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-explain`."""
    from unify_posttrain.algorithms import ALGORITHMS

    arguments = list(sys.argv[1:] if arguments is None else arguments)
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
        table = Table(title=f"{algorithm['algorithm']} ({algorithm['paper']})", title_justify="left")
        for column in COLUMNS:
            table.add_column(column)
        for term in algorithm["terms"]:
            table.add_row(*(f"{term[column]:g}" if column == "coefficient" else str(term[column]) for column in COLUMNS))
        console.print(table)


if __name__ == "__main__":
    main()
