"""The loss of the worked answers: what a model thinks of them, beside what it answers.

    FOLDER/likelihood.jsonl      beside the samples, a line per row: {row, loss, tokens}; what is there is not computed again

The loss of a row is the sum of -log p over the answer's tokens, its end token included. Feedback inside of a worked answer of
several turns does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.requests import Engine
from unify_posttrain.evaluation.store import Losses
from unify_posttrain.experience.transcript import TurnFrame, replay
from unify_posttrain.runs.files import write_text

FILE = "likelihood.jsonl"
BLOCK = 64  # rows that a kill may lose


def check_targets(problems: Sequence[Problem], name: str) -> None:
    """Refuse a benchmark without worked answers, or with pictures, without which a loss would be another one.

    Raises:
        ValueError: names benchmark and row.
    """
    absent = [problem.row for problem in problems if problem.target is None]
    if absent:
        raise ValueError(
            f"benchmark {name}, row {absent[0]} (and {len(absent) - 1} more) has no worked answer (column target), so it has no "
            "loss; set likelihood=false, or leave the benchmark out"
        )
    seen = [problem.row for problem in problems if problem.pictures]
    if seen:
        raise ValueError(
            f"benchmark {name}, row {seen[0]} (and {len(seen) - 1} more) shows pictures, and losses are measured of text alone; "
            "set likelihood=false, or leave the benchmark out"
        )


def measure(
    folder: Path,
    problems: Sequence[Problem],
    prompts: Mapping[int, Sequence[int]],
    tokenizer: Any,
    template: ChatTemplate,
    engine: Callable[[], Engine],
) -> Losses:
    """The loss of every row with a prompt, computed where the folder has none.

    Args:
        folder: of the samples.
        problems: with targets.
        prompts: ids by row.
        tokenizer, template: of the model.
        engine: gives the engine; called only if something is missing.

    Raises:
        ValueError: a target that is no list of messages, or a template that one of several turns cannot be laid out with.
    """
    path = folder / FILE
    found = _read(path)
    missing = [problem for problem in problems if problem.row in prompts and problem.row not in found]

    def encode(text: str) -> list[int]:
        return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    frame = TurnFrame((), ())
    if any(len(problem.target or ()) > 1 for problem in missing):
        frame = TurnFrame.from_template(template, encode, str(tokenizer.eos_token))
    for start in range(0, len(missing), BLOCK):
        block = missing[start : start + BLOCK]
        laid = [replay(problem.target or [], frame, encode, tokenizer.eos_token_id, tokenizer.eos_token) for problem in block]
        log_probs = engine().log_probs([(prompts[problem.row], each.ids) for problem, each in zip(block, laid, strict=True)])
        new = {}
        for problem, each, values in zip(block, laid, log_probs, strict=True):
            counted = [value for value, counts in zip(values, each.mask, strict=True) if counts]
            new[problem.row] = (-sum(counted), len(counted))
        found |= new
        lines = (json.dumps({"row": row, "loss": loss, "tokens": tokens}) + "\n" for row, (loss, tokens) in sorted(found.items()))
        write_text(path, "".join(lines))
    return {row: found[row] for row in sorted(prompts)}


def _read(path: Path) -> Losses:
    """The rows that are there; the file is written as a whole."""
    if not path.is_file():
        return {}
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(entry["row"]): (float(entry["loss"]), int(entry["tokens"])) for entry in entries}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, the losses are then computed again") from None
