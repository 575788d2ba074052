"""Tables of the documents that repeat the code: made from it, and compared with it by tests/test_docs.py.

    python -m tests.docs_tables            # which tables are stale
    python -m tests.docs_tables --write    # write them anew

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. What a group is trained on is the first
sentence of the algorithm's class. Columns that the code cannot know, such as the title of a paper, are written by hand and kept; a
new row starts with the first line of a docstring in their place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tests.study_table import study_table
from unify_posttrain.algorithms import ALGORITHMS, METHODS, Algorithm, build_algorithm
from unify_posttrain.config import compose_config, conf_dir
from unify_posttrain.experience import rules
from unify_posttrain.explain import explain_config
from unify_posttrain.objective import MODES, aggregation
from unify_posttrain.rewards.grading import VERSIONS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

Kept = Mapping[str, list[str]]  # first cell -> cells of that row as they stand


def table(header: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |\n" for cells in ([*header], *rows)]
    return "".join([lines[0], "|" + "---|" * len(header) + "\n", *lines[1:]])


def cells(block: str) -> Kept:
    """Rows of a table as it stands, header included."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in block.splitlines() if line.startswith("|")]
    return {row[0]: row for row in rows}


def escaped(text: str) -> str:
    """Text of the code, in a cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def first_line(thing: object) -> str:
    return (thing.__doc__ or "").splitlines()[0].rstrip(".")


def kept(rows: Kept, name: str, column: int, otherwise: str) -> str:
    row = rows.get(name, [])
    return row[column] if column < len(row) else otherwise


@cache
def composed(*overrides: str) -> DictConfig:
    """A composed configuration; do not change it."""
    return compose_config(overrides)


@cache
def built(name: str) -> Algorithm:
    return build_algorithm(OmegaConf.to_container(composed(f"algorithm={name}").actor_rollout_ref.actor, resolve=True))


def paper(name: str, without_number: str | None = None) -> str:
    """A link to the paper; without a number of arXiv its name, or what is given instead."""
    text = ALGORITHMS[name].paper
    number = re.search(r"\d{4}\.\d{5}", text)
    return f"[{number[0]}](https://arxiv.org/abs/{number[0]})" if number else without_number or text


# The tables


def objectives(rows: Kept) -> str:
    return table(
        ("`algorithm=`", "objective, term by term: tokens: mask, π_ref, Â [× token weight] [× coefficient]", "averaged"),
        [[f"`{name}`", *objective(name)] for name, _ in ordered(rows)],
    )


def objective(name: str) -> tuple[str, str]:
    """Terms as configured, entropy and KL aside, and how they are averaged."""
    explained = [
        row for row in explain_config(composed(f"algorithm={name}"))["terms"] if row["pi_ref"] != "-" or "rl" in row["term"]
    ]
    texts = []
    for row in explained:
        weights = [weight for weight in row["weight"].split(" · ") if weight != "1" and not weight.endswith("_weight")]
        factors = [*weights, *([f"{row['coefficient']:g}"] if row["coefficient"] != 1 else [])]
        texts.append(f"{row['term']}, {row['tokens']}: {row['mask']}, {row['pi_ref']}, {' × '.join([row['advantage'], *factors])}")
    return escaped("; ".join(texts)), escaped("; ".join(dict.fromkeys(row["aggregation"] for row in explained)))


def algorithms(rows: Kept) -> str:
    """README's: the words of the classes."""
    return table(
        ("`algorithm=`", "what a group is trained on", "paper"),
        [[f"`{name}`", group(cls), paper(name)] for name, cls in ordered(rows)],
    )


def group(cls: type[Algorithm]) -> str:
    """The first sentence of a class."""
    sentence = first_line(cls).partition(". ")[0]
    return escaped(sentence[0].lower() + sentence[1:])


def papers(rows: Kept) -> str:
    return table(
        ("algorithm", "title", "paper", "module", "conf", "script"),
        [
            [f"`{name}`", kept(rows, f"`{name}`", 1, first_line(cls)), paper(name, "-"), *(_file(path) for path in _files(name))]
            for name, cls in ordered(rows)
        ],
    )


def _files(name: str) -> tuple[str, str, str]:
    return f"unify_posttrain/algorithms/{name}.py", f"conf/algorithm/{name}.yaml", f"exp_scripts/{name}.sh"


def _file(path: str) -> str:
    return f"[{path.rsplit('/', 1)[1]}](../{path})" if (ROOT / path).is_file() else "-"


# Methods that the documents list: those that name a paper. A name with the balance of a published run shares its method's row.
DOCUMENTED = tuple(cls.name for cls in METHODS if cls.paper)


