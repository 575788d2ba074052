#!/usr/bin/env bash
# ReLIFT (arXiv 2506.07527): five mathematics benchmarks and MMLU-Pro in the place of Minerva, temperature 0.6, 8192 tokens;
# avg@32 on AIME24/25 and AMC, else one sample.
#
#   eval_scripts/relift.sh model=outputs/runs/relift/export/step_500
#
# Reported by a third party, Qwen2.5-Math-7B: AIME24 28.3, AIME25 22.9, AMC 65.1, MATH-500 87.9, MMLU-Pro 53.9, Olympiad 57.3;
# average 52.6; RL alone 46.9.
# Data: python -m unify_posttrain.prepare task=benchmarks. Not run here: needs a GPU with vLLM. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=relift \
    benchmarks=[aime24,aime25,amc,math500,mmlu_pro,olympiad] \
    max_response_length=8192 \
    "$@"
