"""What this package costs a step, and what the gate saves: ratios against a baseline of the same session, on CPU.

    python tests/benchmarks/step_overhead.py [--pairs 2] [--steps 12] [--only mixing]
    python tests/benchmarks/step_overhead.py --model tiny_qwen2 --kinds grpo hpt       # the quick start's model and batch

Prints a Markdown table: step time of our GRPO / plain verl's, of HPT with about half of the prompts gated / GRPO, the driver's
time to gate and mix 128 x 8 rows of 8192 tokens, and peak memory. Runs are alternated; medians of the
steps after the first two are compared. Every row is computed, as plain verl does. About 18 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.e2e.conftest import SMALL, World, build_world  # noqa: E402

WARM_UP = 2
ALWAYS = (
    "actor_rollout_ref.rollout.n=8",
    "trainer.resume_mode=disable",
    "actor_rollout_ref.actor.optim.lr=1e-6",  # the model stays what it is, so that the gate stays half open
    "fusion.skip_zero_advantage=false",
)


@dataclass(frozen=True)
class Size:
    """A base model, the sums that it always solves and those that it never does, and the batch."""

    prompts: int
    digits: tuple[int, int]
    overrides: tuple[str, ...]


SIZES = {
    "0.1M": Size(16, (1, 3), ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=128",)),
    "tiny_qwen2": Size(
        32,
        (3, 5),
        (
            "data.max_prompt_length=18", "data.max_response_length=72",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64",
        ),
    ),
}  # fmt: skip


def shape(size: Size) -> tuple[str, ...]:
    batch = (f"data.train_batch_size={size.prompts}", f"actor_rollout_ref.actor.ppo_mini_batch_size={size.prompts}")
    return (*ALWAYS, *batch, *size.overrides)


def mixing(prompts: int = 128, n: int = 8, prompt: int = 1024, response: int = 8192) -> dict[str, float]:
    """Seconds and peak memory of gate + pack + mix on the driver, half of the prompts gated."""
    from unify_posttrain.experience import Demonstration, Rows, demonstration_tensors, gate, mix
    from unify_posttrain.experience.rows import object_column

    rows, width = prompts * n, prompt + response
    attention = torch.ones(rows, width, dtype=torch.long)
    tensors = {
        "input_ids": torch.ones(rows, width, dtype=torch.long),
        "attention_mask": attention,
        "position_ids": attention.cumsum(-1),
        "prompts": torch.ones(rows, prompt, dtype=torch.long),
        "responses": torch.ones(rows, response, dtype=torch.long),
        "response_mask": torch.ones(rows, response, dtype=torch.long),
        "rm_scores": torch.zeros(rows, response),
        "rollout_log_probs": torch.zeros(rows, response),
    }
    uids = object_column([f"group-{row // n}" for row in range(rows)])
    rollouts = Rows(tensors, {"uid": uids})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        plan = gate([(group % 2) * n for group in range(prompts)], n, "switch", uids=list(dict.fromkeys(uids)))
        gated = [group.uid for group in plan if group.demonstrations]
        demonstrations = [Demonstration(i, 0, (1,) * 512, (1,) * 4096) for i in range(len(gated))]
        packed = Rows(demonstration_tensors(demonstrations, prompt, response, 0), {"uid": object_column(gated)})
        mixed = mix(plan, rollouts, packed, ranks=8, mini_batches=2)
        seconds.append(time.perf_counter() - started)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    size = sum(t.numel() * t.element_size() for t in tensors.values()) / 1e9
    return {"seconds": statistics.median(seconds), "rows": len(mixed.rows), "extra_gb": extra, "batch_gb": size}


def step_times(world: World, name: str, plain: bool, size: Size, *overrides: str) -> dict[str, float]:
    """Median step time (s) and peak memory of the training process (GB) of one run."""
    if plain:
        script = [sys.executable, str(ROOT / "tests" / "e2e" / "plain_verl.py"), *SMALL]
        command = [*script, *shape(size), *overrides, f"trainer.experiment_name={name}"]
        subprocess.run(
            command, env=world.environment, cwd=world.home, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    else:
        world.train(name, *shape(size), *overrides)
    metrics = [entry for step, entry in sorted(world.metrics(name).items()) if step > WARM_UP]
    gated = [entry.get("fusion/prompts_sft", 0.0) for entry in metrics]
    return {
        "step": statistics.median(entry["timing_s/step"] for entry in metrics),
        "update": statistics.median(entry["timing_s/update_actor"] for entry in metrics),
        "gen": statistics.median(entry["timing_s/gen"] for entry in metrics),
        "memory_gb": max(entry["perf/max_memory_allocated_gb"] for entry in metrics),
        "gated": statistics.mean(gated) / size.prompts,
    }


def half_solvable(world: World, size: Size) -> str:
    """Training data of which half is within the base model's reach and half is not. Returns the override."""
    from unify_posttrain.tasks.arithmetic import write_splits

    splits = {
        name: {"digits": digits, "train": train, "test": 4}
        for name, digits, train in (
            ("easy", [2], 0),
            ("hard", list(size.digits), 6 * size.prompts),
            ("ood", [size.digits[-1] + 1], 0),
        )
    }
    folder = world.home / "data" / "halves"
    files = write_splits(folder, {"name": "arithmetic", "folder": str(folder), "seed": 1, "splits": splits})
    return f"data.train_files={files['train']}"


