#!/usr/bin/env bash
# CHORD-φ (arXiv 2508.11408): (1-μ) GRPO + μ SFT, a fifth of the batch being expert data; μ rises to 0.5 and falls to 0.02.
# Data: Elliott/Openr1-Math-46k-8192 (46k problems with traces); reward: the last boxed answer.
# The model is a choice of this script.
# Not run here: needs 8 GPUs. What can be set: common.sh.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh" "$@"

published qwen2_5_7b
run_experiment chord openr1_math fusion.chord.expert_share=0.2
