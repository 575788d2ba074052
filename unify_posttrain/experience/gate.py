"""The gate: from the successes of each prompt's rollouts to a plan of which rows are trained, and with which coefficients.

HPT (arXiv 2509.04419 §4) trains a prompt by reinforcement when the policy solves it often enough, and by supervised
fine-tuning on a demonstration otherwise. The decision is pure and small; its result is a `BatchPlan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor

from unify_posttrain.experience.plan import BatchPlan, GroupPlan

STRATEGIES = ("switch", "soft", "no")

# (on, off, sft) coefficients by the number of successes 0..8 among the eight rows of a group, the verified demonstration
# included: the three tables of the released HPT code, written for n = 8.
SOFT_TABLES: dict[int, tuple[tuple[float, float, float], ...]] = {
    0: (
        (1, 1, 1), (0, 0, 1), (0.125, 0.5, 0.5), (0.25, 1, 0.25), (0.5, 0.5, 0.125),
        (1, 0.25, 0), (1, 0.125, 0), (1, 0, 0), (1, 0, 0),
    ),
    1: (
        (1, 1, 1), (0, 1, 1), (0.125, 1, 0.5), (0.25, 1, 0.25), (0.5, 1, 0.125),
        (1, 1, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0),
    ),
    2: (
        (1, 1, 1), (0, 0, 1), (0.125, 0, 0.5), (0.25, 0, 0.25), (0.5, 0, 0.125),
        (1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0),
    ),
}  # fmt: skip


def gate(
    successes: Sequence[int],
    group_size: int,
    strategy: str = "switch",
    *,
    switch_gate: int = 0,
    switch_gate_off: int | None = None,
    gate_rate: float | None = None,
    soft_type: int = 0,
    soft_table: Sequence[Sequence[float]] | None = None,
    has_demonstration: Sequence[bool] | None = None,
    demonstration_solved: Sequence[bool] | None = None,
    missing: str = "rl",
    uids: Sequence[str] | None = None,
) -> BatchPlan:
    """Decide per prompt between its rollouts and its demonstration.

    switch: with s of n rollouts solved, s <= switch_gate trains ONE demonstration by likelihood; switch_gate < s <=
        switch_gate_off trains it by the off-policy policy gradient; beyond both, the n rollouts are trained.
        switch_gate = -1 is pure reinforcement learning, >= n pure fine-tuning.
    soft: every group holds n-1 rollouts and one demonstration, with the published coefficients for its number of successes
        (see `soft_coefficients`).
    no: the rollouts, always.

    Args:
        successes: solved rollouts per prompt, each in 0..rollouts (n for switch and no; n-1 for soft with a demonstration; not
            looked at for soft without one under missing=skip, where nothing is generated).
        group_size: n = `rollout.n`.
        strategy: one of `STRATEGIES`.
        switch_gate: -1..n.
        switch_gate_off: upper end of the middle zone; None means no middle zone.
        gate_rate: γ in [0, 1]; sets switch_gate = floor(γ·n) when given.
        soft_type: 0, 1 or 2, which published table.
        soft_table: nine (on, off, sft) triples instead of a published table.
        has_demonstration: whether a usable target exists, per prompt; default: all.
        demonstration_solved: whether the demonstration passes the task's own check (soft); default: all.
        missing: "rl" (a gated prompt without target stays in RL) or "skip" (it contributes no row).
        uids: names of the groups; default "0", "1", …

    Returns:
        The plan, one group per prompt.

    Raises:
        ValueError: unknown strategy or table, gate outside its range, group too small, success count out of range.
    """
    prompts = len(successes)
    has_demonstration = [True] * prompts if has_demonstration is None else has_demonstration
    demonstration_solved = [True] * prompts if demonstration_solved is None else demonstration_solved
    uids = [str(index) for index in range(prompts)] if uids is None else uids
    _check(group_size, strategy, switch_gate, switch_gate_off, gate_rate, missing)
    if strategy == "soft":
        _soft_rows(soft_type, soft_table)
    low, high = gate_bounds(group_size, switch_gate, switch_gate_off, gate_rate)

    groups = []
    for uid, s, demo, solved in zip(uids, successes, has_demonstration, demonstration_solved, strict=True):
        mixed = strategy == "soft" and demo
        unused = strategy == "soft" and not demo and missing == "skip"
        rollouts = 0 if unused else group_size - 1 if mixed else group_size
        if not 0 <= s <= (group_size if unused else rollouts):
            raise ValueError(f"group {uid}: {s} successes among {rollouts} rollouts (strategy {strategy}, n={group_size})")
        reinforce = GroupPlan(uid, s, rollouts, rollouts, 0, {"rl": 1.0})
        if mixed:
            on, off, sft = soft_coefficients(s, rollouts, solved, soft_type, soft_table)
            groups.append(GroupPlan(uid, s, rollouts, rollouts, 1, {"rl": on, "off": off, "sft": sft}))
        elif strategy == "switch" and s <= high:
            if demo:
                groups.append(GroupPlan(uid, s, rollouts, 0, 1, {"off" if s > low else "sft": 1.0}))
            else:
                groups.append(reinforce if missing == "rl" else GroupPlan(uid, s, rollouts, 0, 0))
        elif unused:
            groups.append(GroupPlan(uid, 0, 0, 0, 0))
        else:
            groups.append(reinforce)
    return BatchPlan(tuple(groups))


def gate_bounds(group_size: int, switch_gate: int, switch_gate_off: int | None, gate_rate: float | None) -> tuple[int, int]:
    """(low, high): up to `low` solved rollouts a demonstration is trained by likelihood, up to `high` by the off-policy term."""
    low = switch_gate if gate_rate is None else floor(gate_rate * group_size + 1e-9)
    return low, max(low, low if switch_gate_off is None else switch_gate_off)


def soft_coefficients(
    successes: int,
    rollouts: int,
    demonstration_solved: bool,
    soft_type: int = 0,
    soft_table: Sequence[Sequence[float]] | None = None,
) -> tuple[float, float, float]:
    """(on, off, sft) of a group of `rollouts` + 1 rows, from the published tables generalised to any group size.

    The tables have nine rows, for 0..8 successes among 7 rollouts and one demonstration. A group with k of n_on rollouts
    solved, and v = 1 if its demonstration passes the check, stands at x = v + 7k/n_on: x < 1 is raised to 1 (row 0 is
    reached only by k = v = 0), and between two rows the triples are interpolated linearly. x is an exact fraction, so
    n = 8 gives the tables to the last bit.

    Raises:
        ValueError: unknown table, a table that is not nine triples, or no rollouts.
    """
    table = _soft_rows(soft_type, soft_table)
    if rollouts < 1:
        raise ValueError("strategy soft needs at least one rollout beside the demonstration: rollout.n >= 2")
    solved = int(demonstration_solved)
    if successes == 0 and not solved:
        on, off, sft = table[0]
        return float(on), float(off), float(sft)
    x = max(Fraction(1), solved + Fraction(7 * successes, rollouts))
    below = min(int(x), 7)
    share = x - below
    lower, upper = table[below], table[below + 1]
    on, off, sft = (float(a) + float(share) * (float(b) - float(a)) for a, b in zip(lower, upper, strict=True))
    return on, off, sft


def _soft_rows(soft_type: int, soft_table: Sequence[Sequence[float]] | None) -> Sequence[Sequence[float]]:
    if soft_table is None and soft_type not in SOFT_TABLES:
        raise ValueError(f"fusion.hpt.soft_type={soft_type!r} is unknown; choose one of {', '.join(map(str, SOFT_TABLES))}")
    table = SOFT_TABLES[soft_type] if soft_table is None else soft_table
    if len(table) != 9 or any(len(row) != 3 for row in table):
        raise ValueError("fusion.hpt.soft_table must be nine (on, off, sft) triples, for 0..8 successes")
    return table


def _check(
    group_size: int,
    strategy: str,
    switch_gate: int,
    switch_gate_off: int | None,
    gate_rate: float | None,
    missing: str,
) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"trainer.unify_strategy={strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}")
    if missing not in ("rl", "skip"):
        raise ValueError(f"fusion.demo.missing={missing!r}: the gate knows rl and skip")
    if strategy == "no":
        return
    if group_size < 2:
        raise ValueError(f"actor_rollout_ref.rollout.n={group_size}: a gate compares rollouts, set it to 2 or more")
    gates = {"trainer.switch_gate": switch_gate}
    if switch_gate_off is not None:
        gates["trainer.switch_gate_off"] = switch_gate_off
    for key, value in gates.items():
        if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= group_size:
            raise ValueError(f"{key}={value} must be an integer from -1 (pure RL) to rollout.n={group_size} (pure SFT)")
    if gate_rate is not None and not 0 <= gate_rate <= 1:
        raise ValueError(f"fusion.hpt.gate_rate={gate_rate} must lie in [0, 1]: it is a success rate")
