"""Experience rules: what rollouts begin with, how many there are, and what their groups are made of."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience.hints import HintSchedule
from unify_posttrain.experience.prefixes import STRATEGIES, PrefixSchedule
from unify_posttrain.experience.rules import (
    NO_PREFIX,
    DemonstrationBesideGroup,
    DemonstrationIfUnsolved,
    DemonstrationInGroup,
    DemonstrationsOnly,
    Experience,
    Group,
    Prompt,
    ResponsePrefix,
    RolloutsAfterHint,
    RolloutsOnly,
)

TARGET = (5, 6, 7, 8, 9, 5, 6, 7, 8, 2)  # ten tokens with the EOS
WHOLE = PrefixSchedule(
    strategy="random", n_prefix=1, min_ratio=1.0, max_ratio=1.0, steps=100, linear_max_ratio=0.8, share=False, seed=0
)
GATED = {"switch_gate": 0, "switch_gate_off": None, "gate_rate": None, "soft_type": 0, "soft_table": None, "missing": "rl"}
UFT = HintSchedule("uft", buckets=5, hint_steps=300, p_low=0.05, p_high=0.95, seed=0)


def lengths(rule: Experience, step: int = 1, row_id: int = 0, target: tuple[int, ...] | None = TARGET) -> list[int]:
    """Tokens that each rollout begins with."""
    prefixes = rule.response_prefixes(Prompt(row_id, target), step)
    assert all(prefix.ids == TARGET[: len(prefix.ids)] for prefix in prefixes)
    assert all(prefix == NO_PREFIX or (prefix.trained and prefix.share == len(prefix.ids) / len(TARGET)) for prefix in prefixes)
    return [len(prefix.ids) for prefix in prefixes]


# --- rollouts and nothing else ---------------------------------------------------------------------------------------


def test_on_policy() -> None:
    rule = RolloutsOnly(4)
    assert not rule.needs_target and not rule.needs_hint
    assert rule.response_prefixes(Prompt(3, TARGET), 1) == (NO_PREFIX,) * 4
    (group,) = rule.plan([Group("a", 2, 4, True, True)])
    assert (group.kept, group.demonstrations, group.zone) == (4, 0, "rl")
    assert RolloutsOnly(4, needs_target=True).needs_target  # ReLIFT keeps targets for its buffer; its plan is the same
    assert RolloutsOnly(4, needs_target=True).plan([Group("a", 2, 4, True, True)]).groups == (group,)


# --- hints -----------------------------------------------------------------------------------------------------------


def hinted(room: int = 100, joiner: str = "", schedule: HintSchedule | None = UFT, n: int = 3) -> RolloutsAfterHint:
    return RolloutsAfterHint(n, schedule=schedule, room=room, joiner=joiner)


def hint(rule: RolloutsAfterHint, sentences: list[str], step: int = 1, row_id: int = 0) -> ResponsePrefix:
    prompt = Prompt(row_id, sentences=tuple(sentences), encode=lambda text: [ord(letter) for letter in text])
    prefixes = rule.response_prefixes(prompt, step)
    assert len(prefixes) == rule.group_size and len(set(prefixes)) == 1, "rollouts of a group start alike"
    assert not prefixes[0].trained
    return prefixes[0]


EIGHT = ["ab", "cd", "ef", "gh", "ij", "kl", "mn", "op"]


def test_a_hint_is_whole_sentences() -> None:
    # step 1, row 0: 4 of 5 buckets; the cuts of eight sentences are 0 2 3 5 6 8
    prefix = hint(hinted(), EIGHT)
    assert "".join(map(chr, prefix.ids)) == "abcdefghijkl"
    assert (prefix.share, prefix.shortened) == (6 / 8, False)
    assert (
        "".join(map(chr, hint(hinted(joiner="; "), EIGHT[:3]).ids)).split("; ") == EIGHT[: len(hint(hinted(), EIGHT[:3]).ids) // 2]
    )


@pytest.mark.parametrize(
    ("room", "text", "share", "shortened"),
    [
        (12, "abcdefghijkl", 6 / 8, False),  # just fits
        (11, "abcdefghij", 5 / 8, True),  # the next lower bucket
        (9, "abcdef", 3 / 8, True),  # 5 sentences are 10 tokens: one bucket lower still
        (5, "abcd", 2 / 8, True),
        (3, "", 0.0, True),  # not even the first bucket; never a part of a sentence
        (0, "", 0.0, True),
    ],
)
def test_a_hint_that_does_not_fit_moves_down_by_buckets(room: int, text: str, share: float, shortened: bool) -> None:
    prefix = hint(hinted(room), EIGHT)
    assert ("".join(map(chr, prefix.ids)), prefix.share, prefix.shortened) == (text, share, shortened)


def test_no_hint_is_a_plain_rollout() -> None:
    assert hint(hinted(), []) == NO_PREFIX
    assert hint(hinted(), EIGHT, step=301) == ResponsePrefix()  # beyond T_hint
    assert hint(hinted(schedule=None), EIGHT) == NO_PREFIX
    assert hinted().response_prefixes(Prompt(0, TARGET, ("a", "b")), 1) == (NO_PREFIX,) * 3  # nobody to tokenise it
    assert hinted().needs_hint and not hinted().needs_target


def test_a_hint_depends_on_step_and_prompt_alone() -> None:
    drawn = {(step, row): hint(hinted(), EIGHT, step, row).ids for step in range(1, 300, 37) for row in range(12)}
    assert {key: hint(hinted(n=7), EIGHT, *key).ids for key in reversed(drawn)} == drawn
    assert len(set(drawn.values())) > 3


# --- demonstrations in the group -------------------------------------------------------------------------------------


def test_one_whole_demonstration() -> None:
    for rule in (
        DemonstrationInGroup(4),
        DemonstrationInGroup(4, prefixes=WHOLE),
        DemonstrationInGroup(4, prefixes=replace(WHOLE, strategy="fixed")),
    ):
        assert (rule.rollouts(True), rule.rollouts(False)) == (3, 4)
        assert lengths(rule) == [0, 0, 0]
        assert lengths(rule, target=None) == [0] * 4
        (group,) = rule.plan([Group("a", 1, 3, True, True)])
        assert (group.kept, group.demonstrations, group.weight("rl"), group.weight("off"), group.weight("sft")) == (3, 1, 1, 1, 0)


def test_prompts_without_a_target() -> None:
    assert DemonstrationInGroup(4, "rl", WHOLE).rollouts(False) == 4
    skipping = DemonstrationInGroup(4, "skip", WHOLE)
    assert skipping.rollouts(False) == 0 and skipping.response_prefixes(Prompt(0), 1) == ()
    plan = skipping.plan([Group("a", 0, 0), Group("b", 1, 3, True)])
    assert plan.zones() == {"rl": 1, "sft": 0, "off": 0, "skipped": 1}
    (group,) = DemonstrationInGroup(4).plan([Group("a", 2, 4)])
    assert (group.kept, group.demonstrations, group.weight("off")) == (4, 0, 0.0)


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [  # n = 4, a target of ten tokens; rows with all of it are demonstrations and not generated
        ({"n_prefix": -1}, 1, []),
        ({"n_prefix": 2}, 1, [0, 0]),
        ({"n_prefix": -1, "min_ratio": 0.0, "max_ratio": 0.0}, 1, [0] * 4),  # plain rollouts
        ({"min_ratio": 0.09, "max_ratio": 0.09}, 1, [0] * 4),  # int(.9) = 0 tokens: a plain rollout too
        ({"min_ratio": 0.3, "max_ratio": 0.3, "n_prefix": 2}, 1, [3, 3, 0, 0]),
        ({"strategy": "fixed", "n_prefix": 3, "min_ratio": 0.2}, 1, [2, 6, 0]),  # .2, .6 and 1
        ({"strategy": "fixed", "n_prefix": -1, "min_ratio": 0.0}, 1, [3, 6, 0]),  # 0, 1/3, 2/3 and 1
        ({"strategy": "linear"}, 1, [8, 0, 0, 0]),  # .8 (1 - 0)
        ({"strategy": "linear"}, 51, [4, 0, 0, 0]),  # .8 (1 - 50/100)
        ({"strategy": "linear"}, 101, [0, 0, 0, 0]),
        ({"strategy": "linear", "linear_max_ratio": 1.0}, 1, [0, 0, 0]),  # ratio 1: the row is the demonstration
        ({"strategy": "cosine", "min_ratio": 0.05, "max_ratio": 0.95}, 1, [9, 0, 0, 0]),
        ({"strategy": "cosine", "min_ratio": 0.05, "max_ratio": 0.95}, 34, [7, 0, 0, 0]),  # .05 + .9 (1 + cos .33π)/2 = .729
        ({"strategy": "cosine", "min_ratio": 0.05, "max_ratio": 0.95}, 101, [0, 0, 0, 0]),  # int(.5)
    ],
)  # fmt: skip
def test_prefixes(changes: dict, step: int, expected: list[int]) -> None:
    rule = DemonstrationInGroup(4, prefixes=replace(WHOLE, **changes))
    assert lengths(rule, step) == expected
    assert len(expected) <= rule.rollouts(True) <= 4
    # what is not generated is a demonstration
    (group,) = rule.plan([Group("a", 0, len(expected), True, True)])
    assert (group.kept, group.demonstrations) == (len(expected), 4 - len(expected))
    assert (group.weight("rl"), group.weight("off")) == (float(bool(expected)), float(len(expected) < 4))


@pytest.mark.parametrize(("strategy", "most"), [("random", 0.9), ("reverse_linear", 0.08), ("linear_max", 0.8)])
def test_drawn_prefixes(strategy: str, most: float) -> None:
    """Step 1 of 100: U(.1, .9), U(0, .08) and U(0, .8) of a target of 1000 tokens, drawn per prompt and row."""
    target = tuple(range(1000))
    rule = DemonstrationInGroup(4, prefixes=replace(WHOLE, strategy=strategy, n_prefix=-1, min_ratio=0.1, max_ratio=0.9))
    drawn = [[len(o.ids) for o in rule.response_prefixes(Prompt(row, target), 1)] for row in range(60)]
    assert all(len(row) == 4 and max(row) <= 1000 * most for row in drawn)
    assert len({length for row in drawn for length in row}) > 20 and max(max(row) for row in drawn) > 900 * most
    assert all(min(row) >= 100 for row in drawn) if strategy == "random" else min(min(row) for row in drawn) < 100
    shared = DemonstrationInGroup(4, prefixes=replace(rule.prefixes, share=True))
    assert all(len({len(o.ids) for o in shared.response_prefixes(Prompt(row, target), 1)}) == 1 for row in range(9))


@given(
    strategy=st.sampled_from(STRATEGIES),
    n_prefix=st.integers(1, 5) | st.just(-1),
    ends=st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.5, 1.0])).map(sorted),
    most=st.sampled_from([0.0, 0.8, 1.0]),
    step=st.integers(1, 120),
    row_id=st.integers(0, 50),
    has_target=st.booleans(),
)
def test_rows_of_a_group_always_add_up(
    strategy: str, n_prefix: int, ends: list[float], most: float, step: int, row_id: int, has_target: bool
) -> None:
    """Rollouts and demonstrations are n; `rollouts` is never exceeded; a response prefix leaves something to generate."""
    rule = DemonstrationInGroup(5, prefixes=replace(
        WHOLE, strategy=strategy, n_prefix=n_prefix, min_ratio=ends[0], max_ratio=ends[1], linear_max_ratio=most
    ))  # fmt: skip
    prefixes = rule.response_prefixes(Prompt(row_id, TARGET if has_target else None), step)
    assert len(prefixes) <= rule.rollouts(has_target)
    assert all(len(prefix.ids) < len(TARGET) for prefix in prefixes)
    (group,) = rule.plan([Group("a", 0, len(prefixes), has_target)])
    assert group.kept + group.demonstrations == 5
    assert not group.demonstrations or has_target


def test_weights_of_joined_demonstrations() -> None:
    (group,) = DemonstrationInGroup(4, demonstration_terms=("sft",)).plan([Group("a", 1, 3, True)])
    assert (group.weight("rl"), group.weight("off"), group.weight("sft")) == (1.0, 0.0, 1.0)
    (group,) = DemonstrationInGroup(4, prefixes=replace(WHOLE, n_prefix=-1), demonstration_terms=("sft", "off")).plan(
        [Group("a", 0, 0, True)]
    )
    assert (group.demonstrations, group.weight("rl"), group.weight("off"), group.weight("sft"), group.zone) == (
        4,
        0.0,
        1.0,
        1.0,
        "sft",
    )


# --- demonstrations beside the group ---------------------------------------------------------------------------------


def test_beside_keeps_all_rollouts() -> None:
    rule = DemonstrationBesideGroup(4)
    assert (rule.rollouts(True), rule.rollouts(False), rule.needs_target) == (4, 4, True)
    assert rule.response_prefixes(Prompt(0, TARGET), 1) == rule.response_prefixes(Prompt(0), 1) == (NO_PREFIX,) * 4
    both, alone = rule.plan([Group("a", 1, 4, True, True), Group("b", 1, 4)])
    assert (both.kept, both.demonstrations, both.weight("rl"), both.weight("off"), both.weight("sft")) == (4, 1, 1.0, 0.0, 1.0)
    assert (alone.kept, alone.demonstrations, alone.weight("rl"), alone.weight("sft")) == (4, 0, 1.0, 0.0)


def test_weights_by_term_name() -> None:
    """A method's own coefficient per prompt, on top of 1; only where both kinds of rows are there."""
    rule = DemonstrationBesideGroup(4, weights=lambda group: {"sft": 1 - group.successes / group.rollouts})
    solved, mixed, none, alone = rule.plan(
        [Group("a", 4, 4, True), Group("b", 1, 4, True), Group("c", 0, 4, True), Group("d", 0, 4, False)]
    )
    assert [dict(group.weights) for group in (solved, mixed, none)] == [
        {"rl": 1, "sft": 0},
        {"rl": 1, "sft": 0.75},
        {"rl": 1, "sft": 1},
    ]
    assert alone.weights == {"rl": 1.0}


