"""GRPO by this package, by plain verl 0.7.1 and by TRL's GRPOTrainer: one tiny model, task, batch and number of steps. One table.

    python -m tests.benchmarks.peers                               # 36 steps each, three rounds in alternation: 20 minutes
    python -m tests.benchmarks.peers --steps 4 --rounds 1          # a try
    python -m tests.benchmarks.peers --trl-python /path/to/python  # an environment that has TRL, instead of making one

Builds model and data with the real command, then runs one trainer after the other, each with as many torch threads; the order
turns around every round. A step is 32 prompts x 8 rollouts and two optimizer steps. Samples per second are 256 / median seconds of
a step without the first; validation, checkpoints and start-up are outside of it and stand beside it. CPU seconds are the whole
machine's while a command ran, load its average over the minute before: run it with nothing else. Accuracy is greedy, on the same
file, by the same reward function. The base model is right often enough to be rewarded and wrong often enough to learn: accuracy
moves in 36 steps, so three trainers that learn alike differ from three that do not learn.

Equal: temperature 1, whole vocabulary, 64 new tokens, group deviation, token ratios clipped at 0.2 and 3 (TRL: delta), mean over a
row's tokens, then over rows, no KL, no entropy bonus, AdamW with decay on every weight, constant rate, clipped gradient, float32 on
CPU, no recomputation. Different: the draws (order of prompts, sampling; ours and verl's are the same); TRL deals the rows of a step
to its two optimizer steps at random, we and verl deal whole groups; it adds 1e-4 to a group's deviation, verl 1e-6; it computes
entropies for its log, we and verl the engine's log-probs for ours; it is one process with one copy of the model, we and verl are
Ray, FSDP2, an engine, and weights sent between them. Plain verl has our engine and our seeds, without which it does not run on CPU
(tests/e2e/plain_verl.py).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.devices import hide_gpus  # noqa: E402

TRL = "1.16.0"
# Of the base model's worked sums of four digits, six in ten forget the carry; reward alone can teach it the others.
TASK = ("task=arithmetic", "model=tiny_qwen2", "prepare.model.pretraining.careless={4:0.6}")
CONTENDERS = ("ours", "verl", "trl")
RATIOS = ("samples/s", "step s", "wall s", "outside of steps s", "CPU s")
SPLITS = ("easy", "hard", "ood")
PROMPTS, GROUP, UPDATES, MICRO_ROWS = 32, 8, 2, 64
ROWS = PROMPTS * GROUP
SHARED = {"lr": 5e-5, "weight_decay": 0.01, "max_grad_norm": 1.0, "clip": 0.2, "dual_clip": 3.0, "new_tokens": 64}


def make_trl_environment(folder: Path) -> Path:
    """A virtual environment with TRL and the versions of constraints.txt. Returns its python."""
    python = folder / "bin" / "python"
    if not python.exists():
        uv = str(Path(sys.executable).parent / "uv")
        packages = [f"trl=={TRL}", "torch", "transformers", "accelerate", "datasets", "rich"]
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", str(python), "-c", str(ROOT / "constraints.txt"), *packages]
        subprocess.run(install, check=True)
    return python


def run_verl(home: Path, seed: int, steps: int, environment: dict[str, str], plain: bool) -> dict[str, Any]:
    """The real command or, with the same settings, verl's own trainer, worker loop and actor; and what the metrics file says."""
    name = f"peer-{'verl' if plain else 'ours'}-{seed}"
    overrides = (
        "algorithm=grpo", "hardware=cpu", f"fusion.seed={seed}",
        f"trainer.experiment_name={name}", "trainer.resume_mode=disable", f"trainer.total_training_steps={steps}",
        "trainer.save_freq=-1", f"trainer.test_freq={steps}", f"data.train_batch_size={PROMPTS}",
        f"data.max_response_length={SHARED['new_tokens']}", f"actor_rollout_ref.rollout.n={GROUP}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // UPDATES}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={MICRO_ROWS}",
        "actor_rollout_ref.actor.entropy_coeff=0", f"actor_rollout_ref.actor.optim.lr={SHARED['lr']}",
        f"actor_rollout_ref.actor.optim.weight_decay={SHARED['weight_decay']}",
        f"actor_rollout_ref.actor.grad_clip={SHARED['max_grad_norm']}",
        f"actor_rollout_ref.actor.clip_ratio_low={SHARED['clip']}", f"actor_rollout_ref.actor.clip_ratio_high={SHARED['clip']}",
        f"actor_rollout_ref.actor.clip_ratio_c={SHARED['dual_clip']}",
    )  # fmt: skip
    folder = home / "runs" / name
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    script = [str(ROOT / "tests" / "e2e" / "plain_verl.py")] if plain else ["-m", "unify_posttrain.train"]
    spent = _run([sys.executable, *script, *TASK, *overrides], environment, home / f"{name}.log")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = {entry["step"]: entry["data"] for entry in map(json.loads, lines)}
    outside = ("timing_s/testing", "timing_s/save_checkpoint")
    seconds = [entries[step]["timing_s/step"] - sum(entries[step].get(key, 0.0) for key in outside) for step in range(1, steps + 1)]

    def accuracy(step: int) -> dict[str, float]:
        return {split: entries[step][f"val-core/arithmetic_{split}/acc/mean@1"] for split in SPLITS}

    return {**spent, "step_seconds": seconds, "before": accuracy(0), "after": accuracy(steps)}


