"""What the numbers say, in words. No angle stands without its null lines, no restoration without its controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unify_posttrain.analysis.tables import NONE, number, page, percent, table


def comparison_page(results: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The content of angles.md or spectrum.md."""
    what = results["what"]
    parts = [_models(results), *verdict(results)]
    parts += [_angle_table(results), ANGLES] if what == "angles" else [_value_table(results), VALUES]
    return page("Principal angles" if what == "angles" else "Singular values", [*parts, _energy_table(results), ENERGIES], figures)


ANGLES = (
    "Principal angles in degrees between the subspaces of the first k singular vectors, means over matrices; in brackets the "
    "smallest. *noise*: the base with Gaussian noise of the same Frobenius norm as ΔW. *random*: two random subspaces of the "
    "same size."
)
VALUES = (
    "*overall*: ‖s_tuned - s_base‖ / ‖s_base‖; *mean*, *largest*: of |s_tuned - s_base| / s_base over ranks; means over matrices, "
    "in %. *noise*: the base with Gaussian noise of the same Frobenius norm as ΔW."
)
ENERGIES = (
    "Shares of ‖ΔW‖² in the base's frame C = U_bᵀ ΔW V_b, in %: *scaling* is its diagonal, *rotation* the rest of it; what is "
    "left to 100 lies outside of the frame."
)


def _models(results: Mapping[str, Any]) -> str:
    sizes = [f"{label}: ‖ΔW‖ / ‖W‖ = {percent(each['size'], 2)} %" for label, each in results["summary"].items()]
    skipped = [f"{count} selected tensors were skipped: {why}." for why, count in results["skipped"].items()]
    first = next(iter(results["summary"].values()))
    return " ".join([f"{first['matrices']} matrices of each model. {'; '.join(sizes)}.", *skipped])


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Sentences on every tuned model, then on what looks untrained."""
    if results["what"] == "angles":
        found = [_angle_sentence(label, each, results["factor"]) for label, each in results["summary"].items()]
    else:
        found = [_value_sentence(label, each) for label, each in results["summary"].items()]
    for label, each in results["summary"].items():
        for key, name in (("looks_random", label), ("base_looks_random", "the base")):
            if each[key]:
                found.append(
                    f"{each[key]} of {each['matrices']} matrices of {name} have the largest singular value of independent random "
                    "numbers: they look untrained, and their angles say nothing."
                )
    return list(dict.fromkeys(found))


def _angle_sentence(label: str, summary: Mapping[str, Any], factor: float) -> str:
    if not summary["size"]:
        return f"**{label}**: ΔW is 0; all angles are 0, and there is nothing to compare with null lines."
    sizes = [_size_sentence(part, factor) for part in summary["subspaces"]]
    return f"**{label}**: {' '.join(sizes)} Random subspaces and noise are the null lines; an angle alone proves nothing."


def _size_sentence(part: Mapping[str, Any], factor: float) -> str:
    turned, noise = part["left"]["mean"], part["left_noise"]["mean"]
    if turned > factor * noise:
        said = "more than an unstructured update of this size turns them"
    elif turned * factor < noise:
        said = "less than an unstructured update of this size turns them"
    else:
        said = "about what an unstructured update of this size does"
    return (
        f"The first {_ks(part)} left singular vectors turned by {number(turned, 2)} degrees on average, {said} "
        f"({number(noise, 2)}); random subspaces stand at {number(part['left_random']['mean'], 1)}."
    )


def _value_sentence(label: str, summary: Mapping[str, Any]) -> str:
    if not summary["size"]:
        return f"**{label}**: ΔW is 0; no singular value changed, and there is nothing to compare with the null line."
    tuned, noise = (summary["values"][end]["overall"] for end in ("tuned", "noise"))
    scaling, null = (summary[source]["scaling"] for source in ("energies", "energies_noise"))
    return (
        f"**{label}**: singular values changed by {percent(tuned, 2)} % (noise of the same norm: {percent(noise, 2)} %). "
        f"{percent(scaling, 2)} % of ΔW scales the base's own parts (noise: {percent(null, 2)} %)."
    )


def _ks(part: Mapping[str, Any]) -> str:
    return f"{part['k'][0]}" if len(part["k"]) == 1 else f"{part['k'][0]} to {part['k'][-1]}"


def _angle_table(results: Mapping[str, Any]) -> str:
    rows = []
    for label, summary in results["summary"].items():
        for part in summary["subspaces"]:
            cells = [label, _ks(part)]
            for side in ("left", "right"):
                cells += [f"{number(part[side + end]['mean'], 2)} ({number(part[side + end]['smallest'], 2)})" for end in ENDS]
            rows.append(cells)
    return table(["model", "k", *(f"{side}{name}" for side in ("left", "right") for name in ("", ", noise", ", random"))], rows)


ENDS = ("", "_noise", "_random")


def _value_table(results: Mapping[str, Any]) -> str:
    rows = [
        [label, *(percent(summary["values"][end][key], 2) for key in ("overall", "mean", "largest") for end in ("tuned", "noise"))]
        for label, summary in results["summary"].items()
    ]
    header = [f"{key}{end}" for key in ("overall", "mean", "largest") for end in ("", ", noise")]
    return table(["model", *header], rows)


def _energy_table(results: Mapping[str, Any]) -> str:
    rows = [
        [
            label,
            *(percent(summary[source][part], 2) for part in ("scaling", "rotation") for source in ("energies", "energies_noise")),
        ]
        for label, summary in results["summary"].items()
    ]
    return table(["model", "scaling", "scaling, noise", "rotation", "rotation, noise"], rows)


def recovery_page(results: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The content of recovery.md."""
    rows, columns = results["rows"], columns_of(results)
    skipped = [f"{count} selected tensors were skipped: {why}." for why, count in results["skipped"].items()]
    parts = [" ".join([f"{len(results['matrices'])} matrices were restored, everything else is the tuned model's.", *skipped])]
    parts += list(recovery_verdict(results))
    body = [
        [row["label"], number(row["left"], 3), *(_interval(row.get("accuracy", {}).get(column)) for column in columns),
         *_details(row)]
        for row in rows
    ]  # fmt: skip
    parts += [table(["model", "left", *columns, "rounding", "close cuts"], body), RECOVERY]
    return page("Recovery", parts, figures)


