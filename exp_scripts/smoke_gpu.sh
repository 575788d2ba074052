#!/usr/bin/env bash
# Does this machine train at all? HPT on the tiny model that learns to add: three steps on one GPU through vLLM, rows without
# padding and FSDP, a validation and a checkpoint. Nothing is downloaded.
#
#   exp_scripts/smoke_gpu.sh                              # make install-gpu first; the machine is examined before anything starts
#   exp_scripts/smoke_gpu.sh +dry_run=true                # the plan alone; runs without a GPU
#   exp_scripts/smoke_gpu.sh trainer.n_gpus_per_node=2    # any settings of the run
#
# The base model is pretrained once, on the CPU: a minute. Files in outputs/runs/smoke-gpu (or $UNIFY_HOME/runs/smoke-gpu).
# Not run here: needs a GPU.
# PYTHON: interpreter, default python.

set -euo pipefail

python=${PYTHON:-python}
dry_run='' given=()
for argument in "$@"; do
    case $argument in
        --help | -h)
            sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        --dry-run | +dry_run=true) dry_run=1 ;;
        *) given+=("$argument") ;;
    esac
done
run=(algorithm=hpt model=tiny_qwen2 task=arithmetic hardware=gpu_1 trainer.experiment_name=smoke-gpu trainer.resume_mode=disable
    trainer.total_training_steps=3 trainer.test_freq=3 trainer.save_freq=3 ${given[@]+"${given[@]}"})

if [[ -n $dry_run ]]; then
    run+=(+dry_run=true)
else
    "$python" -m unify_posttrain.prepare task=arithmetic model=tiny_qwen2
    "$python" -m unify_posttrain.doctor "${run[@]}"
fi
exec "$python" -m unify_posttrain.train "${run[@]}"
