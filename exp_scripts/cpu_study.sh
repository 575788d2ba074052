#!/usr/bin/env bash
# The study of conf/study.yaml: all algorithms, short, on CPU, with the same learning rate, batch and steps.
#
#   exp_scripts/cpu_study.sh                                              # everything: 2 tasks x 18 algorithms x 3 seeds
#   exp_scripts/cpu_study.sh tasks=[arithmetic] algorithms=[hpt,sft_then_rl] seeds=[0]   # a part; run the rest later
#   exp_scripts/cpu_study.sh algorithms=[]                                # only write the results of what is there
#
# What to expect: 108 runs of 20 steps took 3 h 40 min by the clock, two side by side on 2 cores that also had other work; a base
# model per task on top, once, 1 to 3 minutes. The table that came of it, and what it says, stand in docs/study.md.
# Files in outputs/study (or $UNIFY_HOME/study): results.md, results.json, two figures per task, runs/NAME/ with train.log,
# metrics.jsonl and record.json. Stop it with Ctrl-C and start the same command again: finished runs are not repeated.
# PYTHON: interpreter, default python.

set -euo pipefail

"${PYTHON:-python}" -m unify_posttrain.study "$@"
