"""Ids and lineages: which checkpoint lies on whose way, and what is recorded of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.runs import lineage
from unify_posttrain.runs.lineage import Lineage, Segment, lineage_in, lineage_of, new_id, write_run, writer_of


def test_an_id_fits_every_tracker() -> None:
    ids = {new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 21 and each.isalnum() and each == each.lower() for each in ids)


def test_a_branch_shares_the_way_up_to_its_step() -> None:
    first = Lineage((Segment("a"),))
    second = first.branch("a", 4)
    assert second.segments[0] == Segment("a", 4) and second.segments[1].until is None and second.run != "a"
    assert second.holds("a", 4) and not second.holds("a", 5) and second.holds(second.run, 9)
    third = second.branch("a", 2)  # before the branch: what the second run did is not its past
    assert third.segments[0] == Segment("a", 2) and len(third.segments) == 2
    assert not third.holds(second.run, 5)
    fourth = second.branch(second.run, 6)
    assert [each.until for each in fourth.segments] == [4, 6, None]


def test_a_left_over_is_all_that_a_branch_knows() -> None:
    branch = Lineage((Segment("a"),)).branch("b", 3)
    assert branch.segments[0] == Segment("b", 3) and not branch.holds("a", 1)


@given(st.lists(st.integers(0, 3), max_size=6), st.integers(0, 30))
def test_a_branch_never_holds_what_its_parent_does_not(steps: list[int], last: int) -> None:
    """Whatever was branched off where: a shared step is one of the parent's, at or before the branch."""
    parent, step = Lineage((Segment("a"),)), 0
    for each in steps:
        step += each
        parent = parent.branch(parent.run, step)
    child = parent.branch(parent.run, step + 1)
    for run in {segment.run for segment in parent.segments}:
        assert child.holds(run, last) == (parent.holds(run, last) and (run != parent.run or last <= step + 1))


def test_the_record_is_found_again(tmp_path: Path) -> None:
    assert lineage_in(tmp_path) is None and lineage_in(None) is None
    way = Lineage((Segment(None, 4), Segment("b")))
    write_run(tmp_path, {"lineage": way.state})
    assert lineage_in(tmp_path) == way
    assert [path.name for path in tmp_path.iterdir()] == [lineage.RUN_FILE]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"format": 1}', "cannot be read"),
        ('{"format": 1, "lineage": []}', "names no run"),
        ('{"format": 99, "lineage": [{"run": "a", "until": null}]}', "newer unify_posttrain"),
    ],
)
def test_a_record_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / lineage.RUN_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{lineage.RUN_FILE}.*{words}"):
        lineage_in(tmp_path)


def test_a_checkpoint_says_who_wrote_it(tmp_path: Path) -> None:
    folder = tmp_path / "global_step_3"
    folder.mkdir()
    assert writer_of(folder) is None and lineage_of(folder) == Lineage((Segment(None),))
    state = {"format": 1, "run": "a", "lineage": [{"run": "a", "until": None}]}
    (folder / lineage.STATE_FILE).write_text(json.dumps(state))
    assert writer_of(folder) == "a" and lineage_of(folder) == Lineage((Segment("a"),))
    assert lineage_of(folder).holds_folder(folder)
    (folder / lineage.STATE_FILE).write_text('{"run": "a", "li')  # cut short
    assert writer_of(folder) is None
