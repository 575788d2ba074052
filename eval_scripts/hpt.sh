#!/usr/bin/env bash
# HPT (arXiv 2509.04419): six mathematics benchmarks, temperature 0.6, 8192 tokens; avg@32 on AIME24/25 and AMC, else one sample.
#
#   eval_scripts/hpt.sh model=outputs/runs/hpt/export/step_500
#   eval_scripts/hpt.sh model=[outputs/runs/grpo/export/step_500,outputs/runs/hpt/export/step_500]    # paired test
#
# Published, Qwen2.5-Math-7B: AIME24 33.0, AIME25 21.9, AMC 69.4, MATH-500 89.2, Minerva 46.0, Olympiad 56.9; average 52.7. The same
# paper's SFT 44.5, GRPO 43.1, SFT→GRPO 46.5. Averages of the 1.5B model: HPT 41.9 (gate 1/8 38.7, 2/8 39.0, OFF 38.1), SFT 36.9,
# GRPO 34.0, LUFFY 34.7; of Llama-3.1-8B: HPT 18.2, LUFFY 13.2, GRPO 9.6.
# Prompts: run=FOLDER brings those of its training. A model without its run: Qwen's are the tokenizer's own (the default). Llama's
# are plain text, with a sentence after the question, hence with rows of their own:
#   python -m unify_posttrain.prepare task=benchmarks prepare.task.template=boxed prepare.task.folder=outputs/data/llama/benchmarks
#   eval_scripts/hpt.sh model=… 'custom_chat_template=${define.templates.question_answer}' define.folder=outputs/data/llama
# Data: python -m unify_posttrain.prepare task=benchmarks. Not run here: needs a GPU with vLLM. PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.evaluate \
    name=hpt \
    benchmarks=[aime24,aime25,amc,math500,minerva,olympiad] \
    max_response_length=8192 \
    "$@"
