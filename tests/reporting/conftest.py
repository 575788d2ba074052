"""A small run with everything in it: 10 steps, two sources, 4 prompts x 4 rollouts, a dump of rollouts, validation samples.

Prompt k (row_id 10 + k) is solved by step // 2 + k - 1 of its rollouts, within 0 and 4; the gate routes what is never solved.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\u2028"
STEPS, PROMPTS, N = 10, 4, 4


def solved(step: int, prompt: int) -> int:
    return max(0, min(N, step // 2 + prompt - 1))


def write_lines(path: Path, lines: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def config(name: str, algorithm: str) -> dict[str, Any]:
    return {
        "fusion": {"algorithm": algorithm, "max_grad_norm": 80},
        "actor_rollout_ref": {
            "model": {"path": "/models/tiny"},
            "rollout": {"n": N},
            "actor": {"fusion": {"algorithm": algorithm}},
        },
        "data": {"max_response_length": 64, "train_files": "/data/train.parquet"},
        "prepare": {"task": {"name": "sums"}},
        "trainer": {"experiment_name": name, "total_training_steps": STEPS, "rollout_data_dir": f"/somewhere/{name}/rollouts"},
    }


def metrics(step: int) -> dict[str, float]:
    counts = [solved(step, prompt) for prompt in range(PROMPTS)]
    routed = counts.count(0)
    return {
        "training/global_step": step, "fusion/phase": 0.0,
        "fusion/prompts_rl": PROMPTS - routed, "fusion/prompts_sft": routed, "fusion/prompts_off": 0.0,
        "fusion/prompts_skipped": 0.0,
        "fusion/solve_rate": sum(counts) / (PROMPTS * N), "fusion/rollout_score": sum(counts) / (PROMPTS * N),
        "fusion/tokens_generated": 320.0, "fusion/tokens_on": 300.0, "fusion/tokens_demo": 20.0 * routed,
        "fusion/demo_row_ratio": routed / (routed + N * (PROMPTS - routed)), "fusion/demo_token_ratio": 0.1 * routed,
        "fusion/total_loss": 1 / step, "fusion/rl_loss": -0.1, "fusion/sft_loss": 0.5 * routed,
        "fusion/rho_on_mean": 0.1, "fusion/rho_demo_mean": float(routed > 0), "fusion/on_p": 0.5, "fusion/demo_p": 0.25,
        "fusion/optimizer_steps": 2.0, "fusion/grad_skipped": 0.0, "actor/entropy": 0.5, "actor/grad_norm": 1.0 + step,
        "response_length/mean": 20.0, "response_length/max": 30.0, "response_length/clip_ratio": 0.0,
        "training/rollout_actor_probs_pearson_corr": 1.0,
        "timing_s/gen": 2.0, "timing_s/update_actor": 1.0, "timing_s/step": 3.1,
    }  # fmt: skip


def validation(step: int) -> dict[str, float]:
    return {
        "val-core/sums_easy/acc/mean@1": 1.0, "val-core/sums_hard/acc/mean@1": 0.08 * step + 0.1,
        "val-eval/sums_easy/problems": 100.0, "val-eval/sums_hard/problems": 100.0,
    }  # fmt: skip


def dumped(step: int, text: str) -> list[dict[str, Any]]:
    """Rows of a step as FusionTrainer writes them: a routed prompt's demonstration, else its rollouts; and a padding row."""
    rows = []
    for prompt in range(PROMPTS):
        count = solved(step, prompt)
        base = {"input": f"{prompt}+{prompt}={text}", "gts": str(2 * prompt), "step": step, "uid": f"{step}-{prompt}"}
        base |= {"row_id": 10 + prompt}
        if not count:
            rows.append(
                base | {"output": "worked", "score": 1.0, "acc": 1.0, "row_kind": "demonstration", "advantage": 0.0,
                "rl_weight": 0.0, "off_weight": 0.0, "sft_weight": 1.0,
                "segments": [["demo", f"worked{text}<end>"]], "demonstration": None}
            )  # fmt: skip
            continue
        for rollout in range(N):
            score = float(rollout < count)
            rows.append(
                base | {"output": "tried", "score": score, "acc": score, "row_kind": "rollout", "advantage": score - count / N,
                "rl_weight": 1.0, "off_weight": 0.0, "sft_weight": 0.0,
                "segments": [["hint", "given "], ["on", f"tried{text}<end>"]],
                "demonstration": None if rollout else "worked"}
            )  # fmt: skip
    return [*rows, rows[0] | {"row_kind": "padding", "segments": [], "advantage": None, "uid": "padding-0"}]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Path]:
    """make_run(folder, algorithm="hpt", text="", dump=True) writes a run named as its folder, with `text` in everything written."""

    def build(folder: Path, algorithm: str = "hpt", text: str = "", dump: bool = True) -> Path:
        folder.mkdir(parents=True)
        settings = config(folder.name + text, algorithm)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        measured = [(0, validation(0))] + [(s, metrics(s) | (validation(s) if s % 5 == 0 else {})) for s in range(1, STEPS + 1)]
        write_lines(folder / "metrics.jsonl", [{"step": step, "data": data} for step, data in measured])
        groups = {
            step: [[10 + k, solved(step, k), "rl" if solved(step, k) else "sft"] for k in range(PROMPTS)]
            for step in range(1, STEPS + 1)
        }
        write_lines(folder / "gate.jsonl", [{"step": step, "groups": found} for step, found in groups.items()])
        for step in (0, 5, 10):
            rows = [{"input": f"{k}?{text}", "output": f"{step}{text}", "gts": "4", "score": float(k < step)} for k in range(8)]
            write_lines(folder / "samples" / f"{step}.jsonl", rows)
        for step in range(1, STEPS + 1 if dump else 1):
            write_lines(folder / "rollouts" / f"{step}.jsonl", dumped(step, text))
        return folder

    return build
