#!/usr/bin/env bash
# UFT (arXiv 2505.16984): countdown, one answer per problem, greedy; the reward function is the training's.
#
#   eval_scripts/uft.sh run=outputs/runs/uft                                # all checkpoints, with the run's engine and limits
#   eval_scripts/uft.sh model=outputs/runs/uft/export/step_500 engine=hf    # without vLLM
#
# Published averages over the paper's tasks, of which countdown is one: Qwen2.5-0.5B 9.45 (RL alone: 3.25), Qwen2.5-3B 30.93
# (RL alone: 32.15). They are not comparable with countdown alone, nor with the problems that this package generates.
# Data: python -m unify_posttrain.prepare task=countdown. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=uft \
    benchmarks=[countdown] \
    "$@"
