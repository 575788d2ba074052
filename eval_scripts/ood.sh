#!/usr/bin/env bash
# Out of distribution: choice questions that mathematics training has not seen (ARC-Challenge, GPQA-Diamond, MMLU-Pro), answered
# with a letter in a box; temperature 0.6, 8192 tokens, one sample. The protocol of LUFFY and of the papers that compare with it.
#
#   eval_scripts/ood.sh model=[Qwen/Qwen2.5-Math-7B,outputs/runs/hpt/export/step_500]      # what training did to them: paired test
#
# Published: MMLU-Pro 53.9 for ReLIFT with Qwen2.5-Math-7B, as reported by a third party.
# Data: python -m unify_posttrain.prepare task=benchmarks. Not run here: needs a GPU with vLLM. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=ood \
    benchmarks=[arc_c,gpqa_diamond,mmlu_pro] \
    max_response_length=8192 \
    "$@"