def world_with(model: str, home: Path) -> World:
    """A home with the base model of a size."""
    if model == "0.1M":
        return build_world(home)
    world = World(home)
    command = [sys.executable, "-m", "unify_posttrain.prepare", "task=arithmetic", f"model={model}"]
    subprocess.run(command, env=world.environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--model", choices=list(SIZES), default="0.1M")
    parser.add_argument("--kinds", nargs="+", choices=["verl", "grpo", "hpt"], default=["verl", "grpo", "hpt"])
    parser.add_argument("--only", choices=["mixing"])
    options = parser.parse_args()
    mixed = mixing()
    print(
        f"gate + mix 128 x 8 rows of 8192 tokens: {mixed['seconds']:.3f} s "
        f"({mixed['batch_gb']:.2f} GB batch, +{mixed['extra_gb']:.2f} GB peak)",
        flush=True,
    )
    if options.only:
        return
    size = SIZES[options.model]
    with tempfile.TemporaryDirectory() as folder:
        world = world_with(options.model, Path(folder))
        common = (half_solvable(world, size), f"trainer.total_training_steps={options.steps}")
        kinds = {
            "verl": (True, "algorithm=grpo"),
            "grpo": (False, "algorithm=grpo"),
            "hpt": (False, "algorithm=hpt"),
        }
        kinds = {kind: kinds[kind] for kind in kinds if kind in options.kinds}
        results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for pair in range(options.pairs):
            # Forwards, then backwards: a machine that slows down or warms up must not favour one of them.
            for kind, (plain, algorithm) in sorted(kinds.items(), reverse=bool(pair % 2)):
                results[kind].append(step_times(world, f"{kind}-{pair}", plain, size, algorithm, *common))
                print(kind, pair, json.dumps({k: round(v, 4) for k, v in results[kind][-1].items()}), flush=True)

    def best(kind: str, key: str) -> float:
        """Fastest run of a kind: what is left when other processes disturb least."""
        return min(result[key] for result in results[kind])

    def ratios(a: str, b: str, key: str) -> str:
        each = np.array([x[key] / y[key] for x, y in zip(results[a], results[b], strict=True)])
        return f"{best(a, key) / best(b, key):.3f} (pairs {', '.join(f'{r:.3f}' for r in each)})"

    print("\n| figure | value | aim |\n|---|---|---|")
    if {"grpo", "verl"} <= kinds.keys():
        print(f"| step time, our GRPO / verl's | {ratios('grpo', 'verl', 'step')} | <= 0.5 |")
        print(f"| actor update, our GRPO / verl's | {ratios('grpo', 'verl', 'update')} | |")
    if {"grpo", "hpt"} <= kinds.keys():
        gated = f"{results['hpt'][0]['gated']:.0%}"
        print(f"| step time, HPT with {gated} of the prompts gated / GRPO | {ratios('hpt', 'grpo', 'step')} | <= 0.75 |")
        print(f"| actor update, HPT / GRPO | {ratios('hpt', 'grpo', 'update')} | |")
    print(f"| gate and mix 128 x 8 rows of 8192 tokens | {mixed['seconds']:.3f} s | < 0.5 s |")
    for kind in kinds:
        print(f"| peak memory of the {kind} training process | {best(kind, 'memory_gb'):.2f} GB | |")


if __name__ == "__main__":
    main()
