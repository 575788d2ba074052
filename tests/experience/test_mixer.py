"""The mixer on small fake batches: which rows survive, what they carry, how padding is silenced, where rows go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience import BatchPlan, Demonstration, Mixed, Rows, demonstration_tensors, gate
from unify_posttrain.experience import mix as plain_mix
from unify_posttrain.experience.mixer import DEMONSTRATION, PADDING, PREFIX_LENGTH, ROLLOUT, row_metrics
from unify_posttrain.experience.rows import assemble, object_column
from unify_posttrain.experience.rules import DemonstrationInGroup, DemonstrationsOnly, Group, RolloutsOnly
from unify_posttrain.objective import token_class

PROMPT, WIDTH = 2, 4


def rollouts(sizes: dict[str, int], lengths: list[int] | None = None) -> Rows:
    """`sizes` uid -> rows; row i begins with token 100 + i, has `lengths[i]` response tokens, score (i + 1)/100."""
    uids = [uid for uid, n in sizes.items() for _ in range(n)]
    lengths = [1 + i % WIDTH for i in range(len(uids))] if lengths is None else lengths
    tensors = demonstration_tensors(
        [Demonstration(0, 0, (1,), (100 + i, *[7] * (n - 1))[:n]) for i, n in enumerate(lengths)],
        PROMPT,
        WIDTH,
        pad_id=0,
    )
    del tensors["prefix_mask"]
    tensors["rm_scores"] = torch.zeros(len(uids), WIDTH)
    tensors["rm_scores"][:, 0] = torch.arange(len(uids)) / 100 + 0.01
    tensors["rollout_log_probs"] = torch.full((len(uids), WIDTH), -0.5)
    columns = {"uid": object_column(uids), "extra": object_column([{"i": i} for i in range(len(uids))])}
    return Rows(tensors, {**columns, "acc": np.ones(len(uids), dtype=np.float32)})


def demonstrations(uids: list[str]) -> Rows:
    """One complete demonstration per uid; number i has the token 200 + i in front and no rollout log-probs."""
    tensors = demonstration_tensors([Demonstration(i, 0, (1,), (200 + i, 8, 2)) for i in range(len(uids))], PROMPT, WIDTH, pad_id=0)
    tensors["rm_scores"] = torch.zeros(len(uids), WIDTH)
    tensors["rm_scores"][:, 2] = 1.0
    return Rows(tensors, {"uid": object_column(uids)})


def names(mixed: Mixed) -> list[int]:
    """First response token of every row that is not padding: 100+ a rollout, 200+ a demonstration."""
    return [int(row[0]) for row, kind in zip(mixed.rows.tensors["responses"], mixed.kinds, strict=True) if kind != PADDING]


TERMS = ("rl", "off", "sft")
STREAMS = ("rl_weight", "off_weight", "sft_weight")


def mix(*args: object, **kwargs: object) -> Mixed:
    """The mixer, with the coefficients of all three terms attached."""
    return plain_mix(*args, weighted=TERMS, **kwargs)


def weights(mixed: Mixed) -> dict[int, tuple[float, ...]]:
    """(rl, off, sft) of every row that is not padding, by its name."""
    triples = torch.stack([mixed.rows.tensors[stream] for stream in STREAMS], dim=1)
    return {name: tuple(triple.tolist()) for name, triple in zip(names(mixed), triples[mixed.kinds != PADDING], strict=True)}


def check_invariants(mixed: Mixed, ranks: int = 1, mini_batches: int = 1) -> None:
    """What holds of every mixed batch."""
    t, kinds = mixed.rows.tensors, mixed.kinds
    assert len(mixed.rows) == len(kinds) > 0
    assert len(kinds) % (ranks * mini_batches) == 0
    assert {len(value) for value in (*t.values(), *mixed.rows.columns.values())} == {len(kinds)}
    assert {t[stream].dtype for stream in STREAMS} == {torch.float32}
    demo, padding = torch.from_numpy(kinds == DEMONSTRATION), torch.from_numpy(kinds == PADDING)
    assert torch.equal(t["prefix_mask"], t["response_mask"].bool() & demo[:, None])
    for name in ("response_mask", "prefix_mask", *STREAMS, "rm_scores", "rollout_log_probs"):
        assert not t[name][padding].any(), f"padding speaks in {name}"
    # the model needs tokens to run on
    assert t["attention_mask"].sum(dim=-1).min() > 0
    uids = mixed.rows.columns["uid"]
    silent = set(uids[kinds == PADDING])
    assert len(silent) == mixed.padding
    assert not silent & set(uids[kinds != PADDING])


# --- plans of every kind ---------------------------------------------------------------------------------------------


def test_switch() -> None:
    plan = gate([0, 2, 4], 4, switch_gate=0, uids=["a", "b", "c"])
    mixed = mix(plan, rollouts({"a": 4, "b": 4, "c": 4}), demonstrations(["b", "a"]))
    check_invariants(mixed)
    # a's rollouts 100-103 are gone, its demonstration is 201; b's demonstration 200 is not asked for
    assert sorted(names(mixed)) == [*range(104, 112), 201]
    assert weights(mixed) == {**dict.fromkeys(range(104, 112), (1, 0, 0)), 201: (0, 0, 1)}
    assert mixed.padding == 0
    t = mixed.rows.tensors
    metrics = row_metrics(mixed.kinds, t["response_mask"], t["prefix_mask"], t["rm_scores"].sum(dim=-1).numpy())
    assert metrics["fusion/demo_row_ratio"] == pytest.approx(0.111111, abs=1e-6)  # 1/9
    assert metrics["fusion/rows_on"] == 8
    assert metrics["fusion/rows_demo"] == metrics["fusion/demo_score"] == 1
    assert metrics["fusion/tokens_demo"] == 3
    assert metrics["fusion/tokens_on"] == 20  # lengths 1, 2, 3, 4 twice
    assert metrics["fusion/demo_token_ratio"] == pytest.approx(3 / 23)
    assert metrics["fusion/tokens_hint"] == 0


def test_off_zone() -> None:
    plan = gate([1], 4, switch_gate=0, switch_gate_off=1, uids=["a"])
    mixed = mix(plan, rollouts({"a": 4}), demonstrations(["a"]))
    check_invariants(mixed)
    assert weights(mixed) == {200: (0, 1, 0)}


def test_soft() -> None:
    # n = 4, three rollouts; k = 0 verified: (0, 0, 1); k = 3: (1, 0, 0); c has no demonstration and four rollouts
    plan = gate([0, 3, 4], 4, "soft", has_demonstration=[True, True, False], uids=["a", "b", "c"])
    mixed = mix(plan, rollouts({"a": 3, "b": 3, "c": 4}), demonstrations(["a", "b"]))
    check_invariants(mixed)
    assert weights(mixed) == {
        **dict.fromkeys((100, 101, 102, 200), (0, 0, 1)),  # a term takes the rows of its own kind of tokens
        **dict.fromkeys((103, 104, 105, 201), (1, 0, 0)),
        **dict.fromkeys((106, 107, 108, 109), (1, 0, 0)),
    }


def test_luffy() -> None:
    groups = [Group("a", 1, 3, True, True), Group("b", 2, 4, False, False)]
    mixed = mix(DemonstrationInGroup(4).plan(groups), rollouts({"a": 3, "b": 4}), demonstrations(["a"]), ranks=2, mini_batches=2)
    check_invariants(mixed, 2, 2)
    assert weights(mixed) == {**dict.fromkeys((100, 101, 102, 200), (1, 1, 0)), **dict.fromkeys(range(103, 107), (1, 0, 0))}


def test_only_demonstrations_without_any_rollout() -> None:
    plan = DemonstrationsOnly().plan([Group("a", 0, 0, True), Group("b", 0, 0, False), Group("c", 0, 0, True)])
    mixed = mix(plan, None, with_log_probs(demonstrations(["a", "c"])), mini_batches=4)
    check_invariants(mixed, mini_batches=4)
    assert sorted(names(mixed)) == [200, 201]
    assert mixed.padding == 2


def with_log_probs(rows: Rows) -> Rows:
    rows.tensors["rollout_log_probs"] = torch.zeros(len(rows), WIDTH)
    return rows


def test_every_prompt_gated() -> None:
    plan = gate([0, 0], 4, uids=["a", "b"])
    mixed = mix(plan, rollouts({"a": 4, "b": 4}), demonstrations(["a", "b"]), ranks=2)
    check_invariants(mixed, ranks=2)
    assert sorted(names(mixed)) == [200, 201]
    # columns of the rollouts stay, demonstrations know nothing of them
    assert list(mixed.rows.columns["extra"]) == [None, None]
    assert mixed.rows.columns["acc"].dtype == np.float32


def test_every_prompt_skipped_is_padding_only() -> None:
    plan = gate([0], 4, has_demonstration=[False], missing="skip", uids=["a"])
    mixed = mix(plan, rollouts({"a": 4}), None, ranks=2, mini_batches=2)
    check_invariants(mixed, 2, 2)
    assert names(mixed) == []
    assert mixed.padding == 4


# --- rollouts that begin with given tokens ---------------------------------------------------------------------------


def opened(sizes: dict[str, int], prefix: list[int], trained: bool) -> Rows:
    """Rollouts of four tokens, the first `prefix[i]` of row i given to it: trained (a prefix) or not (a hint)."""
    rows = rollouts(sizes, lengths=[WIDTH] * len(prefix))
    rows.columns[PREFIX_LENGTH] = np.array(prefix)
    if not trained:
        rows.tensors["response_mask"][torch.arange(WIDTH) < torch.tensor(prefix)[:, None]] = 0
    return rows


@pytest.mark.parametrize("trained", [True, False])
def test_given_tokens_are_no_samples(trained: bool) -> None:
    mixed = mix(RolloutsOnly(3).plan([Group("a", 1, 3)]), opened({"a": 3}, [0, 1, 3], trained), None)
    assert not mixed.reordered
    t = mixed.rows.tensors
    assert t["prefix_mask"].tolist() == [[False] * 4, [True, False, False, False], [True, True, True, False]]
    given = "demo" if trained else "hint"
    assert torch.equal(token_class(t, given), t["prefix_mask"])
    assert torch.equal(token_class(t, "on"), ~t["prefix_mask"])
    assert t["rl_weight"].tolist() == [1.0] * 3  # they are rollouts
    metrics = row_metrics(mixed.kinds, t["response_mask"], t["prefix_mask"], t["rm_scores"].sum(dim=-1).numpy())
    assert (metrics["fusion/tokens_on"], metrics["fusion/rows_on"], metrics["fusion/rows_demo"]) == (8, 3, 0)
    assert (metrics["fusion/tokens_demo"], metrics["fusion/tokens_hint"]) == ((4, 0) if trained else (0, 4))


def test_given_tokens_follow_their_row_and_neither_demonstrations_nor_padding_have_any() -> None:
    rows = opened({"a": 3, "b": 4}, [1, 2, 3, 0, 0, 0, 3], trained=True)
    plan = DemonstrationInGroup(4).plan([Group("a", 1, 3, True), Group("b", 1, 4)])
    mixed = mix(plan, rows, demonstrations(["a"]), ranks=3, mini_batches=1)
    assert mixed.reordered and mixed.padding == 1
    t = mixed.rows.tensors
    by_name = {name: int(row.sum()) for name, row in zip(names(mixed), t["prefix_mask"][mixed.kinds != PADDING], strict=True)}
    assert by_name == {100: 1, 101: 2, 102: 3, 103: 0, 104: 0, 105: 0, 106: 3, 200: 3}  # the demonstration: all its three tokens
    assert not t["prefix_mask"][mixed.kinds == PADDING].any()


def test_only_weighted_terms_ship_a_stream() -> None:
    plan = gate([0, 2], 4, switch_gate=0, uids=["a", "b"])
    arguments = (plan, rollouts({"a": 4, "b": 4}), demonstrations(["a"]))
    assert not [name for name in plain_mix(*arguments).rows.tensors if name.endswith("_weight")]
    named = plain_mix(*arguments, weighted=("sft",)).rows.tensors
    assert [name for name in named if name.endswith("_weight")] == ["sft_weight"]


# --- order -----------------------------------------------------------------------------------------------------------


def test_order_is_untouched_when_nothing_changes() -> None:
    plan, rows = gate([1, 2], 4, uids=["a", "b"]), rollouts({"a": 4, "b": 4})
    before = {name: value.clone() for name, value in rows.tensors.items()}
    for candidates in (None, demonstrations(["a", "b"])):
        mixed = mix(plan, rows, candidates, ranks=2, mini_batches=2)
        assert not mixed.reordered
        assert names(mixed) == list(range(100, 108))
        assert all(torch.equal(mixed.rows.tensors[name], value) for name, value in before.items())
        assert mixed.rows.tensors["rl_weight"].tolist() == [1.0] * 8
        assert not mixed.rows.tensors["prefix_mask"].any()
        assert not mixed.rows.tensors["sft_weight"].any()


def test_padding_alone_reorders_but_keeps_every_row() -> None:
    mixed = mix(gate([1], 3, uids=["a"]), rollouts({"a": 3}), None, ranks=2)
    check_invariants(mixed, ranks=2)
    assert mixed.reordered
    assert sorted(names(mixed)) == [100, 101, 102]
    assert mixed.padding == 1


def test_rows_keep_what_belongs_to_them() -> None:
    """After dealing, tokens, scores, lengths and columns of a row are still those of that row."""
    plan = gate([0, 1, 3], 3, uids=["a", "b", "c"])
    mixed = mix(plan, rollouts({"a": 3, "b": 3, "c": 3}), demonstrations(["a"]), ranks=2, mini_batches=2)
    check_invariants(mixed, 2, 2)
    t, columns = mixed.rows.tensors, mixed.rows.columns
    for row, kind in enumerate(mixed.kinds):
        number = int(t["responses"][row, 0]) - 100
        if kind == ROLLOUT:
            assert columns["extra"][row] == {"i": number}
            assert columns["uid"][row] == "abc"[number // 3]
            assert t["rm_scores"][row].sum().item() == pytest.approx(number / 100 + 0.01)
            assert t["response_mask"][row].sum() == 1 + number % WIDTH
        elif kind == DEMONSTRATION:
            assert (columns["uid"][row], columns["extra"][row]) == ("a", None)
            assert t["response_mask"][row].tolist() == [1, 1, 1, 0]
            assert t["rollout_log_probs"][row].tolist() == [0.0] * WIDTH


def test_padding_copies_the_shortest_row() -> None:
    mixed = mix(gate([1], 3, uids=["a"]), rollouts({"a": 3}, lengths=[4, 2, 3]), None, ranks=4)
    (padding,) = np.flatnonzero(mixed.kinds == PADDING)
    assert mixed.rows.tensors["attention_mask"][padding].sum() == 1 + 2
    assert mixed.rows.tensors["responses"][padding, 0] == 101


@st.composite
def cases(draw: st.DrawFn) -> tuple[BatchPlan, Rows, Rows, int, int]:
    n = draw(st.integers(2, 5))
    strategy = draw(st.sampled_from(["switch", "soft"]))
    demos = draw(st.lists(st.booleans(), min_size=1, max_size=5))
    uids = [f"u{i}" for i in range(len(demos))]
    sizes = {uid: n - 1 if strategy == "soft" and demo else n for uid, demo in zip(uids, demos, strict=True)}
    plan = gate(
        [draw(st.integers(0, size)) for size in sizes.values()],
        n,
        strategy,
        switch_gate=draw(st.integers(-1, n)),
        switch_gate_off=draw(st.none() | st.integers(-1, n)),
        has_demonstration=demos,
        missing=draw(st.sampled_from(["rl", "skip"])),
        uids=uids,
    )
    available = demonstrations([uid for uid, demo in zip(uids, demos, strict=True) if demo])
    return plan, rollouts(sizes), available, draw(st.integers(1, 3)), draw(st.integers(1, 3))


@given(cases())
def test_the_plan_is_carried_out_row_by_row(case: tuple) -> None:
    plan, rows, available, ranks, mini_batches = case
    originals = {name: value.clone() for name, value in rows.tensors.items()}
    mixed = mix(plan, rows, available, ranks, mini_batches)
    check_invariants(mixed, ranks, mini_batches)
    uids, t = mixed.rows.columns["uid"], mixed.rows.tensors
    for group in plan:
        own = uids == group.uid
        on, demo = own & (mixed.kinds == ROLLOUT), own & (mixed.kinds == DEMONSTRATION)
        assert (on.sum(), demo.sum()) == (group.kept, group.demonstrations)
        for term, stream in zip(TERMS, STREAMS, strict=True):
            assert set(t[stream][on | demo].tolist()) <= {np.float32(group.weight(term))}
    assert mixed.padding < ranks * mini_batches or not any(group.kept + group.demonstrations for group in plan)
    assert all(torch.equal(rows.tensors[name], value) for name, value in originals.items())


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_demonstration_that_is_not_there_is_an_error() -> None:
    plan = gate([0, 0], 2, uids=["a", "b"])
    for available in (None, demonstrations(["a"])):
        with pytest.raises(ValueError, match="'b'"):
            mix(plan, rollouts({"a": 2, "b": 2}), available)


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        mix(BatchPlan(()), None, None)


def test_rows_of_different_width_cannot_join() -> None:
    wide = demonstrations(["a"])
    wide.tensors["responses"] = torch.zeros(1, WIDTH + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="'responses'"):
        mix(gate([0, 1], 2, uids=["a", "b"]), rollouts({"a": 2, "b": 2}), wide)


def test_assemble_keeps_lists_of_equal_length_as_objects() -> None:
    rows = Rows({"x": torch.tensor([1, 2])}, {"c": object_column([[1, 2], [3, 4]])})
    joined = assemble([(rows, np.array([1, 0]), np.array([0, 1]))], 2)
    assert joined.tensors["x"].tolist() == [2, 1]
    assert list(joined.columns["c"]) == [[3, 4], [1, 2]]


def test_a_filler_pads_a_batch_in_which_nothing_can_be_trained() -> None:
    plan = DemonstrationsOnly().plan([Group("a", 0, 0), Group("b", 0, 0)])
    mixed = mix(plan, None, None, ranks=2, mini_batches=2, filler=demonstrations(["a"]))
    assert mixed.kinds.tolist() == [PADDING] * 4
    assert not mixed.rows.tensors["response_mask"].any() and not mixed.rows.tensors["sft_weight"].any()
    assert mixed.rows.tensors["attention_mask"].any(dim=-1).all(), "the model needs tokens to attend to"
