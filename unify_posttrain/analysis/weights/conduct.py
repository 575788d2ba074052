"""Compare a base with tuned models, matrix by matrix: `angles` and `spectrum`. What is on disk already is not done again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.analysis.records import Records
from unify_posttrain.analysis.weights.measures import BaseMatrix, Precision, at, mean_of, measure
from unify_posttrain.analysis.weights.pairs import Pair, Selection, layer_of, module_of, open_pair
from unify_posttrain.runs.files import write_text
from unify_posttrain.untrusted.weights import fingerprint

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the meaning of a record changes


@dataclass(frozen=True)
class Comparison:
    """What `angles` and `spectrum` do.

    Attributes:
        what: angles or spectrum.
        base: folder of the base.
        tuned: label -> folder.
        selection: the matrices.
        how: the numbers.
        factor: how many times the angle of noise is said to be more than noise (and the inverse: less).
        output: folder of the results.
        overwrite: replace an analysis with other settings.
    """

    what: str
    base: Path
    tuned: Mapping[str, Path]
    selection: Selection
    how: Precision
    factor: float
    output: Path
    overwrite: bool


def identity(what: str, base: Path, tuned: Mapping[str, Path], selection: Selection, **more: Any) -> dict[str, Any]:
    """What the numbers of an analysis depend on, for its settings.json."""
    return {
        "format": FORMAT,
        "what": what,
        "base": fingerprint(base),
        "tuned": {label: fingerprint(folder) for label, folder in tuned.items()},
        "modules": selection.modules,
        "layers": None if selection.layers is None else sorted(selection.layers),
        **more,
    }


def begin(records_settings: Mapping[str, Any], output: Path, overwrite: bool, pairs: Sequence[Pair]) -> Records:
    """Open the records of an analysis whose guards have passed."""
    records = Records(output, records_settings, overwrite)
    names = pairs[0].names
    missing = sum(name not in records.done for name in names)
    for why, number in pairs[0].skipped.items():
        logger.warning("%d selected tensors are skipped: %s", number, why)
    logger.info("%d matrices, %d of them to be worked out", len(names), missing)
    return records


def compare(comparison: Comparison) -> dict[str, Any]:
    """Measure every matrix and write `WHAT.json`, `WHAT.md` and figures.

    Returns:
        the content of `WHAT.json`.

    Raises:
        ValueError: a guard, or an output folder that holds something else.
    """
    from unify_posttrain.analysis.weights.plots import draw
    from unify_posttrain.analysis.weights.verdicts import comparison_page

    how = comparison.how
    pairs = {label: open_pair(comparison.base, folder, comparison.selection) for label, folder in comparison.tuned.items()}
    numbers = {"subspaces": list(how.subspaces), "gap": how.gap, "per_rank": how.per_rank, "bins": how.bins}
    settings = identity(
        comparison.what, comparison.base, comparison.tuned, comparison.selection,
        **numbers, random_tolerance=how.random_tolerance, seed=how.seed, dtype=str(how.dtype),
    )  # fmt: skip
    first = next(iter(pairs.values()))
    records = begin(settings, comparison.output, comparison.overwrite, list(pairs.values()))
    for name in first.names:
        if name not in records.done:
            records.append(_entry(name, pairs, comparison))
    entries = list(records.ordered(first.names))
    labels = list(comparison.tuned)
    results = {
        "format": FORMAT,
        "what": comparison.what,
        "base": str(comparison.base),
        "tuned": {label: str(folder) for label, folder in comparison.tuned.items()},
        "settings": settings,
        "factor": comparison.factor,
        "skipped": dict(first.skipped),
        "summary": {label: summary(entries, label) for label in labels},
        "matrices": entries,
    }
    figures = draw(results, comparison.output)
    write_text(comparison.output / f"{comparison.what}.md", comparison_page(results, [path.name for path in figures]))
    write_text(comparison.output / f"{comparison.what}.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _entry(name: str, pairs: Mapping[str, Pair], comparison: Comparison) -> dict[str, Any]:
    first = next(iter(pairs.values()))
    base = BaseMatrix(name, first.base.read(name), comparison.how)
    entry = {
        "matrix": name,
        "layer": layer_of(name),
        "module": module_of(name),
        "shape": list(first.shape(name)),
        "base_looks_random": base.random,
        "models": {label: measure(base, pair.tuned.read(name), comparison.what) for label, pair in pairs.items()},
    }
    logger.info("%s", name)
    return entry


def summary(entries: Sequence[Mapping[str, Any]], label: str) -> dict[str, Any]:
    """Means over matrices, each counted once, of one tuned model."""
    measured = [entry["models"][label] for entry in entries]
    found: dict[str, Any] = {
        "matrices": len(entries),
        "size": mean_of([each["size"] for each in measured]),
        "looks_random": sum(each["looks_random"] for each in measured),
        "base_looks_random": sum(entry["base_looks_random"] for entry in entries),
    }
    for source in ("energies", "energies_noise"):
        whole = [each[source][-1] for each in measured]
        found[source] = {part: mean_of([each[part] for each in whole]) for part in ("scaling", "rotation")}
    if "subspaces" in measured[0]:
        most = max(len(each["subspaces"]) for each in measured)
        found["subspaces"] = [_mean_subspace([at(each["subspaces"], place) for each in measured]) for place in range(most)]
    if "values" in measured[0]:
        found["values"] = {
            end: {key: mean_of([each["values"][end][key] for each in measured]) for key in ("overall", "mean", "largest")}
            for end in ("tuned", "noise")
        }
    return found


def _mean_subspace(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same place in the list of sizes of every matrix; k itself differs where matrices do."""
    found: dict[str, Any] = {"k": sorted({part["k"] for part in parts})}
    for key in (f"{side}{end}" for side in ("left", "right") for end in ("", "_noise", "_random")):
        found[key] = {name: mean_of([part[key][name] for part in parts]) for name in parts[0][key]}
    return found
