"""One case per algorithm: what conf/ composes it to. A new method adds an entry here, and every test below runs over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unify_posttrain.objective import (
    CurrentPolicy,
    ExpEntropy,
    NoStabiliser,
    OldPolicy,
    PPOClip,
    Probability,
    Shaped,
    TopEntropy,
    Uncertainty,
)


@dataclass(frozen=True)
class Case:
    """An algorithm with group size 8 (uft: 4) on task=arithmetic.

    Attributes:
        terms: (name, (reference, advantage, stabiliser, token weight if any) or the loss's class, members, counted, aggregation,
            coefficient) of each.
        rows: the rule's own words.
        advantage: as it is printed.
        rollouts: the most per prompt, with and without a demonstration.
        most_rows: of a prompt in a mixed batch.
        needs: target, hint, reference, critic, entropy, as far as it does.
        lr, max_grad_norm: headline numbers with model=qwen2_5_math_7b.
    """

    terms: Sequence[tuple]
    rows: str
    advantage: str
    rollouts: tuple[int, int]
    most_rows: int
    needs: frozenset[str] = frozenset()
    lr: float = 1e-6
    max_grad_norm: float | None = None


NORM, MEAN, ROW_MEAN = "seq-mean-token-sum-norm", "token-mean", "seq-mean-token-mean"
UNCLIPPED = (OldPolicy(), "advantages", NoStabiliser())
CLIPPED, DUAL = ((OldPolicy(), "advantages", PPOClip(0.2, 0.2, dual)) for dual in (None, 3.0))
OFF = (Shaped("p_div_p", gamma=0.1), "advantages", NoStabiliser())
NLL = (CurrentPolicy(), 1.0, NoStabiliser())
ENTROPY = ("entropy", "Entropy", "on", "on", MEAN, -0.001)
GROUP, GROUP_STD = "R - mean over the group", "(R - mean over the group) / std"
ROLLOUTS, ROLLOUTS_STD = "R - mean over its rollouts", "(R - mean over its rollouts) / std"
SFT_ROWS, IN_GROUP = "a demonstration; nothing is generated", "7 rollouts and a demonstration in the group"
GATE = "up to 0 of 8 rollouts are solved: a demonstration by likelihood; otherwise: the 8 rollouts"
TARGET, ENTROPIES = frozenset({"target"}), frozenset({"entropy"})

CASES: dict[str, Case] = {
    "grpo": Case(
        [("rl", DUAL, "on", "on", ROW_MEAN, 1.0), ("entropy", "Entropy", "on", "on", ROW_MEAN, -0.001)],
        "8 rollouts", GROUP_STD, (8, 8), 8, ENTROPIES,
    ),
    "dr_grpo": Case([("rl", UNCLIPPED, "on", "on", NORM, 1.0), ENTROPY], "8 rollouts", GROUP, (8, 8), 8, ENTROPIES),
    "dapo": Case(
        [("rl", (OldPolicy(), "advantages", PPOClip(0.2, 0.28)), "on", "on", MEAN, 1.0)], "8 rollouts", GROUP_STD, (8, 8), 8
    ),
    "ppo": Case(
        [("rl", DUAL, "on", "on", MEAN, 1.0), ENTROPY],
        "8 rollouts", "GAE of the critic's values", (8, 8), 8, ENTROPIES | {"critic"},
    ),
    "sft": Case([("sft", NLL, "demo", "demo", MEAN, 1.0)], SFT_ROWS, "not read", (0, 0), 1, TARGET, lr=5e-5),
    "dft": Case([("sft", (*NLL, Probability()), "demo", "demo", MEAN, 1.0)], SFT_ROWS, "not read", (0, 0), 1, TARGET, lr=5e-5),
    "psft": Case(
        [("sft", (OldPolicy(), 1.0, PPOClip(0.2, 0.28)), "demo", "demo", MEAN, 1.0)],
        SFT_ROWS, "not read", (0, 0), 1, TARGET, lr=5e-5,
    ),
    "sft_then_rl": Case(  # terms and advantage of its first phase
        [("sft", NLL, "demo", "demo", MEAN, 1.0)], SFT_ROWS, "not read", (0, 0), 1, TARGET,
    ),
    "rl_with_sft_loss": Case(
        [("rl", UNCLIPPED, "on", "on", NORM, 1.0), ("sft", NLL, "demo", "demo", MEAN, 1.0), ENTROPY],
        IN_GROUP, ROLLOUTS, (7, 8), 8, TARGET | ENTROPIES,
    ),
    "hpt": Case(
        [
            ("rl", UNCLIPPED, "on*rl_weight", "on*rl_weight", NORM, 1.0),
            ("off", OFF, "demo*off_weight", "demo*off_weight", NORM, 1.0),
            ("sft", NLL, "demo*sft_weight", "demo*sft_weight", MEAN, 1.0),
            ENTROPY,
        ],
        GATE, f"{GROUP}; demonstrations: R", (8, 8), 8, TARGET | ENTROPIES, lr=5e-6, max_grad_norm=80,
    ),
    "luffy": Case(
        [("rl", UNCLIPPED, "on", "trained", NORM, 1.0), ("off", OFF, "demo", "trained", NORM, 1.0), ENTROPY],
        IN_GROUP, GROUP, (7, 8), 8, TARGET | ENTROPIES,
    ),
    "prefix_rft": Case(
        [
            ("rl", CLIPPED, "on", "trained", NORM, 1.0),
            ("off", (*CLIPPED, TopEntropy(0.2)), "demo", "trained", NORM, 1.0),
            ENTROPY,
        ],
        "8 rows, 1 of which begin with 95% to 5% (cosine) of the demonstration",
        GROUP, (8, 8), 8, TARGET | ENTROPIES,  # the prefixed row is generated too
    ),
    "relift": Case(
        [("rl", UNCLIPPED, "on", "on", NORM, 1.0), ENTROPY], "8 rollouts", GROUP, (8, 8), 8, TARGET | ENTROPIES,
    ),
    "srft": Case(
        [
            ("sft", (*NLL, ExpEntropy(0.5, -1)), "demo", "demo", MEAN, 1.0),
            ("off", OFF, "demo", "demo", MEAN, 1.0),
            ("rl", (*NLL, ExpEntropy(0.1, 1)), "on*solved", "on", MEAN, 1.0),
            ("neg", (CurrentPolicy(), -1.0, NoStabiliser()), "on*unsolved", "on", MEAN, 1.0),
        ],
        IN_GROUP, GROUP_STD, (7, 8), 8, TARGET | ENTROPIES,
    ),
    "uft": Case(
        [
            ("rl", CLIPPED, "on", "on", MEAN, 1.0),
            ("hint", NLL, "hint", "hint", MEAN, 0.001),
            ENTROPY,
            ("kl", "KL", "on", "on", MEAN, 0.001),
        ],
        "4 rollouts, all after the same hint of at most 32 tokens", GROUP_STD, (4, 4), 4, ENTROPIES | {"hint", "reference"},
    ),
    "online_sft": Case(
        [
            ("rl", (CurrentPolicy(), "advantages", NoStabiliser()), "on", "on", "seq-mean-token-sum", 1.0),
            ("kl", "KL", "on", "on", MEAN, 0.0),
        ],
        "8 rollouts", "R - 0.1 (l - l_ref)", (8, 8), 8, frozenset({"reference"}),
    ),
    "chord": Case(
        [("rl", DUAL, "on", "on", MEAN, 1.0), ("sft", (*NLL, Uncertainty()), "demo", "demo", MEAN, 1.0)],
        "8 rollouts, and a demonstration beside them", ROLLOUTS_STD, (8, 8), 9, TARGET,
    ),
}  # fmt: skip
WITHOUT_ROLLOUTS = {name for name, case in CASES.items() if not any(case.rollouts)}


def method(name: str) -> str:
    """The method that a name with the settings of published runs belongs to."""
    return name.removesuffix("_released").removesuffix("_heals")


def by_likelihood(name: str) -> bool:
    """Whether demonstrations are trained by likelihood."""
    return any(term[0] == "sft" for term in CASES[method(name)].terms)
