"""Results as Markdown, and a short table for the terminal. Numbers are in %, with their interval over problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.output import cell, clean_line

NONE = "-"


def columns_of(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(benchmark, source) of every column, in the order of the first model that has it."""
    found = ((entry["benchmark"], entry["source"]) for model in results["models"] for entry in model["sources"])
    return list(dict.fromkeys(found))


def column_title(column: tuple[str, str], columns: Sequence[tuple[str, str]]) -> str:
    """The benchmark's name, with the source where the benchmark has several."""
    benchmark, source = column
    several = sum(1 for other, _ in columns if other == benchmark) > 1
    return clean_line(f"{benchmark}: {source}" if several else benchmark)


def groups_of(results: Mapping[str, Any]) -> list[str]:
    """Groups whose mean is neither a column of its own (a single source) nor the mean of all."""
    counted = [entry for entry in results["models"][0]["sources"] if entry["accuracy"] is not None]
    sizes = Counter(entry["group"] for entry in counted)
    return [name for name, size in sizes.items() if 1 < size < len(counted)]


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def interval(value: Mapping[str, Any] | None) -> str:
    """`52.7 [49.1, 56.2]`; the mean alone where there is no interval."""
    if value is None:
        return NONE
    if value["low"] is None:
        return percent(value["mean"])
    return f"{percent(value['mean'])} [{percent(value['low'])}, {percent(value['high'])}]"


def markdown(results: Mapping[str, Any], figures: Sequence[str] = ()) -> str:
    """The content of results.md."""
    parts = ["# Evaluation", _protocol(results), "## Accuracy", _table(*accuracy_table(results)), _explanation(results)]
    if results["comparisons"]:
        parts += ["## Against the first model", _table(*comparison_table(results)), COMPARISON_NOTE]
    parts += ["## Details", _table(*detail_table(results))]
    for title, (head, rows), note in (
        ("## Episodes", episode_table(results), EPISODE_NOTE),
        ("## What episodes counted", mean_table(results), MEAN_NOTE),
        ("## Splits", split_table(results), SPLIT_NOTE),
        ("## Loss of the worked answers", loss_table(results), LOSS_NOTE),
    ):
        parts += [title, _table(head, rows), note] if rows else []
    parts += [f"![{name}]({name})" for name in figures]
    return "\n\n".join(parts) + "\n"


COMPARISON_NOTE = (
    "Difference in points with its paired bootstrap interval; p: two-sided sign-flip permutation test over problems, not corrected "
    "for the number of comparisons."
)


