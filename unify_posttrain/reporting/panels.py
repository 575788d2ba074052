"""Which metrics the page draws, in which order, and what a reader should look for in them."""

from __future__ import annotations

from dataclasses import dataclass

EVALUATIONS = "evaluation"
SECTIONS = {
    "glance": "At a glance",
    EVALUATIONS: "Checkpoints on benchmarks",
    "gate": "The gate at work",
    "training": "Rollouts in training",
    "optimisation": "Optimisation",
    "resources": "Lengths and time",
}
ZONES = {
    "rl": "on its rollouts",
    "sft": "on a demonstration, by likelihood",
    "off": "on a demonstration, off-policy",
    "skipped": "not trained",
}


GENERATED, REPLAYED = "fusion/tokens_generated", "fusion/replay_rows"


@dataclass(frozen=True)
class Panel:
    """Curves that share an axis: one chart with a line per metric for one run, a chart per metric for several.

    Attributes:
        section: key of `SECTIONS`.
        title, caption: what it shows, and how to read it.
        lines: (label, metric), or (label, metric, count): steps at which the count is 0 are left out, because there the metric says
            0 for want of anything to measure.
        unit: share, number, tokens or seconds.
        keeps_zero: a line that is 0 throughout is drawn all the same.
        varying: a line that never changes is not drawn.
    """

    section: str
    title: str
    caption: str
    lines: tuple[tuple[str, ...], ...]
    unit: str = "number"
    keeps_zero: bool = False
    varying: bool = False


PANELS = (
    Panel(
        "training", "Rollouts solved", "Share of all generated rollouts that reach the success threshold.",
        (("solved", "fusion/solve_rate", GENERATED),), "share", keeps_zero=True,
    ),
    Panel(
        "training", "Reward of rollouts", "Mean reward of everything generated, before the gate drops anything.",
        (("reward", "fusion/rollout_score", GENERATED),), keeps_zero=True,
    ),
    Panel(
        "training", "Prompts whose rollouts all agree",
        "Where none or all rollouts are solved, comparing them teaches nothing: reinforcement alone stands still on these prompts.",
        (("none solved", "fusion/solve_none", GENERATED), ("all solved", "fusion/solve_all", GENERATED)), "share", keeps_zero=True,
    ),
    Panel(
        "gate", "Share of demonstrations", "Of the rows and of the tokens that were trained.",
        (("rows", "fusion/demo_row_ratio"), ("tokens", "fusion/demo_token_ratio")), "share",
    ),
    Panel(
        "gate", "Coefficients of the gate", "Mean over prompts of what the gate multiplies each term with.",
        (("on rollouts", "fusion/coef_on_mean"), ("off-policy", "fusion/coef_off_mean"), ("likelihood", "fusion/coef_sft_mean")),
        varying=True,
    ),
    Panel(
        "gate", "Parts of the solution given away", "Mean share of the demonstration that rollouts start from.",
        (("given", "fusion/hint_frac"),), "share",
    ),
    Panel(
        "gate", "Balance of the schedule", "CHORD's μ: weight of demonstrations against rollouts.", (("μ", "fusion/chord_mu"),),
    ),
    Panel(
        "gate", "Replay of unsolved prompts", "Questions that wait, and questions fine-tuned on at a step.",
        (("waiting", "fusion/buffer_size"), ("fine-tuned", "fusion/replay_rows")),
    ),
    Panel(
        "optimisation", "Parts of the loss", "Each term as it enters the loss; the sign of a policy gradient's value means little.",
        (
            ("total", "fusion/total_loss"), ("rollouts", "fusion/rl_loss"), ("unsolved rollouts", "fusion/neg_loss"),
            ("off-policy", "fusion/off_loss"), ("likelihood", "fusion/sft_loss"), ("hint", "fusion/hint_loss"),
            ("replay", "fusion/replay_loss", REPLAYED), ("KL", "actor/kl_loss"),
        ),
    ),
    Panel(
        "optimisation", "Mean effective coefficient",
        "What multiplies ∇ log π per token on average: above 0 its probability is pushed up, below 0 down.",
        (
            ("sampled tokens", "fusion/rho_on_mean", "fusion/tokens_on"),
            ("demonstration tokens", "fusion/rho_demo_mean", "fusion/tokens_demo"),
        ),
    ),
    Panel(
        "optimisation", "Entropy", "Of the policy, per token. A fall to 0 ends exploration.",
        (("entropy", "actor/entropy"),), keeps_zero=True,
    ),
    Panel(
        "optimisation", "Gradient norm", "Before clipping.",
        (("actor", "actor/grad_norm"), ("replay", "fusion/replay_grad_norm", REPLAYED), ("critic", "critic/grad_norm")),
    ),
    Panel(
        "optimisation", "Probability of trained tokens", "Mean probability that the policy gives them.",
        (
            ("sampled", "fusion/on_p", "fusion/tokens_on"), ("demonstrations", "fusion/demo_p", "fusion/tokens_demo"),
            ("hints", "fusion/hint_p", "fusion/tokens_hint"),
        ), "share",
    ),
    Panel(
        "optimisation", "Kept by the stabiliser", "Share of sampled tokens that clipping leaves in the gradient.",
        (("kept", "fusion/mask_frac", "fusion/tokens_on"),), "share", varying=True,
    ),
    Panel(
        "optimisation", "Learning rate", "Of the actor.",
        (("actor", "actor/lr"), ("replay", "fusion/replay_lr", REPLAYED)), varying=True,
    ),
    Panel(
        "resources", "Response length", "Of trained rows, demonstrations included.",
        (("mean", "response_length/mean"), ("longest", "response_length/max")), "tokens", keeps_zero=True,
    ),
    Panel(
        "resources", "Responses cut off", "Share of trained rows that reach the longest length allowed.",
        (("cut off", "response_length/clip_ratio"),), "share", keeps_zero=True,
    ),
    Panel("resources", "Tokens generated", "Per step.", (("tokens", "fusion/tokens_generated"),), "tokens"),
)  # fmt: skip

STAGES = {
    "gen": "generation", "reward": "reward", "demonstrations": "demonstrations", "mix": "gate and mixing",
    "old_log_prob": "log-probabilities", "ref": "reference", "values": "critic's values", "adv": "advantages",
    "update_critic": "critic's update", "update_actor": "actor's update", "update_replay": "replay",
    "update_weights": "weights to engine", "save_checkpoint": "checkpoint", "testing": "validation",
    "dump_rollout_generations": "dump of rollouts",
}  # fmt: skip
