#!/usr/bin/env bash
# CHORD-φ (arXiv 2508.11408): (1-μ) GRPO + μ SFT, a fifth of the batch being expert data; μ rises to 0.5 and falls to 0.02.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# The published model is Qwen2.5-7B-Instruct. algorithm=chord_released has the batch of Trinity, the authors' framework: 96 prompts,
# a third of them with 8 rollouts, the rest one demonstration each, one update.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_7b_instruct
run_experiment chord openr1_math fusion.chord.expert_share=0.2 data.max_response_length=10240
