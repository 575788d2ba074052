"""Carry an evaluation out: prompts, samples, verdicts, results. What is on disk already is not done again."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem, files_digest, read_problems
from unify_posttrain.evaluation.engines import Engine, EngineSettings, Output, Request, start_engine
from unify_posttrain.evaluation.models import Model, check_folder, local_folder
from unify_posttrain.evaluation.prompts import chat_template, load_tokenizer, prompts_digest, render
from unify_posttrain.evaluation.protocols import Benchmark
from unify_posttrain.evaluation.results import Measured, as_results
from unify_posttrain.evaluation.rewards import Judge, check_ground_truths, check_reward, load_extractor, load_reward
from unify_posttrain.evaluation.seeing import Sight, sight_of
from unify_posttrain.evaluation.settings import Evaluation
from unify_posttrain.evaluation.store import Sample, SampleStore
from unify_posttrain.output import described
from unify_posttrain.redaction import redacted
from unify_posttrain.rollout.seeds import rollout_seeds
from unify_posttrain.runs.files import write_text
from unify_posttrain.untrusted.weights import fingerprint

if TYPE_CHECKING:
    from unify_posttrain.evaluation.episodes import EpisodePlayer

logger = logging.getLogger(__name__)

JSON, MARKDOWN, DURATIONS = "results.json", "results.md", "durations.jsonl"
Starter = Callable[[Path, EngineSettings], Engine]
Advance = Callable[[int], None]


def conduct(evaluation: Evaluation, start: Starter = start_engine) -> dict[str, Any]:
    """Evaluate every model on every benchmark and write the results.

    Args:
        evaluation: what to do.
        start: loads a model; called once per model, and only if one of its samples is missing.

    Returns:
        the content of results.json; equal for an evaluation that was killed and continued and for one that was not.

    Raises:
        ValueError: a file, model, reward function or setting that cannot be used.
    """
    from unify_posttrain.evaluation.plots import draw
    from unify_posttrain.evaluation.tables import markdown

    problems = {
        benchmark.name: read_problems(
            benchmark.files, benchmark.max_samples, benchmark.sample_seed, benchmark.sources, evaluation.likelihood
        )
        for benchmark in evaluation.benchmarks
    }
    for benchmark in evaluation.benchmarks:
        if evaluation.likelihood:
            from unify_posttrain.evaluation.likelihood import check_targets

            check_targets(problems[benchmark.name], benchmark.name)
        check_ground_truths(benchmark.reward, benchmark.name, problems[benchmark.name])
        check_reward(benchmark.reward, evaluation.protection, problems[benchmark.name])
    measured = [part for model in evaluation.models for part in _evaluate_model(evaluation, model, problems, start)]
    results = as_results(evaluation, measured)
    write_text(evaluation.output / JSON, json.dumps(redacted(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    figures = draw(results, evaluation.output)
    write_text(evaluation.output / MARKDOWN, markdown(results, [path.name for path in figures]))
    return results


def _evaluate_model(evaluation: Evaluation, model: Model, problems: dict[str, list[Problem]], start: Starter) -> list[Measured]:
    folder = _model_folder(evaluation, model)
    check_folder(folder, f"model={model.path}", evaluation.allow_pickle)
    print_of_model = fingerprint(folder)
    tokenizer = load_tokenizer(folder, evaluation.prompts.template)
    engine = _LazyEngine(lambda: start(folder, evaluation.engine))
    measured = []
    try:
        for benchmark in evaluation.benchmarks:
            rows = problems[benchmark.name]
            template, name = chat_template(tokenizer, evaluation.prompts), f"benchmark {benchmark.name}"
            sight = sight_of(folder, template, rows, evaluation.engine.name, name)
            prompts = render(tokenizer, rows, evaluation.prompts, name, sight)
            digest = prompts_digest(prompts) if sight is None else sight.digest(prompts_digest(prompts), rows)
            store = SampleStore(
                evaluation.output / "samples" / model.label / benchmark.name,
                _identity(evaluation, model, benchmark, print_of_model, digest),
                evaluation.overwrite,
            )
            player = _player(evaluation, benchmark, tokenizer, template, prompts)
            requests = build_requests(evaluation, model, benchmark, prompts)
            _fill(evaluation, model, benchmark, rows, requests, store, engine, tokenizer, player, sight)
            losses = None
            if evaluation.likelihood:
                from unify_posttrain.evaluation.likelihood import measure

                losses = measure(store.folder, rows, prompts, tokenizer, template, engine.get)
            measured.append(Measured(model, print_of_model, benchmark, store.ordered(), rows, prompts.keys(), losses))
    finally:
        engine.close()
    return measured


def _model_folder(evaluation: Evaluation, model: Model) -> Path:
    if evaluation.run is None or not model.step:
        return local_folder(model.path)
    from unify_posttrain.evaluation.exporting import cached_export

    return cached_export(evaluation.run, model.step, evaluation.export_dtype)


def _player(
    evaluation: Evaluation, benchmark: Benchmark, tokenizer: Any, template: ChatTemplate, prompts: dict[int, list[int]]
) -> EpisodePlayer | None:
    """What plays the benchmark in turns; None if its answers are scored one by one."""
    if benchmark.environment is None:
        return None
    from unify_posttrain.evaluation.episodes import EpisodePlayer

    limits = evaluation.max_response_length, evaluation.engine.max_context
    player = EpisodePlayer(benchmark.environment, tokenizer, template, *limits, engine=evaluation.engine.name)
    player.check(prompts, benchmark.name)
    return player


def _identity(evaluation: Evaluation, model: Model, benchmark: Benchmark, model_digest: str, prompts: str) -> dict[str, Any]:
    """What the samples depend on; those of other settings are never mixed in."""
    return {
        "model": model_digest,
        "benchmark": files_digest(benchmark.files),
        "prompts": prompts,
        "sampling": {
            **{key: getattr(benchmark, key) for key in ("n", "temperature", "top_p", "top_k")},
            "max_response_length": evaluation.max_response_length,
            "max_context": evaluation.engine.max_context,
            "seed": evaluation.seed,
            "step": model.step or 0,
        },
        **({} if benchmark.environment is None else {"environment": benchmark.environment}),
        **({} if benchmark.sources is None else {"sources": benchmark.sources}),
        "engine": {
            "name": evaluation.engine.name,
            "dtype": evaluation.engine.dtype,
            **({"override_config": evaluation.engine.override_config} if evaluation.engine.name == "hf" else {}),
        },
        "reward": {"function": benchmark.reward, "answers": benchmark.answers, "correct_threshold": evaluation.threshold},
    }


def build_requests(evaluation: Evaluation, model: Model, benchmark: Benchmark, prompts: dict[int, list[int]]) -> list[Request]:
    """All requests of a benchmark in the order in which they are generated: n per prompt, with the seeds of a validation at the
    model's step."""
    rows = np.repeat(sorted(prompts), benchmark.n)
    seeds = rollout_seeds(evaluation.seed, model.step or 0, rows, validate=True)
    requests = [
        Request(
            row=int(row),
            number=position % benchmark.n,
            prompt_ids=tuple(prompts[int(row)]),
            temperature=benchmark.temperature,
            top_p=benchmark.top_p,
            top_k=benchmark.top_k,
            max_tokens=evaluation.max_response_length,
            seed=int(seed),
        )
        for position, (row, seed) in enumerate(zip(rows, seeds, strict=True))
    ]
    return sorted(requests, key=lambda request: (*request.order, request.row, request.number))


