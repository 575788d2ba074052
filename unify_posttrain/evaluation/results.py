"""Results of an evaluation as plain data: what results.json holds and tables and figures are made of.

Nothing here depends on when or in how many attempts the samples were made. Shares and accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.episode_results import episode_entry, loss_entry
from unify_posttrain.evaluation.models import Model
from unify_posttrain.evaluation.protocols import Benchmark
from unify_posttrain.evaluation.settings import Evaluation
from unify_posttrain.evaluation.store import Losses, Sample
from unify_posttrain.measures.metrics import ProblemSamples, by_source, source_metrics
from unify_posttrain.measures.statistics import Bootstrap, compare, estimate

FORMAT = 1  # raise it when the meaning of results.json changes


@dataclass(frozen=True)
class Measured:
    """Samples of one model on one benchmark.

    Attributes:
        model, fingerprint, benchmark, samples: what they are.
        problems: all of the benchmark.
        rendered: rows that were asked; the others were left out for their length.
        losses: of the worked answers; None: not measured.
    """

    model: Model
    fingerprint: str
    benchmark: Benchmark
    samples: Sequence[Sample]
    problems: Sequence[Problem]
    rendered: Collection[int]
    losses: Losses | None = None

    @property
    def dropped(self) -> list[str]:
        """The source of every problem that was left out."""
        return [problem.source for problem in self.problems if problem.row not in self.rendered]


@dataclass(frozen=True)
class _Source:
    """One row of the table: accuracies of its problems, by row of the benchmark."""

    benchmark: str
    name: str
    group: str
    accuracies: dict[int, float]
    entry: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.benchmark, self.name


def as_results(evaluation: Evaluation, measured: Sequence[Measured]) -> dict[str, Any]:
    """The content of results.json.

    Keys: `settings`; `models`, each with `sources` (a row per data_source of each benchmark), `groups` and `mean` (unweighted
    means over sources); `comparisons`, every model against the first on the problems that both have; `published`.
    """
    how = evaluation.bootstrap
    sources: dict[str, list[_Source]] = {model.label: [] for model in evaluation.models}
    fingerprints: dict[str, str] = {}
    for part in measured:
        sources[part.model.label] += _sources(part, how)
        fingerprints[part.model.label] = part.fingerprint
    models = [
        {**asdict(model), "fingerprint": fingerprints[model.label], **_summary(sources[model.label], how)}
        for model in evaluation.models
    ]
    baseline, *others = evaluation.models
    comparisons = [_comparison(model.label, baseline.label, sources, how) for model in others]
    names = {benchmark.name for benchmark in evaluation.benchmarks}
    return {
        "format": FORMAT,
        "settings": _settings(evaluation),
        "models": models,
        "comparisons": [comparison for comparison in comparisons if comparison["sources"]],
        "published": [row for row in evaluation.published if _relevant(row, evaluation, names)],
    }


def _settings(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "engine": evaluation.engine.name,
        "dtype": evaluation.engine.dtype,
        "seed": evaluation.seed,
        "max_prompt_length": evaluation.prompts.max_length,
        "max_response_length": evaluation.max_response_length,
        "correct_threshold": evaluation.threshold,
        "statistics": asdict(evaluation.bootstrap),
        "benchmarks": {
            benchmark.name: {
                **{key: getattr(benchmark, key) for key in ("n", "temperature", "top_p", "top_k", "group")},
                "reward": dict(benchmark.reward),
                **({} if benchmark.environment is None else {"environment": dict(benchmark.environment)}),
            }
            for benchmark in evaluation.benchmarks
        },
    }


def _sources(part: Measured, how: Bootstrap) -> list[_Source]:
    samples = part.samples
    grouped, excluded = by_source(
        [sample.source for sample in samples],
        [sample.row for sample in samples],
        [bool(sample.correct) for sample in samples],
        [sample.answer for sample in samples],
        [bool(sample.gold_ok) for sample in samples],
    )
    dropped = Counter(part.dropped)
    found = []
    for name in dict.fromkeys([*grouped, *part.dropped]):  # a source of which every prompt is too long is shown, too
        problems = grouped.get(name, {})
        counted = [sample for sample in samples if sample.source == name and sample.row in problems]
        accuracies = {int(row): problem.average for row, problem in problems.items()}  # type: ignore[call-overload]
        entry = {
            "benchmark": part.benchmark.name,
            "source": name,
            "group": part.benchmark.group,
            "dropped_prompts": dropped[name],
            **_source_entry(list(problems.values()), excluded.get(name, 0), counted, how),
        }
        of_source = [problem for problem in part.problems if problem.source == name]
        if part.benchmark.environment is not None and counted:
            entry["episodes"] = episode_entry(counted, of_source, part.benchmark.split_by, how)
        if part.losses is not None:
            entry["loss"] = loss_entry(part.losses, [problem.row for problem in of_source])
        found.append(_Source(part.benchmark.name, name, part.benchmark.group, accuracies, entry))
    return found


def _source_entry(problems: Sequence[ProblemSamples], excluded: int, samples: Sequence[Sample], how: Bootstrap) -> dict[str, Any]:
    metrics = source_metrics(problems, excluded)
    if metrics is None:
        return {"problems": 0, "excluded": excluded, "accuracy": None}
    tokens = np.array([sample.tokens for sample in samples])
    return {
        "problems": metrics.problems,
        "excluded": excluded,
        "n": metrics.n,
        "accuracy": asdict(estimate([[problem.average for problem in problems]], how)),
        "pass_at": {str(k): value for k, value in metrics.passes.items()},
        "majority": metrics.majority,
        "no_answer": metrics.no_answer,
        "truncated": sum(sample.truncated for sample in samples) / len(samples),
        "response_tokens": {
            "mean": float(tokens.mean()),
            "median": float(np.median(tokens)),
            "longest": int(tokens.max()),
        },
    }


def _summary(sources: Sequence[_Source], how: Bootstrap) -> dict[str, Any]:
    counted = [source for source in sources if source.accuracies]
    groups = dict.fromkeys(source.group for source in counted)
    return {
        "sources": [source.entry for source in sources],
        "groups": {
            group: asdict(estimate([list(s.accuracies.values()) for s in counted if s.group == group], how)) for group in groups
        },
        "mean": asdict(estimate([list(s.accuracies.values()) for s in counted], how)) if counted else None,
    }


def _comparison(label: str, baseline: str, sources: Mapping[str, Sequence[_Source]], how: Bootstrap) -> dict[str, Any]:
    """Problems that only one of the two has (left out for their length, say) are left out of both."""
    theirs = {source.key: source for source in sources[baseline]}
    pairs = []
    for source in sources[label]:
        other = theirs.get(source.key)
        rows = [row for row in source.accuracies if other is not None and row in other.accuracies]
        if other is not None and rows:
            pairs.append((source, [source.accuracies[row] for row in rows], [other.accuracies[row] for row in rows]))
    each = [
        {"benchmark": source.benchmark, "source": source.name, **asdict(compare([ours], [base], how))}
        for source, ours, base in pairs
    ]
    overall = asdict(compare([ours for _, ours, _ in pairs], [base for *_, base in pairs], how)) if pairs else None
    return {"model": label, "baseline": baseline, "sources": each, "mean": overall}


def _relevant(row: Mapping[str, Any], evaluation: Evaluation, names: set[str]) -> bool:
    """Published rows with a number for a benchmark that was evaluated; those with an average alone only beside such numbers."""
    reported = {name for other in evaluation.published for name in other["scores"]}
    return bool(set(row["scores"]) & names) or (not row["scores"] and row["average"] is not None and bool(reported & names))
