"""Reader of sets that are published in verl's columns: prompt, data_source, reward_model and, with demonstrations, target."""

from __future__ import annotations

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.rows import Candidate, Row, value_at

COLUMNS = ("data_source", "prompt", "reward_model")


def read_verl_row(row: Row) -> Candidate:
    """Prompt, ground truth and data source as they are; targets from `target`, then `target_lst`, as far as they are there.

    `extra_info.index` (a number or a uuid) is kept as the row's id, because the written index counts the written rows.
    """
    found = (*rows.targets(row.get("target"), "target"), *rows.targets(row.get("target_lst"), "target_lst"))
    return Candidate(
        data_source=rows.text(row["data_source"], "data_source"),
        prompt=rows.messages(row["prompt"], "prompt"),
        ground_truth=rows.ground_truth(value_at(row, "reward_model.ground_truth"), "reward_model.ground_truth"),
        targets=tuple(dict.fromkeys(found)),
        ability=rows.optional_text(row.get("ability")) or "math",
        id=rows.optional_text(value_at(row, "extra_info.index")),
    )
