"""The study: a grid of short trainings, their records, and the tables and figures made of them.

    grid         which runs, with which overrides                  records      what a run leaves behind
    processes    run commands side by side, and end them cleanly   outcomes     metrics.jsonl -> accuracy, demonstrations, tokens
    statistics   t intervals over seeds                            summary      runs -> one row per algorithm
    report       results.json, results.md                          plots        PNG

Nothing here imports torch, verl or ray: runs are subprocesses, and everything else is read from their files.
"""