def _protocol(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    lines = [
        f"- {clean_line(name)}: n = {each['n']}, temperature {each['temperature']:g}, top-p {each['top_p']:g}, {_judged_by(each)}"
        for name, each in settings["benchmarks"].items()
    ]
    head = (
        f"Engine {settings['engine']} ({settings['dtype']}), seed {settings['seed']}, prompts up to "
        f"{settings['max_prompt_length']} and responses up to {settings['max_response_length']} tokens."
    )
    return "\n".join([head, "", *lines])


def _judged_by(benchmark: Mapping[str, Any]) -> str:
    environment = benchmark.get("environment")
    if environment is None:
        return f"reward {_reward(benchmark['reward'])}"
    turns = environment["max_turns"]
    return clean_line(f"environment {environment['name']}, up to {turns} turn{'s' if turns != 1 else ''}")


def _reward(node: Mapping[str, Any]) -> str:
    version = (node.get("reward_kwargs") or {}).get("version")
    return clean_line(f"{node['path']} {node['name']}") + ("" if version is None else f", version {version}")


def _explanation(results: Mapping[str, Any]) -> str:
    how = results["settings"]["statistics"]
    text = (
        f"avg@n over problems in %, with {how['confidence']:.0%} percentile bootstrap intervals over problems ({how['resamples']} "
        "resamples). Means are unweighted over sources."
    )
    published = " Rows in italics are published numbers; their average is over the benchmarks that their source reports."
    return text + (published if results["published"] else "")


def accuracy_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: models, then published rows."""
    columns, groups = columns_of(results), groups_of(results)
    head = ["model", *(column_title(column, columns) for column in columns), *(f"mean of {group}" for group in groups), "mean"]
    rows = []
    for model in results["models"]:
        entries = {(entry["benchmark"], entry["source"]): entry for entry in model["sources"]}
        cells = [interval(entries[column]["accuracy"]) if column in entries else NONE for column in columns]
        rows.append([model["label"], *cells, *(interval(model["groups"].get(group)) for group in groups), interval(model["mean"])])
    rows += [_published(row, columns, groups) for row in results["published"]]
    return head, rows


def _published(row: Mapping[str, Any], columns: Sequence[tuple[str, str]], groups: Sequence[str]) -> list[str]:
    single = {benchmark for benchmark, _ in columns if sum(1 for other, _ in columns if other == benchmark) == 1}
    cells = [_number(row["scores"].get(benchmark) if benchmark in single else None) for benchmark, _ in columns]
    return [
        f"*{row['model']}, {row['base']} ({row['origin']})*",
        *cells,
        *(NONE for _ in groups),
        f"average {_number(row['average'])}",
    ]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}"


def comparison_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row per model and source, and one for the mean."""
    columns = columns_of(results)
    head = ["model", "against", "source", "problems", "difference", "p"]
    rows = []
    for comparison in results["comparisons"]:
        parts = [(column_title((part["benchmark"], part["source"]), columns), part) for part in comparison["sources"]]
        for title, part in [*parts, ("mean", comparison["mean"])]:
            cells = [title, str(part["problems"]), interval(part["difference"]), f"{part['p_value']:.4f}"]
            rows.append([comparison["model"], comparison["baseline"], *cells])
    return head, rows


def detail_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: per model and source what the accuracy is made of."""
    columns = columns_of(results)
    head = [
        "model",
        "source",
        "problems",
        "left out",
        "n",
        "pass@k",
        "maj@n",
        "no answer",
        "truncated",
        "tokens: mean, median, longest",
    ]
    rows = []
    for model in results["models"]:
        for entry in model["sources"]:
            title = column_title((entry["benchmark"], entry["source"]), columns)
            left_out = f"{entry['excluded']} ground truth, {entry['dropped_prompts']} prompt length"
            if entry["accuracy"] is None:
                rows.append([model["label"], title, "0", left_out, *[NONE] * 6])
                continue
            tokens = entry["response_tokens"]
            passes = ", ".join(f"{k}: {percent(value)}" for k, value in entry["pass_at"].items())
            cells = [str(entry["n"]), passes, percent(entry["majority"]), percent(entry["no_answer"]), percent(entry["truncated"])]
            lengths = f"{tokens['mean']:.0f}, {tokens['median']:.0f}, {tokens['longest']}"
            rows.append([model["label"], title, str(entry["problems"]), left_out, *cells, lengths])
    return head, rows


EPISODE_NOTE = (
    "In %, turns apart. First: right at the first answer. Right turns: of all turns. Other rule: turns that are right under the "
    "rule that is not asked for. Outcomes are shares of turns. Routes: those of which every position is solved, and right turns of "
    "the positions that an episode along the route would have reached."
)
MEAN_NOTE = "Means over episodes of what the environment says of them; docs/vrag.md and docs/environments.md have the meanings."
SPLIT_NOTE = "The same episodes by a property of the problem."
LOSS_NOTE = "In nats: -log p of the worked answer, its end token included. It need not show what the accuracy loses."


def episode_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: per model and source what happened in its episodes."""
    head = ["model", "source", "solved", "first", "right turns", "turns", "other rule", "outcomes", "ended", "routes"]
    rows = []
    for label, title, entry in _entries(results, "episodes"):
        found = entry["episodes"]
        cells = [
            percent(found["first_acc"]),
            percent(found["step_accuracy"]),
            f"{found['turns']:.2f}",
            percent(found["other_rule"]),
        ]
        rows.append([label, title, interval(entry["accuracy"]), *cells, _shares(found["outcomes"]), _shares(found["stops"]),
                     _routes(found.get("routes"))])  # fmt: skip
    return head, rows


def mean_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: means of the numbers of one environment; none if no environment has its own."""
    entries = [(label, title, entry["episodes"].get("means", {})) for label, title, entry in _entries(results, "episodes")]
    names = list(dict.fromkeys(name for *_, means in entries for name in means))
    rows = [[label, title, *(f"{means.get(name, 0.0):.3g}" for name in names)] for label, title, means in entries if means]
    return ["model", "source", *names], rows


def split_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: accuracies of problems with a property."""
    rows = [
        [label, title, f"{name}: {value}", str(part["problems"]), interval(part["accuracy"])]
        for label, title, entry in _entries(results, "episodes")
        for name, values in entry["episodes"].get("splits", {}).items()
        if len(values) > 1  # a property that all or none have splits nothing
        for value, part in values.items()
    ]
    return ["model", "source", "problems with", "problems", "solved"], rows


def loss_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: per model and source."""
    rows = [
        [label, title, str(entry["loss"]["answers"]), f"{entry['loss']['per_answer']:.4f}", f"{entry['loss']['per_token']:.5f}"]
        for label, title, entry in _entries(results, "loss")
    ]
    return ["model", "source", "answers", "per answer", "per token"], rows


def _entries(results: Mapping[str, Any], key: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(model, title, entry) of the sources that have a part."""
    columns = columns_of(results)
    return [
        (model["label"], column_title((entry["benchmark"], entry["source"]), columns), entry)
        for model in results["models"]
        for entry in model["sources"]
        if key in entry
    ]


def _shares(shares: Mapping[str, float]) -> str:
    """Those above 0, the highest first."""
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {percent(share)}" for name, share in ordered if share > 0) or NONE


def _routes(routes: Mapping[str, Any] | None) -> str:
    return NONE if routes is None else f"{percent(routes['solved'])} of {routes['routes']}, {percent(routes['reached_accuracy'])}"


def left_out(results: Mapping[str, Any]) -> list[str]:
    """A line for every model and source of which problems were left out: how many of how many, and why."""
    columns, limit = columns_of(results), results["settings"]["max_prompt_length"]
    lines = []
    for model in results["models"]:
        for entry in model["sources"]:
            truths, prompts = entry["excluded"], entry["dropped_prompts"]
            reasons = [f"{truths} whose ground truth the reward cannot use"] if truths else []
            reasons += [f"{prompts} with a prompt of more than {limit} tokens"] if prompts else []
            if reasons:
                title = column_title((entry["benchmark"], entry["source"]), columns)
                total = entry["problems"] + truths + prompts
                lines.append(f"left out of {title}, {model['label']}: {truths + prompts} of {total} problems: {', '.join(reasons)}")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)]), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    # Names come from data; a bar or a line break in one must not break the table.
    return "| " + " | ".join(clean_line(each).replace("|", "\\|") for each in cells) + " |"


def show(results: Mapping[str, Any], output: Path) -> None:
    """The accuracies on the terminal, what is not in them, and where the rest is."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 150)
    head, rows = accuracy_table(results)
    table = Table(title="accuracy in %", title_justify="left")
    for number, name in enumerate(head):
        table.add_column(cell(name), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(cell(each.strip("*")) for each in row))
    console.print(table)
    for line in left_out(results):
        console.print(cell(line), soft_wrap=True)
    console.print(cell(f"results: {output / 'results.md'}"), soft_wrap=True)
