#!/usr/bin/env bash
# LUFFY (arXiv 2504.14945): six mathematics benchmarks, temperature 0.6, 8192 tokens; avg@32 on AIME24/25 and AMC, else one sample.
#
#   eval_scripts/luffy.sh model=outputs/runs/luffy/export/step_500
#   eval_scripts/luffy.sh run=outputs/runs/luffy steps=[250,500]        # its checkpoints, as a curve
#
# Published, Qwen2.5-Math-7B: AIME24 29.4, AIME25 23.1, AMC 65.6, MATH-500 87.6, Minerva 37.5, Olympiad 57.2; average 50.1. Run
# again by the HPT paper: 49.8 (1.5B: 34.7, Llama-3.1-8B: 13.2). Ablation: no shaping, clipped 44.4; shaped 47.8; unclipped 50.1.
# Prompts: run=FOLDER brings those of its training, a published model those of its tokenizer; the system message is in the rows with
# prepare.task.system=luffy. A base model: 'custom_chat_template=${define.templates.think}'.
# Data: python -m unify_posttrain.prepare task=benchmarks. Not run here: needs a GPU with vLLM. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=luffy \
    benchmarks=[aime24,aime25,amc,math500,minerva,olympiad] \
    max_response_length=8192 \
    "$@"