def _fill(
    evaluation: Evaluation,
    model: Model,
    benchmark: Benchmark,
    problems: Sequence[Problem],
    requests: Sequence[Request],
    store: SampleStore,
    engine: _LazyEngine,
    tokenizer: Any,
    player: EpisodePlayer | None,
    sight: Sight | None,
) -> None:
    """Generate and judge what the store lacks, chunk by chunk. Chunks are cut from the whole list, so that a continued evaluation
    decodes the same batches as an uninterrupted one, but for the chunk in which it was killed."""
    size = evaluation.chunk_size
    chunks = [requests[start : start + size] for start in range(0, len(requests), size)]
    missing = [[request for request in chunk if (request.row, request.number) not in store.samples] for chunk in chunks]
    total = sum(map(len, missing))
    if not total:
        return
    by_row = {problem.row: problem for problem in problems}
    began, clock = datetime.now(timezone.utc), time.monotonic()
    with ExitStack() as stack:
        judge = None if player is not None else stack.enter_context(closing(_judge(evaluation, benchmark)))
        advance = stack.enter_context(_progress(f"{model.label} on {benchmark.name}", len(requests), len(requests) - total))
        for asked in filter(None, missing):
            chunk = asked if sight is None else sight.shown(asked, by_row)
            if player is not None:
                store.append(player.play(chunk, [by_row[request.row] for request in chunk], engine.get().generate))
            elif judge is not None:
                store.append(_judged(chunk, engine.get().generate(chunk), by_row, tokenizer, judge))
            advance(len(chunk))
    _note_duration(evaluation.output, model, benchmark, total, began.isoformat(timespec="seconds"), time.monotonic() - clock)


def _judge(evaluation: Evaluation, benchmark: Benchmark) -> Judge:
    reward = load_reward(benchmark.reward, evaluation.protection, evaluation.threads)
    extractor = partial(load_extractor, benchmark.answers)
    return Judge(reward, extractor, evaluation.threads, evaluation.threshold, evaluation.protection)


def _judged(
    requests: Sequence[Request], outputs: Sequence[Output], by_row: dict[int, Problem], tokenizer: Any, judge: Judge
) -> list[Sample]:
    rows = [by_row[request.row] for request in requests]
    responses = [tokenizer.decode(output.token_ids, skip_special_tokens=True) for output in outputs]
    verdicts = judge.judge(rows, responses)
    return [
        Sample(
            row=request.row,
            number=request.number,
            source=problem.source,
            seed=request.seed,
            response=response,
            tokens=len(output.token_ids),
            truncated=output.truncated,
            score=verdict.score,
            correct=int(verdict.correct),
            answer=verdict.answer,
            gold_ok=int(verdict.gold_ok),
        )
        for request, problem, output, response, verdict in zip(requests, rows, outputs, responses, verdicts, strict=True)
    ]


class _LazyEngine:
    """An engine that is loaded when first asked for."""

    def __init__(self, start: Callable[[], Engine]) -> None:
        self._start = start
        self._engine: Engine | None = None

    def get(self) -> Engine:
        if self._engine is None:
            self._engine = self._start()
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


@contextmanager
def _progress(description: str, total: int, done: int) -> Iterator[Advance]:
    """A bar on a terminal, a line in the log elsewhere."""
    if not sys.stderr.isatty():
        logger.info("%s: %d of %d samples are missing", description, total - done, total)
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(described(description), total=total, completed=done)
        yield lambda count: bar.advance(task, count)


def _note_duration(output: Path, model: Model, benchmark: Benchmark, samples: int, began: str, seconds: float) -> None:
    """Times stand in a file of their own: results.json must not depend on them."""
    entry = {"began": began, "seconds": round(seconds, 3), "model": model.label, "benchmark": benchmark.name, "samples": samples}
    with open(output / DURATIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps(redacted(entry)) + "\n")
