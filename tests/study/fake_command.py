"""Stands for `unify_posttrain.train` and `.prepare`: reads its overrides, writes metrics.jsonl, behaves as its label says.

Labels: good (hard accuracy 0.5 + seed/100 + learning rate), base (0.4 + seed/50), nan, broken (exit 3), slow (two
grandchildren that outlive any test, one in a process group of its own), unprepared tasks fail to prepare.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    command, *arguments = sys.argv[1:]
    values = dict(argument.split("=", 1) for argument in arguments)
    home = Path(os.environ["UNIFY_HOME"])
    with open(home / "calls.txt", "a") as file:
        file.write(f"{command} {values.get('trainer.experiment_name', values.get('task'))}\n")
    if command == "prepare":
        print("preparing", flush=True)
        sys.exit(4 if values["task"] == "unprepared" else 0)
    label, seed = values["label"], int(values["fusion.seed"])
    folder = home / "runs" / values["trainer.experiment_name"]
    print(f"threads {os.environ['OMP_NUM_THREADS']}\nlast \033[36mwords\033[0m of {label}", flush=True)
    if label == "broken":
        sys.exit(3)
    if label == "slow":
        for apart in (False, True):
            child = subprocess.Popen(["sleep", "600"], preexec_fn=os.setpgrp if apart else None)
            with open(home / "children.txt", "a") as file:
                file.write(f"{child.pid}\n")
        time.sleep(600)
    rate = float(values["actor_rollout_ref.actor.optim.lr"])
    final = {"good": 0.5 + seed / 100 + rate, "base": 0.4 + seed / 50, "nan": float("nan")}[label]
    steps = int(values["trainer.total_training_steps"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(steps + 1):
            data = {f"val-core/{values['task']}_hard/acc/mean@1": 0.1 + (final - 0.1) * step / steps}
            data |= {f"val-core/{values['task']}_easy/acc/mean@1": 1.0, "fusion/loss": 1.0}
            if step:
                data |= {"timing_s/step": 2.0, "fusion/rows_demo": 16.0}
                data |= {} if label == "base" else {"fusion/tokens_generated": 1000.0 + seed}
            file.write(json.dumps({"step": step, "data": data}) + "\n")


if __name__ == "__main__":
    main()
