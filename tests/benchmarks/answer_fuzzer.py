r"""Mutations of pairs that are known to be equal: does the grader accept what no longer is, or refuse what still is?

    python -m tests.benchmarks.answer_fuzzer [--seconds 60] [--seed 0]

Takes the equal ones of the argued pairs (tests/rewards/answer_pairs.py) and of the cases (tests/rewards/answers/cases.jsonl). A
mutation of layout must leave an answer accepted. A mutation of meaning (a digit, a sign, the case of a letter, the order of a
tuple, two swapped values, a bracket, a relation) must not be accepted, unless it says the same after all, as \frac{0}{7} does for
\frac{0}{5}: what is accepted is printed, to be looked at. Prints how many pairs were tried, every finding once, and the slowest
answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.rewards.answer_pairs import ALL
from unify_posttrain.rewards import extraction
from unify_posttrain.rewards.equality import equal_answers

CASES = Path(__file__).parents[1] / "rewards" / "answers" / "cases.jsonl"
Mutation = Callable[[str, random.Random], str | None]


def equal_pairs() -> list[tuple[str, str]]:
    """Answers and ground truths that are equal."""
    pairs = [(answer, gold) for _, answer, gold, verdict in ALL if verdict]
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        answer = extraction.last_boxed(case["response"])
        if case["expected"] and answer and "\\boxed" not in case["ground_truth"]:
            pairs.append((answer, case["ground_truth"]))
    return [(answer, gold) for answer, gold in pairs if equal_answers(answer, gold, math_verify=True)]


def _one_of(pattern: str, change: Callable[[re.Match[str], random.Random], str], in_names: bool = False) -> Mutation:
    """Change one of the places where a pattern is found; not in the name of an unknown, which may be left away."""

    def mutate(text: str, draw: random.Random) -> str | None:
        found = [match for match in re.finditer(pattern, text) if in_names or match.start() >= _value_begins(text)]
        if not found:
            return None
        match = draw.choice(found)
        return text[: match.start()] + change(match, draw) + text[match.end() :]

    return mutate


def _value_begins(text: str) -> int:
    """Where the last relation ends, before which names stand; behind the end of a text with words."""
    if "\\text" in text or "\\mathrm" in text:
        return len(text)
    ends = [match.end() for match in re.finditer(r"[=<>:≥≤]|\\(?:leq?|geq?|leqslant|geqslant|in|mid|approx)(?![a-z])", text)]
    return max(ends, default=0)


def _swapped(text: str, draw: random.Random) -> str | None:
    """Two parts of a tuple."""
    match = re.fullmatch(r"(\\left)?\(([^(){}]+,[^(){}]+)(\\right)?\)", text)
    if not match:
        return None
    parts = match[2].split(",")
    a, b = draw.sample(range(len(parts)), 2)
    if parts[a].strip() == parts[b].strip():
        return None
    parts[a], parts[b] = parts[b], parts[a]
    return f"({','.join(parts)})"


def _exchanged(text: str, _: random.Random) -> str | None:
    """The first two values of a system."""
    match = re.fullmatch(r"([a-z])=([^,=]+),\s*([a-z])=([^,=]+)", text)
    if not match or match[2].strip() == match[4].strip() or match[1] == match[3]:
        return None
    return f"{match[1]}={match[4]}, {match[3]}={match[2]}"


def _dropped(text: str, draw: random.Random) -> str | None:
    """One of several answers."""
    parts = text.split(",")
    if len(parts) < 2 or re.search(r"[(\[{]|\d,\d{3}", text) or "ldots" in text:
        return None
    del parts[draw.randrange(len(parts))]
    return ",".join(parts)


RELATIONS = {"<": r"\le ", ">": r"\ge ", r"\le": "<", r"\ge": ">"}
MEANING: dict[str, Mutation] = {
    "digit": _one_of(r"\d", lambda match, draw: draw.choice([d for d in "0123456789" if d != match[0]])),
    "sign": _one_of(r"(?<=[\w})])\s*[+-]\s*(?=[\w\\(])", lambda match, _: "-" if "+" in match[0] else "+"),
    "leading sign": lambda text, _: f"-{text}" if re.fullmatch(r"[1-9]\d*|\\frac\{\d+\}\{\d+\}", text) else None,
    "case": _one_of(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", lambda match, _: match[0].swapcase()),
    "index": _one_of(r"(?<=[a-zA-Z])_\{?\w\}?", lambda *_: "_{77}"),
    "prime": _one_of(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z'])", lambda match, _: f"{match[0]}'"),
    "relation": _one_of(r"<|>|\\le(?![a-z])|\\ge(?![a-z])", lambda match, _: RELATIONS[match[0]], True),
    "bracket": _one_of(r"\[(?=[^\]]*\))", lambda *_: "("),
    "swapped": _swapped,
    "exchanged": _exchanged,
    "dropped": _dropped,
    "doubled": lambda text, _: f"{text}, {text}1" if re.fullmatch(r"\d+", text) else None,
}
LAYOUT: dict[str, Mutation] = {
    "blanks": _one_of(r"(?<=[+=])|(?=(?<![<>])[+=])", lambda *_: " ", True),
    "left right": lambda text, _: (
        None if re.search(r"\\left|\\big", text) else text.replace("(", r"\left(").replace(")", r"\right)")
    ),
    "dfrac": lambda text, _: text.replace(r"\frac", r"\dfrac"),
    "dollars": lambda text, _: f"${text}$" if "$" not in text else None,
    "full stop": lambda text, _: f"{text}.",
    "display": lambda text, _: rf"\displaystyle {text}",
    "colour": lambda text, _: rf"\textcolor{{blue}}{{{text}}}" if not re.search(r"[,;\n]| or | and |text", text) else None,
    "narrow": lambda text, _: rf"\,{text}\,",
    "invisible": lambda text, _: f"\u200b{text}\u2060",
}


def main() -> None:
    """Mutate until the time is up, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, pairs = random.Random(arguments.seed), equal_pairs()
    tried: Counter[str] = Counter()
    findings: dict[tuple[str, str, str], str] = {}
    slowest = (0.0, "")
    deadline = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline:
        answer, gold = draw.choice(pairs)
        meaning = draw.random() < 0.7
        name, mutate = draw.choice(list((MEANING if meaning else LAYOUT).items()))
        text = mutate(answer, draw)
        if text is None or text == answer:
            continue
        began = time.process_time()
        accepted = equal_answers(text, gold, math_verify=True)
        slowest = max(slowest, (time.process_time() - began, f"{text} | {gold}"))
        kind = "meaning" if meaning else "layout"
        tried[f"{kind}: {name}"] += 1
        if accepted is meaning:
            findings.setdefault((f"{'accepts' if meaning else 'refuses'} {name}", text, gold), answer)
    table = Table("mutation", "pairs")
    for name, count in sorted(tried.items()):
        table.add_row(name, str(count))
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{sum(tried.values())} pairs of {len(pairs)} equal ones; slowest {1000 * slowest[0]:.0f} ms of a core: {slowest[1]}",
        markup=False,
    )
    for (what, text, gold), answer in sorted(findings.items()):
        console.print(f"{what}: {text!r} | {gold!r}   was {answer!r}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