def ordered(rows: Kept) -> list[tuple[str, type[Algorithm]]]:
    """Documented methods in the order of the table as it stands, new ones last."""
    names = [name.strip("`") for name in rows]
    known = [name for name in names if name in DOCUMENTED]
    return [(name, ALGORITHMS[name]) for name in (*known, *(name for name in DOCUMENTED if name not in known))]


def rules_of_methods(rows: Kept) -> str:
    """Which rule composes the groups of which method, as the methods are configured."""
    methods: dict[str, list[str]] = {}
    for name in DOCUMENTED:
        for each in dict.fromkeys(type(phase.algorithm.experience).__name__ for phase in built(name).phases):
            methods.setdefault(each, []).append(f"`{name}`")
    return table(
        ("rule", "a group is", "methods"),
        [
            [f"`{rule}`", kept(rows, f"`{rule}`", 1, first_line(getattr(rules, rule))), " ".join(names)]
            for rule, names in methods.items()
        ],
    )


def choices(group: str) -> Callable[[Kept], str]:
    """Choices of a group and the first sentence of each file."""

    def render(_: Kept) -> str:
        files = sorted((conf_dir() / group).glob("*.yaml"))
        return table((f"`{group}=`", "what it is"), [[f"`{path.stem}`", _sentence(path)] for path in files])

    return render


def _sentence(path: Path) -> str:
    """The first sentence of a file's comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines[lines[0].startswith("# @package") :]:
        if not line.startswith("# ") or line.startswith("#   "):
            break
        comment.append(line[2:])
    text = " ".join(comment)
    end = re.search(r"(?<!Dr)\.(?= |$)", text)
    return escaped(re.sub(r" \(unify_posttrain[\w.]+\)", "", text[: end.start() if end else len(text)].rstrip(":")))


def aggregations(_: Kept) -> str:
    """The modes, with value and use from the module's own table."""
    found = dict(re.findall(r"^([a-z-]+) {2,}(.+)$", aggregation.__doc__ or "", flags=re.MULTILINE))
    return table(
        ("mode", "value", "published use"),
        [[f"`{mode}`", *re.split(r" {2,}", escaped(found[mode].strip()), maxsplit=1)] for mode in MODES],
    )


READS = {
    "_whole": "everything", "after_first_think": "after the first `</think>`", "after_last_think": "after the last `</think>`",
    "between_thinks": "between the first `</think>` and the second",
}  # fmt: skip
FINDS = {None: "", "last_boxed": "last `\\boxed{}`", "_prime_answer": 'box, or what follows "answer is", "=", …'}


def reward_versions(rows: Kept) -> str:
    lines = []
    for number, version in VERSIONS.items():
        extract = None if version.extract is None else version.extract.__name__
        where = READS[version.scope.__name__]
        reads = where if extract is None else FINDS[extract] + ("" if where == "everything" else f" {where}")
        equal = "math-verify says so"
        if extract is not None:
            equal = "the typed reader says so"
            equal += (
                ", or numbers to 1e-4, π also as 3.14" * version.numeric
                + ", or math-verify where it cannot tell" * version.math_verify
            )
        score = (
            "1 / 0"
            if not (version.wrong or version.no_format)
            else f"1 / {version.wrong:g} wrong / {version.no_format:g} no format"
        )
        lines.append([str(number), reads, equal, score, kept(rows, str(number), 4, "")])
    return table(("version", "reads", "equal if", "score", "used by"), lines)


def study(_: Kept) -> str:
    """Made from the results of its runs, docs/study/*.json."""
    return table(*study_table())


TABLES: dict[str, Callable[[Kept], str]] = {
    "study": study,
    "algorithms": algorithms,
    "objectives": objectives,
    "papers": papers,
    "rules": rules_of_methods,
    "aggregations": aggregations,
    "reward_versions": reward_versions,
    **{f"choices_{group}": choices(group) for group in ("model", "task", "hardware")},
}


# Documents


def blocks(text: str) -> dict[str, str]:
    """Tables of a document as they stand, by name."""
    return {match[2]: match[3] for match in BLOCK.finditer(text)}


def rendered(text: str) -> str:
    """The document with its tables made anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]](cells(match[3])) + match[4], text)


def stale() -> Iterator[tuple[Path, str]]:
    """Documents whose tables are not what the code says, with the text that they should have."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        new = rendered(text)
        if new != text:
            yield path, new


def main() -> None:
    write = "--write" in sys.argv[1:]
    found = 0
    for path, text in stale():
        found += 1
        print(f"{'written' if write else 'stale'}: {path.relative_to(ROOT)}")
        if write:
            path.write_text(text, encoding="utf-8")
    sys.exit(0 if write else bool(found))


if __name__ == "__main__":
    main()