RECOVERY = (
    "*left*: ‖restored - base‖ / ‖tuned - base‖ over the restored matrices: 0 is the base, 1 as far from it as the tuned model, "
    "more is farther than either. Controls: *interpolate* the straight way back by the same share, *drop* the tuned model without "
    "the top of ΔW's own decomposition, *random* as many indices drawn at random. *rounding*: the largest error of writing in the "
    "tuned model's precision. *close cuts*: edges of the indices at which singular values are nearly equal, so that matching by "
    "index is chance."
)


def columns_of(results: Mapping[str, Any]) -> list[str]:
    """Benchmarks that were evaluated, in their order."""
    return list(dict.fromkeys(column for row in results["rows"] for column in row.get("accuracy", {})))


def _interval(accuracy: Mapping[str, Any] | None) -> str:
    if accuracy is None:
        return NONE
    ends = "" if accuracy["low"] is None else f" [{percent(accuracy['low'])}, {percent(accuracy['high'])}]"
    return f"{percent(accuracy['mean'])}{ends}"


def _details(row: Mapping[str, Any]) -> list[str]:
    cuts = row.get("close_cuts")
    return [NONE if row.get("rounding") is None else f"{row['rounding']:.1e}", NONE if cuts is None else str(cuts)]


def recovery_verdict(results: Mapping[str, Any]) -> Iterator[str]:
    """Sentences: what went the wrong way, what the controls reach, what matching by index is worth."""
    if results["nothing_tuned"]:
        yield "The two models are the same in these matrices: every restoration and every control is the tuned model."
        return
    rows = results["rows"]
    modes = [row for row in rows if row.get("mode") == row["kind"] and row["kind"] not in ("interpolate", "drop")]
    farther = [row["label"] for row in modes if row["left"] > 1.0]
    if farther:
        yield (
            f"**Farther from the base than the tuned model is**: {', '.join(farther)}. Restoration that matches by index can do "
            "that; what such a model does is no evidence for a way back."
        )
    controls = [f"{row['label']} {number(row['left'], 2)}" for row in rows if row["kind"] in ("interpolate", "drop", "random")]
    yield f"Controls, by what they leave of the distance to the base: {', '.join(controls) or 'none'}."
    close = sum(row["close_cuts"] or 0 for row in modes if row["kind"] != "aligned")
    if close:
        yield (
            f"At {close} edges of the restored indices singular values are nearly equal: which vectors were matched there is "
            "chance."
        )
    columns = columns_of(results)
    if not columns:
        yield "Nothing was evaluated: distances say where a model is, not what it does."
    for column in columns:
        yield _accuracy_sentence(rows, modes, column)


def _accuracy_sentence(rows: Sequence[Mapping[str, Any]], modes: Sequence[Mapping[str, Any]], column: str) -> str:
    def best(candidates: Sequence[Mapping[str, Any]]) -> str:
        known = [row for row in candidates if column in row["accuracy"]]
        if not known:
            return "not measured"
        top = max(known, key=lambda row: row["accuracy"][column]["mean"])
        return f"{top['label']} {_interval(top['accuracy'][column])}"

    controls = [row for row in rows if row["kind"] in ("interpolate", "drop", "random")]
    ends = [f"{row['label']} {_interval(row['accuracy'].get(column))}" for row in rows if row["kind"] in ("tuned", "base")]
    distance = next((row["against_tuned"].get(column) for row in rows if row["kind"] == "base"), None)
    if distance is None or distance["low"] is None or distance["low"] <= 0 <= distance["high"]:
        apart = "Base and tuned are not told apart here (paired difference), so there is nothing to recover or to lose."
    else:
        apart = f"The base is {_interval(distance)} points from the tuned model (paired)."
    return (
        f"**{column}** (%): {', '.join(ends)}. {apart} Best restoration {best(modes)}; best control {best(controls)}. The best of "
        "several is chosen on the problems that it is reported for, so it is too high; a restoration that does not beat its "
        "controls shows nothing about singular vectors."
    )