def test_expert_share_is_a_share_of_the_rows() -> None:
    # expert data with probability e n/(1 - e + e n) = .8/(.8 + .8) = .5: of 4000 prompts 2000 rows, beside 4 * 2000 rollouts: .2
    rule = DemonstrationBesideGroup(4, expert_share=0.2, seed=3)
    assert rule.expert_probability == pytest.approx(0.5)
    # Trinity's batch: 32 prompts with 8 rollouts and 64 expert rows
    assert DemonstrationBesideGroup(8, expert_share=0.2).expert_probability == pytest.approx(64 / 96)
    numbers = [len(rule.response_prefixes(Prompt(row, TARGET), 5)) for row in range(4000)]
    assert set(numbers) == {0, 4}
    experts = numbers.count(0)
    assert experts / 4000 == pytest.approx(0.5, abs=4 * 0.0079)  # sqrt(.5 * .5 / 4000)
    assert experts / (experts + 4 * (4000 - experts)) == pytest.approx(0.2, abs=0.02)
    # drawn from seed, step and prompt
    assert numbers == [len(rule.response_prefixes(Prompt(row, TARGET), 5)) for row in range(4000)]
    assert numbers != [len(rule.response_prefixes(Prompt(row, TARGET), 6)) for row in range(4000)]
    assert numbers != [
        len(DemonstrationBesideGroup(4, 0.2, seed=4).response_prefixes(Prompt(row, TARGET), 5)) for row in range(4000)
    ]
    # a prompt without a target is never expert data
    assert all(len(rule.response_prefixes(Prompt(row), 5)) == 4 for row in range(200))


