"""How fast `prepare` and `evaluate` are: rows per second of whole commands, beside those of another version of the package.

    python -m tests.benchmarks.commands --home outputs                       # after a quick start, whose model and data it uses
    python -m tests.benchmarks.commands --home outputs --against CHECKOUT    # and the same commands of another version

`prepare` reads rows in the columns of OpenR1-Math, every one with an answer of its own: as they are, with lengths in tokens, and
with every answer put to the grader. `evaluate` answers the sums of the quick start, several times each, with transformers.
Versions alternate. Imports and the building of the engine are part of a command, so few rows make any command look slow.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean

from tests.devices import NO_GPU

ROOT = Path(__file__).resolve().parents[2]
SUMS = 600  # rows of the quick start's test file


def write_rows(path: Path, rows: int, words: int) -> None:
    """Problems with one complete and verified trace each."""
    draw = random.Random(0)
    vocabulary = ["let", "x", "be", "the", "sum", "of", "two", "numbers", "so", "we", "have", "12", "+", "=", "therefore", "7"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            answer = rf"\frac{{{2 * number + 1}}}{{2}}" if number % 2 else str(number)
            trace = f"<think>\n{' '.join(draw.choices(vocabulary, k=words))}\n</think>\n\n\\boxed{{{answer}}}"
            row = {
                "problem": f"Find the number {number} of {' '.join(draw.choices(vocabulary, k=30))}.",
                "answer": answer,
                "uuid": str(number),
                "source": "made",
                "generations": [trace],
                "is_reasoning_complete": [True],
                "correctness_math_verify": [True],
            }
            file.write(json.dumps(row) + "\n")


def commands(rows: Path, model: Path, samples: int) -> dict[str, list[str]]:
    """What is timed, by name."""
    prepare = [
        "prepare", "task=openr1_math", "model=qwen3_4b", f"prepare.task.source={rows}", "prepare.task.validation_rows=0",
    ]  # fmt: skip
    evaluate = ["evaluate", f"model={model}", "benchmarks=[arithmetic]", "engine=hf", f"n={samples}", "max_response_length=64"]
    return {
        "prepare": [*prepare, "prepare.task.tokenizer=null", "prepare.task.gold_version=null"],
        "prepare, lengths": [*prepare, f"prepare.task.tokenizer={model}", "prepare.task.gold_version=null"],
        "prepare, answers graded": [*prepare, "prepare.task.tokenizer=null", "prepare.task.gold_version=6"],
        "evaluate": [*evaluate, "temperature=1.0", "max_prompt_length=64", "dtype=float32"],
    }


def timed(command: list[str], package: Path, home: Path) -> float:
    """Seconds of a command of a version of the package.

    Raises:
        RuntimeError: it failed; holds the end of its output.
    """
    environment = {**os.environ, "PYTHONPATH": str(package), "UNIFY_HOME": str(home), "CUDA_VISIBLE_DEVICES": NO_GPU}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"unify_posttrain.{command[0]}", *command[1:]],
        cwd=package, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {package}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="UNIFY_HOME of a quick start")
    parser.add_argument("--against", type=Path, help="a checkout of another version")
    parser.add_argument("--rows", type=int, default=5000, help="rows of `prepare`")
    parser.add_argument("--words", type=int, default=1000, help="words of a trace")
    parser.add_argument("--samples", type=int, default=8, help="answers to each sum")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    packages = {**({"before": options.against.resolve()} if options.against else {}), "now": ROOT}
    home = options.home.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        rows = Path(temporary) / "rows.jsonl"
        write_rows(rows, options.rows, options.words)
        head = [f"{name}, rows per second (seconds)" for name in packages]
        sys.stdout.write(f"| command | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}\n")
        for name, command in commands(rows, home / "models" / "tiny_qwen2", options.samples).items():
            seconds: dict[str, list[float]] = {version: [] for version in packages}
            for number in range(options.rounds):
                for version, package in packages.items():
                    own = (
                        Path(temporary) / f"{version}-{number}-{name.replace(', ', '-').replace(' ', '-')}"
                    )  # nothing is found done
                    place = [f"output={own}"] if name == "evaluate" else [f"prepare.task.folder={own}"]
                    seconds[version].append(timed([*command, *place], package, home))
            count = SUMS * options.samples if name == "evaluate" else options.rows
            cells = [f"{count / fmean(each):.0f} ({', '.join(f'{second:.1f}' for second in each)})" for each in seconds.values()]
            sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