def run_trl(home: Path, seed: int, steps: int, environment: dict[str, str], python: Path) -> dict[str, Any]:
    """This file again, in TRL's environment."""
    name = f"peer-trl-{seed}"
    settings = {
        **SHARED, "seed": seed, "steps": steps, "model": str(home / "models" / "tiny_qwen2"), "output": str(home / "runs" / name),
        "train": str(home / "data" / "arithmetic" / "train.parquet"), "test": str(home / "data" / "arithmetic" / "test.parquet"),
    }  # fmt: skip
    result = home / f"{name}.json"
    command = [str(python), str(Path(__file__).resolve()), "--as-trl", json.dumps(settings), "--result", str(result)]
    spent = _run(command, environment, home / f"{name}.log")
    return {**spent, **json.loads(result.read_text(encoding="utf-8"))}


def _run(command: list[str], environment: dict[str, str], log: Path) -> dict[str, float]:
    """Run a command: wall seconds, CPU seconds of the whole machine meanwhile, and its load before.

    Raises:
        RuntimeError: it failed; holds the end of its log.
    """
    load, busy, started = os.getloadavg()[0], _busy_seconds(), time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{command[1:4]} exited with {done.returncode}; the end of {log}:\n{tail}")
    return {"wall": time.perf_counter() - started, "cpu": _busy_seconds() - busy, "load": load}


