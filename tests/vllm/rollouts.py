"""Generate with the workers, engine and agent loops of a training run, without training, and save what came back.

    python -m tests.vllm.rollouts FILE override ...

FILE is JSON: case -> rollouts in the order of the validation prompts, each with `prompt`, `response`, `mask`, `log_probs`, `seed`.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from verl import DataProto

from unify_posttrain.config import compose_config
from unify_posttrain.rollout.agent_loop import PREFIX_COLUMN, PREFIX_TRAINED_COLUMN, SEED_COLUMN
from unify_posttrain.startup.checks import check_config
from unify_posttrain.trainer import launch, task_runner
from unify_posttrain.trainer.run_inputs import RunInputs


class RolloutRunner(task_runner.FusionTaskRunner):
    """Everything is built as for training; then `generate_all` takes the place of `fit`."""

    def run(self, config: Any, inputs: RunInputs) -> None:
        from unify_posttrain.trainer.fusion_trainer import FusionTrainer

        FusionTrainer.fit = generate_all  # in this process, which ends with the run
        super().run(config, inputs)


def generate_all(trainer: Any) -> None:
    """The cases of test_rollouts.py and test_pictures.py, after one transfer of weights (vLLM starts with random ones)."""
    trainer.checkpoint_manager.update_weights(0)
    batch = trainer._get_gen_batch(DataProto.from_single_dict(next(iter(trainer.val_dataloader))))
    seeds = batch.non_tensor_batch[SEED_COLUMN]
    prefix = trainer.tokenizer("12", add_special_tokens=False)["input_ids"]
    prefixes = np.empty(len(batch), dtype=object)
    prefixes[:] = [prefix[: row % 3] for row in range(len(batch))]  # none, one or two tokens
    opened = {PREFIX_COLUMN: prefixes, PREFIX_TRAINED_COLUMN: np.zeros(len(batch), dtype=bool)}
    two_turns = {"agent_name": np.array(["two_turns"] * len(batch), dtype=object)}
    backwards = batch.select_idxs(np.arange(len(batch))[::-1].copy())

    def generate(rows: DataProto, validate: bool, **columns: np.ndarray) -> list[dict[str, Any]]:
        rows = deepcopy(rows)
        rows.non_tensor_batch.update(columns)
        rows.meta_info["validate"] = validate
        return as_lists(rows, trainer.async_rollout_manager.generate_sequences(rows))

    cases = {
        "greedy": generate(batch, True),
        "sampled": generate(batch, False),
        "sampled_again": generate(backwards, False)[::-1],
        "other_seeds": generate(batch, False, **{SEED_COLUMN: seeds + 1}),
        "opened": generate(batch, False, **opened),
        "opened_greedy": generate(batch, True, **opened),
    }
    if trainer.processor is None:
        cases |= {"two_turns": generate(batch, False, **two_turns), "two_turns_greedy": generate(batch, True, **two_turns)}
    Path(trainer.config.trainer.rollout_data_dir).write_text(json.dumps(cases), encoding="utf-8")


def as_lists(rows: DataProto, output: DataProto) -> list[dict[str, Any]]:
    """Without padding; `mask` and `log_probs` belong to `response`."""
    found, width = [], output.batch["prompts"].shape[1]
    for i in range(len(output)):
        attended = output.batch["attention_mask"][i].bool()
        end = int(attended[width:].sum())
        found.append(
            {
                "prompt": output.batch["prompts"][i][attended[:width]].tolist(),
                "response": output.batch["responses"][i][:end].tolist(),
                "mask": output.batch["response_mask"][i][:end].tolist(),
                "log_probs": output.batch["rollout_log_probs"][i][:end].tolist(),
                "seed": int(rows.non_tensor_batch[SEED_COLUMN][i]),
            }
        )
    return found


def main(file: str, *overrides: str) -> None:
    config = compose_config(["algorithm=grpo", "trainer.experiment_name=rollouts", f"trainer.rollout_data_dir={file}", *overrides])
    check_config(config)
    task_runner.FusionTaskRunner = RolloutRunner
    launch.run(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
