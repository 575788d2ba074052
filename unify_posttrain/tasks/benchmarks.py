"""Published test sets, each in a file of its own: `<folder>/<set>.parquet`, `<set>.manifest.json` beside it.

    python -m unify_posttrain.prepare task=benchmarks 'prepare.task.sets=[aime24,math500]'

| set          | source on the hub (default)                | columns read                                              |
|--------------|--------------------------------------------|-----------------------------------------------------------|
| aime24       | HuggingFaceH4/aime_2024                    | problem, answer; id                                       |
| aime25       | math-ai/aime25 or yentinglin/aime_2025     | problem, answer; id                                       |
| amc          | AI-MO/aimo-validation-amc                  | problem, answer (142.0 is the integer 142); id            |
| math500      | HuggingFaceH4/MATH-500                     | problem, answer; unique_id, subject, level                |
| minerva      | math-ai/minervamath                        | question, answer                                          |
| olympiad     | Hothan/OlympiadBench, OE_TO_maths_en_COMP  | question, final_answer (list); context, id, subfield      |
| arc_c        | allenai/ai2_arc, ARC-Challenge             | question, choices {text, label}, answerKey; id            |
| gpqa_diamond | Idavidrein/gpqa, gpqa_diamond (gated)      | Question, Correct Answer, Incorrect Answer 1-3; Record ID, Subdomain |
| mmlu_pro     | TIGER-Lab/MMLU-Pro                         | question, options, answer, answer_index; question_id, category |

Columns after the semicolon are kept if they are there. The ground truth of a choice is its letter. GPQA's choices are published
with the right one first; they are shuffled by (seed, question), so that the order depends on no other row.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.options import read_options
from unify_posttrain.preparation.pipeline import Recipe, prepare
from unify_posttrain.preparation.prompts import fill, resolve_template
from unify_posttrain.preparation.rows import MALFORMED, NO_GROUND_TRUTH, Candidate, Reader, Row, RowFault
from unify_posttrain.preparation.store import MANIFEST

CATALOG_KEYS = ("source", "config_name", "revision", "split")
GPQA_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


@dataclass(frozen=True)
class Item:
    """A test question.

    Attributes:
        question: its text.
        answer: the ground truth; of a choice, the number of the right one.
        choices: texts of the choices, in order; empty for an open question.
    """

    question: str
    answer: str | int
    choices: Sequence[str] = ()


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write the sets that `prepare.task.sets` names.

    Returns:
        Set -> its file.

    Raises:
        ValueError: an unknown set, or what :func:`pipeline.prepare` refuses.
    """
    shared = {key: value for key, value in settings.items() if key not in ("sets", "catalog", "choice_template")}
    absent = sorted({"sets", "catalog", "choice_template"} - set(settings))
    if absent:
        raise ValueError(f"prepare.task: missing keys {absent}; conf/task/benchmarks.yaml lists them")
    names, catalog = settings["sets"], settings["catalog"]
    if isinstance(names, str) or not names:
        raise ValueError(f"prepare.task.sets={names!r}: give a list of {', '.join(READERS)}")
    for name in names:
        if name not in READERS or name not in catalog:
            raise ValueError(f"prepare.task.sets: {name!r} is unknown; choose from {', '.join(READERS)}")
        if set(catalog[name]) != set(CATALOG_KEYS):
            raise ValueError(f"prepare.task.catalog.{name}: give exactly the keys {', '.join(CATALOG_KEYS)}")
    paths = {}
    for name in names:
        options, _ = read_options({**shared, **catalog[name], "validation_split": None, "validation_rows": 0})
        template = resolve_template("choice_template", settings["choice_template"], options.prompts, ("question", "choices"))
        if template is None:
            raise ValueError("prepare.task.choice_template is not set; choices must be shown somewhere: use choice")
        readers = tuple(_reader(name, columns, read, options.seed, template) for columns, read in READERS[name])
        own = {"choice_template": template}
        recipe = Recipe(readers, file=name, label="test", manifest=f"{name}.{MANIFEST}", settings=own)
        paths[name] = prepare(Path(folder), options, recipe)[name]
    return paths


