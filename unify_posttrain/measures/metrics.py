"""From samples to metrics of a source. The same code serves the evaluation command and validation during training."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from unify_posttrain.measures.statistics import avg_at_k, maj_at_k, pass_at_k, powers_of_two

PREFIX = "val-eval"


@dataclass
class ProblemSamples:
    """All samples of one problem, in their order: whether each is correct, and its canonical answer (None or "": none found)."""

    correct: list[bool] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)

    @property
    def average(self) -> float:
        return avg_at_k(self.correct)

    @property
    def majority(self) -> float:
        return maj_at_k(self.answers, self.correct)

    def passes(self, k: int) -> float:
        return pass_at_k(len(self.correct), sum(self.correct), k)


@dataclass(frozen=True)
class SourceMetrics:
    """Metrics of one source: means over its problems.

    Attributes:
        problems: how many count; `excluded` more have a ground truth that cannot be used.
        n: samples per problem, the fewest if they differ.
        average: avg@n, which is the accuracy if n is 1.
        passes: k -> pass@k, for k = 1, 2, 4, … and n.
        majority: maj@n.
        no_answer: share of samples in which no answer was found.
    """

    problems: int
    excluded: int
    n: int
    average: float
    passes: dict[int, float]
    majority: float
    no_answer: float


def by_source(
    sources: Sequence[str],
    problems: Sequence[Hashable],
    correct: Sequence[bool],
    answers: Sequence[str | None],
    usable: Sequence[bool],
) -> tuple[dict[str, dict[Hashable, ProblemSamples]], dict[str, int]]:
    """Samples by source and problem, in order of first occurrence, and how many problems each source loses.

    Args:
        sources, problems, correct, answers: (B,) per sample. A problem belongs to its source: equal ids in two sources differ.
        usable: (B,) False where the ground truth cannot be used; a problem is left out if any of its samples says so.

    Raises:
        ValueError: lengths differ.
    """
    lengths = {len(column) for column in (sources, problems, correct, answers, usable)}
    if len(lengths) != 1:
        raise ValueError(f"columns of samples have lengths {sorted(lengths)}; give one entry per sample in each")
    unusable = {(source, problem) for source, problem, fine in zip(sources, problems, usable, strict=True) if not fine}
    grouped: dict[str, dict[Hashable, ProblemSamples]] = {source: {} for source in dict.fromkeys(sources)}
    for source, problem, right, answer in zip(sources, problems, correct, answers, strict=True):
        if (source, problem) not in unusable:
            samples = grouped[source].setdefault(problem, ProblemSamples())
            samples.correct.append(bool(right))
            samples.answers.append(answer)
    excluded = {source: sum(1 for other, _ in unusable if other == source) for source in grouped}
    return grouped, excluded


def source_metrics(problems: Sequence[ProblemSamples], excluded: int) -> SourceMetrics | None:
    """Metrics of the problems of one source; None if there are none.

    pass@k is given for k up to the fewest samples of a problem, so that each k is a mean over the same problems.
    """
    if not problems:
        return None
    n = min(len(problem.correct) for problem in problems)

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    answers = [answer for problem in problems for answer in problem.answers]
    return SourceMetrics(
        problems=len(problems),
        excluded=excluded,
        n=n,
        average=mean([problem.average for problem in problems]),
        passes={k: mean([problem.passes(k) for problem in problems]) for k in powers_of_two(n)},
        majority=mean([problem.majority for problem in problems]),
        no_answer=sum(1 for answer in answers if not answer) / len(answers),
    )


def validation_metrics(
    sources: Sequence[str],
    problems: Sequence[Hashable],
    scores: Sequence[float],
    answers: Sequence[str | None] | None = None,
    usable: Sequence[float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Metrics of a validation during training, per source.

    Args:
        sources: (B,) `data_source` of each sample.
        problems: (B,) id of each sample's problem (uid or row_id).
        scores: (B,) `acc` of each sample, or its score where the reward gives no `acc`.
        answers: (B,) the reward's `pred`; None if it gives none: then nothing is said about majority and missing answers.
        usable: (B,) the reward's `gold_ok`; None: all are.
        threshold: of a correct sample, `fusion.success_threshold`.

    Returns:
        {"val-eval/SOURCE/avg@n", "…/pass@k" for k = 1, 2, 4, … and n, "…/problems", "…/excluded"} and, with `answers`,
        {"…/maj@n", "…/no_answer"}. A source of which no problem can be used has "problems" (0) and "excluded" alone.

    Raises:
        ValueError: lengths differ.
    """
    grouped, excluded = by_source(
        sources,
        problems,
        [float(score) >= threshold for score in scores],
        [None] * len(sources) if answers is None else answers,
        [True] * len(sources) if usable is None else [bool(value) for value in usable],
    )
    metrics: dict[str, float] = {}
    for source, samples in grouped.items():
        where = f"{PREFIX}/{source}"
        found = source_metrics(list(samples.values()), excluded[source])
        metrics[f"{where}/problems"], metrics[f"{where}/excluded"] = float(len(samples)), float(excluded[source])
        if found is None:
            continue
        metrics[f"{where}/avg@{found.n}"] = found.average
        metrics.update({f"{where}/pass@{k}": value for k, value in found.passes.items()})
        if answers is not None:
            metrics[f"{where}/maj@{found.n}"], metrics[f"{where}/no_answer"] = found.majority, found.no_answer
    return metrics