def test_an_expert_prompt_is_demonstration_only_and_the_others_are_rollouts_only() -> None:
    expert, other = DemonstrationBesideGroup(4, expert_share=0.2).plan([Group("a", 0, 0, True, True), Group("b", 2, 4, True, True)])
    assert (expert.kept, expert.demonstrations, expert.weight("rl"), expert.weight("sft"), expert.zone) == (0, 1, 0.0, 1.0, "sft")
    assert (other.kept, other.demonstrations, other.weight("rl"), other.weight("sft"), other.zone) == (4, 0, 1.0, 0.0, "rl")


# --- what holds of all -----------------------------------------------------------------------------------------------

RULES: list[Experience] = [
    RolloutsOnly(4),
    hinted(n=4),
    DemonstrationIfUnsolved(4, "switch", GATED),
    DemonstrationIfUnsolved(4, "soft", GATED),
    DemonstrationIfUnsolved(4, "no", GATED),
    DemonstrationInGroup(4),
    DemonstrationInGroup(4, "skip", WHOLE),
    DemonstrationInGroup(4, "rl", replace(WHOLE, strategy="linear_max", n_prefix=2)),
    DemonstrationBesideGroup(4),
    DemonstrationBesideGroup(4, 0.5),
    DemonstrationsOnly(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{RULES.index(rule)}")
def test_response_prefixes_never_exceed_the_rollouts_that_were_announced(rule: Experience) -> None:
    """The announcement is the most there can be: what memory and steps are planned with."""
    for step, row in np.ndindex(12, 12):
        for target in (TARGET, None):
            prompt = Prompt(int(row), target, ("a", "b", "c"), lambda text: [1] * len(text))
            assert len(rule.response_prefixes(prompt, int(step) + 1)) <= rule.rollouts(target is not None) <= 4


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{RULES.index(rule)}")
def test_most_rows_is_the_worst_case_and_is_reached(rule: Experience) -> None:
    """The bound that batches and the dry run are planned with: no plan exceeds it, some plan needs it."""
    seen = set()
    for step, row, successes, target in product(range(1, 120, 9), range(12), range(5), (TARGET, None)):
        prompt = Prompt(row, target, ("a", "b", "c"), lambda text: [1] * len(text))
        rollouts = len(rule.response_prefixes(prompt, step))
        (group,) = rule.plan([Group("u", min(successes, rollouts), rollouts, target is not None, target is not None)])
        seen.add(group.kept + group.demonstrations)
    assert max(seen) == rule.most_rows


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{RULES.index(rule)}")
def test_every_rule_says_in_words_what_it_does(rule: Experience) -> None:
    text = rule.describe()
    assert ("demonstration" in text) == (rule.needs_target and text != "4 rollouts") or "hint" in text
    assert str(rule.rollouts(True)) in text or not rule.rollouts(True)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{type(rule).__name__}-{RULES.index(rule)}")
def test_plans_keep_the_order_of_the_prompts_and_count_each_once(rule: Experience) -> None:
    groups = [
        Group(f"u{i}", 0, len(rule.response_prefixes(Prompt(i, TARGET if i % 2 else None), 1)), bool(i % 2)) for i in range(8)
    ]
    plan = rule.plan(groups)
    assert [group.uid for group in plan] == [group.uid for group in groups]
    assert sum(plan.zones().values()) == 8
    assert all(group.kept in (0, group.rollouts) for group in plan)
