"""What a seed per request costs in vLLM: the same requests with and without, in a process of its own.

    python -m tests.gpu.seeded_draws FOLDER REQUESTS TOKENS

Prints JSON: seconds of both, and the share of the responses that two rounds agree in. vLLM takes requests that have a seed out of
the batch and draws for one after another, in Python, at every token (`trainer.seed_rollouts`).
"""

from __future__ import annotations

import json
import sys
import time

# First of all: the wheel for CPU enters itself as "vllm" among the installed packages when it is imported.
import vllm

# isort: split
import numpy as np

from unify_posttrain.rollout.seeds import rollout_seeds

ROUNDS = 3


def main() -> None:
    folder, requests, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = vllm.LLM(
        model=folder, enforce_eager=True, max_model_len=2 * tokens, max_num_seqs=requests, disable_log_stats=True,
        gpu_memory_utilization=0.5,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": [10 + number % 50, 11, 12]} for number in range(requests)]
    seeds = rollout_seeds(0, 1, np.zeros(requests, dtype=np.int64))

    def draw(seeded: bool) -> tuple[float, list[list[int]]]:
        settings = [
            vllm.SamplingParams(
                temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False, seed=int(seed) if seeded else None
            )
            for seed in seeds
        ]
        started = time.perf_counter()
        outputs = engine.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - started, [list(each.outputs[0].token_ids) for each in outputs]

    draw(True), draw(False)  # warms up
    report = {"tokens": requests * tokens, "seconds": {}, "repeated": {}}
    for name, seeded in (("seeded", True), ("free", False)):
        runs = [draw(seeded) for _ in range(ROUNDS)]
        report["seconds"][name] = min(seconds for seconds, _ in runs)
        report["repeated"][name] = sum(one == other for one, other in zip(runs[0][1], runs[1][1], strict=True)) / requests
    print(json.dumps(report))


if __name__ == "__main__":
    main()
