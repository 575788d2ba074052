#!/usr/bin/env bash
# Does reinforcement heal what fine-tuning forgot (arXiv 2509.12235)? The study of conf/heals.yaml, on CPU, with a tiny model.
#
#   exp_scripts/cpu_heals.sh                                             # everything: 3 seeds x 3 methods x 2 KL terms x 3 starts
#   exp_scripts/cpu_heals.sh seeds=[0] methods=[grpo] kl=[0.0]           # a part; run the rest later
#   exp_scripts/cpu_heals.sh page=docs/heals.md                          # with a copy of the page once all is there
#
# A base model that has never seen the test hands is fine-tuned on one rule past the peak of the other one, then reinforced from
# the base, the peak and the end, with equal budgets. What comes out is reported as found.
# Files in outputs/heals (or $UNIFY_HOME/heals): heals.md, heals.json, heals.png, runs/, evaluations/, analyses/, logs/. Stop it
# with Ctrl-C and start the same command again: finished steps are not repeated.
# PYTHON: interpreter, default python.

set -euo pipefail

case ${1:-} in
    --help | -h)
        sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac
exec "${PYTHON:-python}" -m unify_posttrain.healing "$@"
