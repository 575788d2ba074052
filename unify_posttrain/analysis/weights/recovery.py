"""Restore a tuned model towards its base in every mode and with every control, and write the models: `recovery`."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unify_posttrain.analysis.records import Records
from unify_posttrain.analysis.weights import folders as restored
from unify_posttrain.analysis.weights.conduct import FORMAT, begin, identity
from unify_posttrain.analysis.weights.nulls import seeded
from unify_posttrain.analysis.weights.pairs import Pair, Selection, layer_of, module_of, open_pair
from unify_posttrain.analysis.weights.restore import (
    INDEX_MATCHED,
    close_cuts,
    drop,
    indices,
    interpolate,
    left,
    random_indices,
    restore,
)
from unify_posttrain.analysis.weights.svd import Decomposition, decompose
from unify_posttrain.runs.files import write_text

logger = logging.getLogger(__name__)

BASE, TUNED = "base", "tuned"
CONTROLS = ("interpolate", "drop")
RANDOM = "random"
Evaluate = Callable[[Mapping[str, Path]], Mapping[str, Any]]  # label -> folder in, the content of results.json out


@dataclass(frozen=True)
class Variant:
    """One restored model: how (a mode, a control, or random indices in a mode), and with which share."""

    kind: str
    mode: str
    top: int | float
    tail: int | float

    @property
    def label(self) -> str:
        """Its name in tables and on disk."""
        tail = f"_tail{self.tail}" if self.tail else ""
        return f"{self.kind if self.kind == self.mode else f'{self.kind}_{self.mode}'}_top{self.top}{tail}"


def _is_all(share: int | float) -> bool:
    return isinstance(share, float) and share == 1.0  # 1 is a single index


@dataclass(frozen=True)
class Recovery:
    """What `recovery` does.

    Attributes:
        base, tuned: folders of the models.
        selection: the matrices that are restored.
        modes: of :mod:`restore`.
        tops: shares or numbers of leading indices.
        tail: of last ones.
        gap: relative gap at an edge of the indices under which matching by index is a matter of chance.
        seed: of the random indices.
        dtype, device: of the decompositions.
        shard_mb: size of the files of what is not restored, in MiB.
        output: folder of the results.
        overwrite: replace an analysis with other settings.
    """

    base: Path
    tuned: Path
    selection: Selection
    modes: tuple[str, ...]
    tops: tuple[int | float, ...]
    tail: int | float
    gap: float
    seed: int
    dtype: torch.dtype
    device: torch.device
    shard_mb: int
    output: Path
    overwrite: bool

    @property
    def variants(self) -> list[Variant]:
        """The restored models: for every share the modes, then the controls. A share of nothing is the tuned model itself; of all
        indices there is no random choice."""
        found = []
        for top in self.tops:
            if not top and not self.tail:
                continue
            found += [Variant(mode, mode, top, self.tail) for mode in self.modes]
            found += [Variant(control, control, top, self.tail) for control in CONTROLS]
            matched = [mode for mode in self.modes if mode in INDEX_MATCHED and not (_is_all(top) or _is_all(self.tail))]
            found += [Variant(RANDOM, mode, top, self.tail) for mode in matched]
        return found

    @property
    def folders(self) -> dict[str, Path]:
        """Variant -> its folder."""
        return {variant.label: self.output / "restored" / variant.label for variant in self.variants}


def recover(recovery: Recovery, evaluate: Evaluate | None = None) -> dict[str, Any]:
    """Restore every matrix in every way, write the models, then `recovery.json`, `recovery.md` and figures.

    Args:
        recovery: what to do.
        evaluate: measures the models; None: they are only written.

    Returns:
        the content of recovery.json.

    Raises:
        ValueError: a guard, too little disk, or an output folder that holds something else.
    """
    from unify_posttrain.analysis.weights.plots import draw_recovery
    from unify_posttrain.analysis.weights.verdicts import recovery_page

    pair = open_pair(recovery.base, recovery.tuned, recovery.selection)
    settings = identity(
        "recovery", recovery.base, {TUNED: recovery.tuned}, recovery.selection,
        modes=list(recovery.modes), top=list(recovery.tops), tail=recovery.tail, gap=recovery.gap, seed=recovery.seed,
        dtype=str(recovery.dtype),
    )  # fmt: skip
    _check_disk(pair, recovery)
    records = begin(settings, recovery.output, recovery.overwrite, [pair])
    for name in pair.names:
        if name not in records.done or not _written(pair, name, recovery):
            records.append(_restore_matrix(name, pair, recovery))
    restored.finish(pair, recovery.folders, recovery.shard_mb, {"base": str(recovery.base), "tuned": str(recovery.tuned)})
    evaluation = None
    if evaluate is not None:
        evaluation = evaluate({TUNED: recovery.tuned, BASE: recovery.base, **recovery.folders})
    results = _results(recovery, pair, records, settings, evaluation)
    figures = draw_recovery(results, recovery.output)
    write_text(recovery.output / "recovery.md", recovery_page(results, [path.name for path in figures]))
    write_text(recovery.output / "recovery.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _written(pair: Pair, name: str, recovery: Recovery) -> bool:
    file = restored.matrix_file(pair, name)
    return all((folder / file).is_file() for folder in recovery.folders.values())


def _check_disk(pair: Pair, recovery: Recovery) -> None:
    """Before anything is computed; folders of an earlier attempt are counted as if they were still to be written, if incomplete."""
    missing = [folder for folder in recovery.folders.values() if not restored.is_complete(folder)]
    needed = restored.bytes_needed(pair, len(missing)) if missing else 0
    place = next(parent for parent in (recovery.output, *recovery.output.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(
            f"output={recovery.output}: {len(missing)} restored models need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; give another output=…, fewer values of top= or mode=, or a part of the model with layers= and modules="
        )


def _restore_matrix(name: str, pair: Pair, recovery: Recovery) -> dict[str, Any]:
    stored_base, stored = pair.read(name)
    base, tuned = (each.to(recovery.device, recovery.dtype) for each in (stored_base, stored))
    parts = _Parts(name, base, tuned, recovery)
    whole = float((tuned - base).double().square().sum())
    variants, cuts = {}, {}
    for variant in recovery.variants:
        matrix, index = parts.of(variant)
        if variant.kind in INDEX_MATCHED:
            cuts[variant.label] = close_cuts(parts.base, parts.tuned, index, recovery.gap)
        kept = matrix.to(stored.dtype)
        difference = kept.to(recovery.dtype) - base
        variants[variant.label] = {
            "moved": float(difference.double().square().sum()),
            "rounding": float((kept.to(recovery.dtype) - matrix).abs().max()),
            "indices": len(index),
        }
        restored.write_matrix(recovery.folders[variant.label], restored.matrix_file(pair, name), name, kept.cpu())
    logger.info("%s", name)
    return {
        "matrix": name,
        "layer": layer_of(name),
        "module": module_of(name),
        "shape": list(stored.shape),
        "whole": whole,
        "close_cuts": cuts,
        "variants": variants,
    }


class _Parts:
    """Both matrices with their decompositions; that of ΔW is made when a control asks for it."""

    def __init__(self, name: str, base: Tensor, tuned: Tensor, recovery: Recovery) -> None:
        self.name, self.recovery = name, recovery
        self.matrices = base, tuned
        self.base, self.tuned = decompose(base, recovery.dtype), decompose(tuned, recovery.dtype)
        self._delta: Decomposition | None = None

    def of(self, variant: Variant) -> tuple[Tensor, Tensor]:
        """(restored matrix, indices that it was restored at)."""
        base, tuned = self.matrices
        index = indices(self.base.rank, variant.top, variant.tail)
        if variant.kind == "interpolate":
            return interpolate(base, tuned, len(index) / self.base.rank), index
        if variant.kind == "drop":
            if self._delta is None:
                self._delta = decompose(tuned - base, self.recovery.dtype)
            return drop(base, tuned, len(index), self._delta), index
        if variant.kind == RANDOM:
            generator = seeded(self.recovery.seed, "indices", self.name, variant.top, variant.tail)
            index = random_indices(self.base.rank, len(index), generator)
        return restore(variant.mode, self.base, self.tuned, tuned, index), index


def _results(
    recovery: Recovery, pair: Pair, records: Records, settings: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> dict[str, Any]:
    entries = list(records.ordered(pair.names))
    whole = [entry["whole"] for entry in entries]
    rows: list[dict[str, Any]] = [{"label": TUNED, "kind": TUNED, "left": 1.0 if sum(whole) else None}]
    rows += [_row(variant, entries, whole, recovery.folders[variant.label]) for variant in recovery.variants]
    rows.append({"label": BASE, "kind": BASE, "left": 0.0})
    if evaluation is not None:
        accuracies, differences = accuracies_of(evaluation), differences_of(evaluation)
        for row in rows:
            row["accuracy"] = accuracies.get(row["label"], {})
            row["against_tuned"] = differences.get(row["label"], {})
    return {
        "format": FORMAT,
        "what": "recovery",
        "base": str(recovery.base),
        "tuned": str(recovery.tuned),
        "settings": settings,
        "skipped": dict(pair.skipped),
        "nothing_tuned": not sum(whole),
        "rows": rows,
        "matrices": entries,
    }


def _row(variant: Variant, entries: Sequence[Mapping[str, Any]], whole: Sequence[float], folder: Path) -> dict[str, Any]:
    each = [entry["variants"][variant.label] for entry in entries]
    return {
        "label": variant.label,
        "kind": variant.kind,
        "mode": variant.mode,
        "top": variant.top,
        "tail": variant.tail,
        "left": left([part["moved"] for part in each], whole),
        "rounding": max(part["rounding"] for part in each),
        "close_cuts": sum(entry["close_cuts"].get(variant.label, 0) for entry in entries)
        if variant.kind in INDEX_MATCHED
        else None,
        "folder": str(folder),
    }


def accuracies_of(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model -> column -> {mean, low, high}, of the content of an evaluation's results.json."""
    return {
        model["label"]: {_column(entry): entry["accuracy"] for entry in model["sources"] if entry["accuracy"] is not None}
        for model in evaluation["models"]
    }


def differences_of(evaluation: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Model -> column -> paired difference against the first model, {mean, low, high}."""
    return {
        comparison["model"]: {_column(entry): entry["difference"] for entry in comparison["sources"]}
        for comparison in evaluation["comparisons"]
    }


def _column(entry: Mapping[str, Any]) -> str:
    benchmark, source = entry["benchmark"], entry["source"]
    return benchmark if source == benchmark else f"{benchmark}: {source}"