def _reader(name: str, columns: tuple[str, ...], read: Callable[[Row, int], Item], seed: int, template: str) -> Reader:
    def candidate(row: Row) -> Candidate:
        item = read(row, seed)
        question, answer = item.question, item.answer
        if item.choices:
            letters = ascii_uppercase[: len(item.choices)]
            listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, item.choices, strict=True))
            question, answer = fill(template, question=question, choices=listed), letters[int(answer)]
        return Candidate(
            data_source=name,
            prompt=[{"role": "user", "content": question}],
            ground_truth=str(answer),
            ability="multiple_choice" if item.choices else "math",
            id=_first(row, "id", "unique_id", "Record ID", "question_id"),
            subject=_first(row, "subject", "subfield", "Subdomain", "category"),
            level=_first(row, "level"),
        )

    return Reader(columns, candidate)


def _first(row: Row, *columns: str) -> str | None:
    """The first of these columns that the row has a value in."""
    return next((found for column in columns if (found := rows.optional_text(row.get(column))) is not None), None)


def _open_question(question: str, answer: str, integers: bool = False) -> Callable[[Row, int], Item]:
    def read(row: Row, _seed: int) -> Item:
        truth = rows.ground_truth(row[answer], answer)
        return Item(rows.text(row[question], question), _without_zeros(truth) if integers else truth)

    return read


def _without_zeros(answer: str) -> str:
    """AIME writes 033 for 33; what is no integer stays as it is."""
    return (answer.lstrip("0") or "0") if re.fullmatch(r"[0-9]+", answer) else answer


def _olympiad(row: Row, _seed: int) -> Item:
    """Several answers of one problem are all asked for: they make one ground truth, with commas between."""
    answers = row["final_answer"]
    if isinstance(answers, str):
        answers = [answers]
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise RowFault(
            NO_GROUND_TRUTH if not answers else MALFORMED, "final_answer", f"must be a list of texts, not {str(answers)[:60]!r}"
        )
    truth = rows.ground_truth(", ".join(answer.strip().strip("$") for answer in answers), "final_answer")
    context = row.get("context")
    question = rows.text(row["question"], "question")
    return Item(f"{context.strip()}\n\n{question}" if isinstance(context, str) and context.strip() else question, truth)


def _arc(row: Row, _seed: int) -> Item:
    choices, key = row["choices"], row["answerKey"]
    labels, texts = (choices.get("label"), choices.get("text")) if isinstance(choices, Mapping) else (None, None)
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise RowFault(MALFORMED, "choices", f"must hold as many labels as texts, not {str(choices)[:60]!r}")
    if key not in labels:
        raise RowFault(NO_GROUND_TRUTH if not key else MALFORMED, "answerKey", f"{key!r} is none of the labels {labels}")
    return Item(rows.text(row["question"], "question"), labels.index(key), _choices(texts, "choices"))


def _gpqa(row: Row, seed: int) -> Item:
    question = rows.text(row["Question"], "Question")
    choices = _choices([row["Correct Answer"], *(row[column] for column in GPQA_WRONG)], "Correct Answer")
    order = list(range(len(choices)))
    random.Random(f"{seed}:{question}").shuffle(order)  # a text seeds the same on every machine
    return Item(question, order.index(0), [choices[number].strip() for number in order])


def _mmlu_pro(row: Row, _seed: int) -> Item:
    options, index = row["options"], row["answer_index"]
    choices = _choices(options if isinstance(options, list) else [], "options")
    if type(index) is not int or not 0 <= index < len(choices) or row["answer"] != ascii_uppercase[index]:
        raise RowFault(MALFORMED, "answer_index", f"{index!r} and answer {row['answer']!r} name no choice of {len(choices)}")
    return Item(rows.text(row["question"], "question"), index, choices)


def _choices(texts: Sequence[Any], column: str) -> list[str]:
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise RowFault(MALFORMED, column, f"must hold 2 to {len(ascii_uppercase)} choices, not {len(texts)}")
    return [rows.text(choice, column) for choice in texts]


# Set -> (columns, reader) of each schema that it is published in.
READERS: dict[str, tuple[tuple[tuple[str, ...], Callable[[Row, int], Item]], ...]] = {
    **{
        name: ((("problem", "answer"), _open_question("problem", "answer", integers=True)),) for name in ("aime24", "aime25", "amc")
    },
    "math500": ((("problem", "answer"), _open_question("problem", "answer")),),
    "minerva": ((("question", "answer"), _open_question("question", "answer")),),
    "olympiad": ((("question", "final_answer"), _olympiad),),
    "arc_c": ((("question", "choices", "answerKey"), _arc),),
    "gpqa_diamond": ((("Question", "Correct Answer", *GPQA_WRONG), _gpqa),),
    "mmlu_pro": ((("question", "options", "answer", "answer_index"), _mmlu_pro),),
}
