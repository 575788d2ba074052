#!/usr/bin/env bash
# General points (arXiv 2501.17161, 2509.12235): five verified turns, greedy, under the rule of training and under the other one,
# with the loss of the worked answers.
#
#   eval_scripts/heals.sh run=outputs/runs/gp-sft                                # all checkpoints: a curve
#   eval_scripts/heals.sh run=outputs/runs/gp-sft benchmarks=[gp_id,gp_ood,nav_id,nav_ood]
#   eval_scripts/heals.sh model=outputs/runs/gp-sft/export/step_500 engine=hf    # without vLLM
#
# Published, % of 234 hands: Llama-3.2-11B 24.8 and 17.5 (ID and OOD) at the peak of fine-tuning, 68.4 and 6.9 at its end, 71.8 and
# 16.2 after RL; Qwen2.5-7B 26.1 and 19.7, 43.6 and 17.1, 40.6 and 19.7. Their ID hands are hands of training: gp_id_seen here.
# Data: python -m unify_posttrain.prepare task=general_points. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=heals \
    benchmarks=[gp_id_seen,gp_id,gp_ood] \
    'environment={max_turns: 5}' \
    likelihood=true \
    "$@"
