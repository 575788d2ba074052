"""Every algorithm on 1, 2 and 4 gloo ranks: the same steps, the same numbers to fp32 tolerance.

    python -m tests.benchmarks.ranks [--ranks 1 2 4] [--output ranks.json]

Prints a Markdown table: per algorithm the number of steps on each number of ranks (must agree), the rows trained per step, and the
largest difference of rewards, losses and gradient norms from one rank. The gate decides how many rows there are, so batches are
uneven by nature. Real runs of the training command on the miniature world of the end-to-end tests; the algorithms
that need nothing special are phases of one run. Five runs per number of ranks, about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import World, build_world  # noqa: E402
from tests.e2e.test_methods import PHASES, phases  # noqa: E402
from unify_posttrain.algorithms import ALGORITHMS  # noqa: E402

# What a run of phases can say differs from what a run of its own says only in the optimizer, which starts afresh.
MORE = {"grpo": "", "dr_grpo": "", "hpt": "fusion:{hpt:{switch_gate_off:1}}"}
COMMON = (
    "trainer.resume_mode=disable",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.actor.optim.lr=2e-5",
    # One optimizer step per batch: with several, which rows a mini-batch holds depends on the number of ranks, as in verl.
    "actor_rollout_ref.actor.ppo_mini_batch_size=8",
)
RUNS: dict[str, tuple[str, ...]] = {
    "phases": ("algorithm=sft_then_rl",),
    "relift": ("algorithm=relift", "trainer.total_training_steps=4", "fusion.relift.sft_data_size=3", "fusion.relift.lr=2e-5"),
    "online_sft": ("algorithm=online_sft", "trainer.total_training_steps=3"),
    "ppo": ("algorithm=ppo", "trainer.total_training_steps=3"),
    "sft_then_rl": ("algorithm=sft_then_rl", "trainer.total_training_steps=4",
                    "fusion.phases=[{algorithm:sft,steps:2},{algorithm:grpo}]"),
}  # fmt: skip
CANCELLED = 1e-3
COMPARED = ("critic/rewards/mean", "fusion/rl_loss", "fusion/sft_loss", "fusion/total_loss", "actor/grad_norm", "critic/vf_loss",
            "fusion/replay_nll", "fusion/hint_loss")  # fmt: skip


def all_phases() -> tuple[str, int, list[str]]:
    """The override of every algorithm that can be a phase, the number of steps, and which algorithm each phase is."""
    entries = phases().removeprefix("fusion.phases=[").removesuffix("]")
    more = ",".join(f"{{algorithm:{name},steps:2{',' + rest if rest else ''}}}" for name, rest in MORE.items())
    names = [*MORE, *PHASES]
    return f"fusion.phases=[{more},{entries}]", 2 * len(MORE) + sum(steps for steps, _ in PHASES.values()), names


def train(world: World, run: str, ranks: int) -> dict[str, list[dict[str, float]]]:
    """Metrics of the steps of every algorithm in a run."""
    overrides, names = RUNS[run], [run]
    if run == "phases":
        text, steps, names = all_phases()
        overrides = (*overrides, text, f"trainer.total_training_steps={steps}")
    name = f"{run}-{ranks}"
    world.train(name, *COMMON, *overrides, f"trainer.n_gpus_per_node={ranks}", timeout=1800)
    found: dict[str, list[dict[str, float]]] = {each: [] for each in names}
    for _, entry in sorted(world.metrics(name).items()):
        found[names[int(entry["fusion/phase"])] if run == "phases" else run].append(entry)
    return found


def difference(reference: list[dict[str, float]], other: list[dict[str, float]]) -> dict[str, float]:
    """Largest |a - b| over the steps relative to the largest |a|, per compared metric that the algorithm has. A loss that is
    nothing beside the others is a sum that cancels (of whitened advantages, in PPO's first step): rounding, and left out."""
    worst = {}
    largest = max(abs(entry.get(key, 0.0)) for entry in reference for key in COMPARED)
    for key in COMPARED:
        pairs = [(a[key], b[key]) for a, b in zip(reference, other, strict=False) if key in a and key in b]
        scale = max((abs(a) for a, _ in pairs), default=0.0)
        if scale > CANCELLED * largest:
            worst[key] = max(abs(a - b) for a, b in pairs) / scale
    return worst


def compare(results: dict[int, dict[str, list[dict[str, float]]]]) -> dict[str, dict]:
    """Per algorithm: steps and rows per number of ranks, and the largest relative difference from the fewest ranks."""
    first = min(results)
    table = {}
    for name, reference in results[first].items():
        others = {ranks: difference(reference, found[name]) for ranks, found in results.items() if ranks != first}
        table[name] = {
            "steps": {ranks: len(found[name]) for ranks, found in results.items()},
            "optimizer_steps": {ranks: sum(e["fusion/optimizer_steps"] for e in found[name]) for ranks, found in results.items()},
            "rows": [int(entry["fusion/rows_on"] + entry["fusion/rows_demo"]) for entry in reference],
            "difference": {ranks: max(values.values(), default=0.0) for ranks, values in others.items()},
            "of": {ranks: max(values, key=values.__getitem__, default="") for ranks, values in others.items()},
        }
    return table


def markdown(table: dict[str, dict]) -> str:
    ranks = list(next(iter(table.values()))["steps"])
    others = ranks[1:]
    head = [
        "algorithm",
        "trained rows per step",
        *(f"steps on {r}" for r in ranks),
        *(f"largest difference on {r}" for r in others),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in table.items():
        cells = [f"`{name}`", ", ".join(map(str, row["rows"])), *(str(row["steps"][r]) for r in ranks)]
        cells += [f"{row['difference'][r]:.1e} ({row['of'][r]})" for r in others]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), help="`phases` holds most algorithms")
    parser.add_argument("--output", type=Path, help="JSON file for the table")
    arguments = parser.parse_args()
    results: dict[int, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = build_world(Path(folder))
        for ranks in arguments.ranks:
            results[ranks] = {}
            for run in arguments.runs:
                found = train(world, run, ranks)
                results[ranks].update({name: entries for name, entries in found.items() if name not in results[ranks]})
                sys.stderr.write(f"{run} on {ranks} ranks: done\n")
    table = compare(results)
    absent = sorted(set(ALGORITHMS) - set(table))
    sys.stdout.write(markdown(table) + (f"\nNot run: {', '.join(absent)}\n" if absent else ""))
    if arguments.output:
        arguments.output.write_text(json.dumps(table, indent=1))
    uneven = [
        name for name, row in table.items() if len(set(row["steps"].values())) + len(set(row["optimizer_steps"].values())) > 2
    ]
    if uneven:
        sys.exit(f"step counts depend on the number of ranks: {', '.join(uneven)}")


if __name__ == "__main__":
    main()
