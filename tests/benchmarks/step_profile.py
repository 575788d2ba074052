"""Where a step's time goes: seconds of its stages, CPU seconds of its processes, and how long its arithmetic takes by itself.

    python -m tests.benchmarks.step_profile                 # the quick start's model, 24 steps of GRPO: two minutes

One run of the real command; its processes are watched from outside. The arithmetic is the same work without Ray, verl and FSDP, in
one process with as many threads: the same number of rows decoded to the same mean length, a forward pass and a forward and backward
pass over rows of that length. Stages are medians over the steps after the first two. Run it with nothing else on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.devices import hide_gpus  # noqa: E402

STAGES = ("gen", "mix", "old_log_prob", "adv", "update_actor", "update_weights")
WARM_UP = 2
PROMPTS, GROUP, UPDATES, MICRO_ROWS = 32, 8, 2, 64
PROCESSES = {
    "HFServer": "engine",
    "WorkerDict": "worker",
    "raylet": "raylet",
    "gcs_server": "gcs_server",
}  # by what their command has


def watch(run: subprocess.Popen, metrics: Path, first: int, last: int) -> dict[str, float]:
    """CPU seconds of each process of a run between the ends of two of its steps."""
    marks: dict[int, dict[str, float]] = {}
    while run.poll() is None and last not in marks:
        done = len(metrics.read_text(encoding="utf-8").splitlines()) - 1 if metrics.exists() else 0  # the first line is step 0
        for step in (first, last):
            if done >= step and step not in marks:
                marks[step] = _used(run.pid)
        time.sleep(0.02)
    run.wait()
    return {name: seconds - marks[first].get(name, 0.0) for name, seconds in marks[last].items()}


def _used(driver: int) -> dict[str, float]:
    found: dict[str, float] = {}
    own = psutil.Process(driver)
    for process in [own, *own.children(recursive=True)]:
        try:
            command, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        name = "driver" if process.pid == driver else next((PROCESSES[part] for part in PROCESSES if part in command), "others")
        found[name] = found.get(name, 0.0) + times.user + times.system
    return found


def arithmetic(folder: Path, rows: int, prompt: int, response: int) -> dict[str, float]:
    """Seconds of the bare work of a step: median of three."""
    from transformers import AutoModelForCausalLM

    from unify_posttrain.rollout.decoding import decode_batch
    from unify_posttrain.rollout.sampling import SamplingParams

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size, (rows, prompt + response), generator=generator)

    def generate() -> None:
        params = [SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_tokens=response, seed=row) for row in range(rows)]
        given = [ids[row // GROUP, :prompt].tolist() for row in range(rows)]
        decode_batch(model, given, params, [], 0)  # nothing ends a row early

    def forward(part: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=part, use_cache=False).logits[:, prompt - 1 : -1]
        return torch.log_softmax(logits, dim=-1).gather(-1, part[:, prompt:, None])

    def score() -> None:
        with torch.no_grad():
            for part in ids.split(MICRO_ROWS):
                forward(part)

    def update() -> None:
        for part in ids.split(MICRO_ROWS):
            forward(part).sum().backward()

    return {"gen": _median(generate), "forward": _median(score), "update_actor": _median(update)}


def _median(work: Callable[[], None]) -> float:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--home", type=Path, default=ROOT / "outputs" / "step_profile")
    parser.add_argument("--worker-in-driver", action=argparse.BooleanOptionalAction, default=True, help="else a line of its own")
    options = parser.parse_args()
    from unify_posttrain.config import passive_threads_per_rank

    home, threads = options.home.resolve(), passive_threads_per_rank(1)
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "UNIFY_HOME": str(home)}
    hide_gpus(environment)
    subprocess.run([sys.executable, "-m", "unify_posttrain.prepare"], env=environment, cwd=ROOT, check=True, capture_output=True)
    metrics = home / "runs" / "profile" / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "unify_posttrain.train", "algorithm=grpo", "trainer.experiment_name=profile",
        "trainer.resume_mode=disable", f"trainer.total_training_steps={options.steps}", "trainer.save_freq=-1",
        "trainer.test_freq=-1", f"trainer.worker_in_driver={str(options.worker_in_driver).lower()}",
        f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.rollout.n={GROUP}", "trainer.progress=none",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS // UPDATES}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={MICRO_ROWS}",
    ]  # fmt: skip
    with open(home / "profile.log", "w", encoding="utf-8") as log:
        run = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        used = watch(run, metrics, WARM_UP, options.steps - 1)
    if run.returncode:
        sys.exit(f"the run ended with {run.returncode}; see {home / 'profile.log'}")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps: list[dict[str, Any]] = [line["data"] for line in lines if line["step"] > WARM_UP]
    stages = {stage: statistics.median(step.get(f"timing_s/{stage}", 0.0) for step in steps) for stage in (*STAGES, "step")}
    lengths = [statistics.mean(step[f"{part}_length/mean"] for step in steps) for part in ("prompt", "response")]
    torch.set_num_threads(threads)
    bare = arithmetic(home / "models" / "tiny_qwen2", PROMPTS * GROUP, *(round(length) for length in lengths))
    report(stages, bare, used, options.steps - 1 - WARM_UP, threads)


def report(stages: dict[str, float], bare: dict[str, float], used: dict[str, float], steps: int, threads: int) -> None:
    """Two Markdown tables."""
    print(f"{threads} thread(s); seconds of a step\n\n| stage | seconds | its arithmetic alone |\n|---|---|---|")
    bare = {**bare, "old_log_prob": bare["forward"] if stages["old_log_prob"] > bare["forward"] / 2 else 0.0}
    for stage in STAGES:
        print(f"| {stage} | {stages[stage]:.3f} | {f'{bare[stage]:.3f}' if bare.get(stage) else ''} |")
    rest = stages["step"] - sum(stages[stage] for stage in STAGES)
    share = sum(bare[stage] for stage in STAGES if stage in bare)
    print(f"| the rest | {rest:.3f} | |\n| step | {stages['step']:.3f} | {share:.3f}: {share / stages['step']:.0%} |")
    print("\n| process | CPU seconds per step |\n|---|---|")
    for name, seconds in sorted(used.items(), key=lambda item: -item[1]):
        print(f"| {name} | {seconds / steps:.3f} |")


if __name__ == "__main__":
    main()
