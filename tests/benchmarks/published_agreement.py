r"""Do our versions of the reward give the verdicts of the published ones? 500 generated responses, every disagreement classed.

    python -m tests.benchmarks.published_agreement [--responses 500] [--seed 0] [--show 8]

Expect a minute. Answers and ground truths are those of the argued pairs and of the collected cases, put into responses as
models write them. The published rules stand here as they are described, by the libraries that they call:

    3, 4    `math_verify.metric.math_metric`, LaTeX and plain numbers (LUFFY, ReLIFT, open-r1)
    0, 1, 2 equal after math-verify's normalisation of LaTeX, or equal for sympy
    6, 7    as 0, or math-verify says so
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import math_verify.parser
import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from math_verify.metric import math_metric
from rich.console import Console
from rich.table import Table

from tests.rewards.answer_pairs import ALL
from unify_posttrain.rewards import extraction
from unify_posttrain.rewards.answers.comparison import same
from unify_posttrain.rewards.answers.reader import read
from unify_posttrain.rewards.grading import grade

CASES = Path(__file__).parents[1] / "rewards" / "answers" / "cases.jsonl"
FORMS = (
    "<think>I add them up.</think> The answer is $\\boxed{{{0}}}$.",
    "<think>First \\boxed{{7}}? No.</think>\n\\[\\boxed{{{0}}}\\]",
    "I think it is $1$.</think> Thus $\\boxed{{{0}}}$",
    "We get \\boxed{{{0}}}.",
    "<think>hm</think> The final answer is ${0}$.",
    "<think>hm</think> The final answer is {0}.",
    "So \\boxed{{3}}, that is, \\boxed{{{0}}}",
)
CONFIG = NormalizationConfig(basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False)
OURS, PUBLISHED = (
    math_verify.parser.parse_expr_cached,
    math_verify.parser.lru_cache(maxsize=20)(lambda text: math_verify.parser.parse_expr(text, evaluate=False)),
)
published = math_metric((LatexExtractionConfig(),), (ExprExtractionConfig(), LatexExtractionConfig()))
logging.getLogger("math_verify").setLevel(logging.CRITICAL)


def by_metric(text: str | None, gold: str) -> bool:
    """As LUFFY and ReLIFT call math-verify."""
    math_verify.parser.parse_expr_cached = PUBLISHED  # the package puts a parser that evaluates nothing in its place
    try:
        return text is not None and bool(published([f"\\boxed{{{gold}}}"], [text])[0])
    except Exception:  # the reward catches everything, and scores 0
        return False
    finally:
        math_verify.parser.parse_expr_cached = OURS


def by_symbols(answer: str | None, gold: str) -> bool:
    """Equal strings after normalisation, or equal for sympy."""
    if answer is None:
        return False
    texts = [normalize_latex(text, CONFIG).replace(" ", "") for text in (answer, gold)]
    if texts[0] == texts[1]:
        return True
    try:
        return bool(sympy.simplify(latex2sympy(texts[0]) - latex2sympy(texts[1])) == 0)
    except Exception:  # what cannot be read is not equal
        return False


def by_all(answer: str | None, gold: str) -> bool:
    """Strings, symbols, or math-verify."""
    if answer is None:
        return False
    return by_symbols(answer, gold) or bool(verify(parse(f"${gold}$"), parse(f"${answer}$")))


def rules(text: str, gold: str) -> dict[int, bool]:
    """The published verdict of every version."""
    boxed = extraction.last_boxed
    thought = extraction.after_first_think(text)
    of_thought = None if thought is None else boxed(thought)
    return {
        0: by_symbols(of_thought, gold),
        2: by_symbols(boxed(text), gold),
        3: by_metric(extraction.between_thinks(text), gold),
        4: by_metric(text, gold),
        6: by_all(boxed(text), gold),
        7: by_all(None if (after := extraction.after_last_think(text)) is None else boxed(after), gold),
    }


def classed(text: str, gold: str, ours: bool) -> str:
    """Why a verdict of ours differs from the published one."""
    answer = extraction.last_boxed(text) or ""
    verdict = same(read(answer), read(gold))
    if ours:
        return "typed reader proves equality, the libraries cannot read it" if verdict else "read by math-verify alone"
    if verdict is False:
        return f"typed reader proves inequality ({type(read(answer)).__name__} against {type(read(gold)).__name__})"
    return "typed reader cannot tell" if verdict is None else "not the same scope"


def responses(number: int, draw: random.Random) -> list[tuple[str, str]]:
    """Responses and ground truths."""
    pairs = [(answer, gold) for _, answer, gold, _ in ALL if answer.strip()]
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        answer = extraction.last_boxed(case["response"])
        if answer and "\\boxed" not in case["ground_truth"]:
            pairs.append((answer, case["ground_truth"]))
    return [(draw.choice(FORMS).format(answer), gold) for answer, gold in draw.sample(pairs, number)]


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=8, help="examples of every class")
    arguments = parser.parse_args()
    agree: Counter[int] = Counter()
    classes: dict[tuple[int, str, str], list[str]] = {}
    drawn = responses(arguments.responses, random.Random(arguments.seed))
    for text, gold in drawn:
        for version, theirs in rules(text, gold).items():
            try:
                ours = grade(text, gold, version).acc == 1.0
            except TimeoutError:
                ours = False
            agree[version] += ours is theirs
            if ours is not theirs:
                which = "ours alone accepts" if ours else "published alone accepts"
                classes.setdefault((version, which, classed(text, gold, ours)), []).append(f"{text!r} | {gold!r}")
    console, table = Console(width=140), Table("version", f"of {len(drawn)}", "agree")
    for version, count in sorted(agree.items()):
        table.add_row(str(version), str(count), f"{count / len(drawn):.1%}")
    console.print(table)
    show: Callable[[str], None] = lambda line: console.print(line, markup=False, soft_wrap=True)  # noqa: E731 - a short name
    for (version, which, why), found in sorted(classes.items()):
        show(f"version {version}, {which}, {why}: {len(found)}")
        for line in found[: arguments.show]:
            show(f"    {line}")


if __name__ == "__main__":
    main()