def _busy_seconds() -> float:
    """CPU seconds of all processes since the machine started: those of Ray's are no children of the command."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


# In TRL's environment


def train_with_trl(settings: dict[str, Any]) -> dict[str, Any]:
    """`steps` x two optimizer steps of GRPOTrainer. Returns seconds per step and accuracies before and after."""
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from unify_posttrain.tasks.arithmetic import compute_score

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    def reward(completions: list, ground_truth: list[str], data_source: list[str], **_: Any) -> list[float]:
        given = zip(completions, ground_truth, data_source, strict=True)
        return [compute_score(source, completion[0]["content"], truth)["score"] for completion, truth, source in given]

    rows = [
        {"prompt": row["prompt"], "ground_truth": row["reward_model"]["ground_truth"], "data_source": row["data_source"]}
        for row in pq.read_table(settings["train"]).to_pylist()
    ]
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    before = accuracy(model, tokenizer, settings, compute_score)
    micro_batches = ROWS // UPDATES // MICRO_ROWS
    arguments = GRPOConfig(
        output_dir=settings["output"], seed=settings["seed"], max_steps=settings["steps"] * UPDATES,
        per_device_train_batch_size=MICRO_ROWS, gradient_accumulation_steps=micro_batches,
        steps_per_generation=UPDATES * micro_batches, num_generations=GROUP, num_iterations=1,
        max_completion_length=settings["new_tokens"], temperature=1.0, top_p=1.0, top_k=0,
        loss_type="grpo", scale_rewards="group", beta=0.0, epsilon=settings["clip"], delta=settings["dual_clip"],
        learning_rate=settings["lr"], lr_scheduler_type="constant", max_grad_norm=settings["max_grad_norm"],
        use_cpu=True, bf16=False, gradient_checkpointing=False,
        logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    # An optimizer of our own: transformers' Trainer exempts norms and biases from the decay.
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings["lr"], betas=(0.9, 0.999), weight_decay=settings["weight_decay"])
    clock = Clock()
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        callbacks=[clock], optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    ends = clock.times[::UPDATES]
    return {
        "step_seconds": [end - start for start, end in pairwise(ends)],
        "before": before,
        "after": accuracy(trainer.model, tokenizer, settings, compute_score),
    }


def accuracy(model: Any, tokenizer: Any, settings: dict[str, Any], compute_score: Any) -> dict[str, float]:
    """Greedy accuracy per split of the test file."""
    import pyarrow.parquet as pq
    import torch

    rows = pq.read_table(settings["test"]).to_pylist()
    solved: dict[str, list[float]] = {split: [] for split in SPLITS}
    training = model.training
    model.eval()
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        texts = [tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True) for row in part]
        batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**batch, do_sample=False, max_new_tokens=settings["new_tokens"])
        answers = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, answer in zip(part, answers, strict=True):
            score = compute_score(row["data_source"], answer, row["reward_model"]["ground_truth"])["acc"]
            solved[row["data_source"].removeprefix("arithmetic_")].append(score)
    model.train(training)
    return {split: statistics.mean(values) for split, values in solved.items()}


# The comparison


def summarise(run: dict[str, Any]) -> dict[str, float]:
    steady = run["step_seconds"][1:] or run["step_seconds"]
    return {
        "samples/s": ROWS / statistics.median(steady),
        "step s": statistics.median(steady),
        "wall s": run["wall"],
        "outside of steps s": run["wall"] - sum(run["step_seconds"]),
        "CPU s": run["cpu"],
        "load before": run["load"],
        **{f"{split} before": run["before"][split] for split in SPLITS},
        **{f"{split} after": run["after"][split] for split in SPLITS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each, with seeds 0, 1, ...")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--home", type=Path, default=ROOT / "outputs" / "peers", help="model, data, runs and TRL's environment")
    parser.add_argument("--trl-python", type=Path)
    parser.add_argument("--as-trl", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_trl:
        options.result.write_text(json.dumps(train_with_trl(json.loads(options.as_trl))), encoding="utf-8")
        return
    from unify_posttrain.config import passive_threads_per_rank

    home = options.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    threads = passive_threads_per_rank(1)
    openmp = {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "1000",
    }  # as hardware=cpu sets them, for all
    environment = {**os.environ, "UNIFY_HOME": str(home), **openmp, "TOKENIZERS_PARALLELISM": "false"}
    hide_gpus(environment)
    python = (options.trl_python or make_trl_environment(home / "venv")) if "trl" in options.only else None
    _run([sys.executable, "-m", "unify_posttrain.prepare", *TASK], environment, home / "prepare.log")
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS if name in options.only}
    for seed in range(options.rounds):
        for name in list(runs)[:: 1 if seed % 2 == 0 else -1]:
            shared = (home, seed, options.steps, environment)
            runs[name].append(run_trl(*shared, python) if name == "trl" else run_verl(*shared, plain=name == "verl"))
            print(name, seed, json.dumps({key: round(value, 3) for key, value in summarise(runs[name][-1]).items()}), flush=True)
            (home / "results.json").write_text(
                json.dumps({"trl": TRL, "threads": threads, "steps": options.steps, "runs": runs}), "utf-8"
            )
    report(runs, threads)


def report(runs: dict[str, list[dict[str, Any]]], threads: int) -> None:
    """A Markdown table of means over rounds with the single values behind them, and ratios of ours to the others."""
    found = {name: [summarise(run) for run in runs[name]] for name in runs}
    print(f"\n{ROWS} rows a step, {threads} torch thread(s) each; mean (rounds)\n")
    print(f"| | {' | '.join(found)} |\n|---{'|---' * len(found)}|")
    for key in next(iter(found.values()))[0]:
        columns = [[round_[key] for round_ in rounds] for rounds in found.values()]
        cells = [f"{statistics.mean(column):.3g} ({', '.join(f'{value:.3g}' for value in column)})" for column in columns]
        print(f"| {key} | {' | '.join(cells)} |")
    for other in [name for name in found if name != "ours" and "ours" in found]:
        ratios = {
            key: statistics.mean(round_[key] for round_ in found["ours"]) / statistics.mean(round_[key] for round_ in found[other])
            for key in RATIOS
        }
        print(f"\nours / {other}: " + ", ".join(f"{key} {value:.2f}" for key, value in ratios.items()))


if __name__ == "__main__":
    main()
