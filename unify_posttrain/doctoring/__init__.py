"""What a machine must have before a job takes it: checks of `python -m unify_posttrain.doctor`.

`looks` collects facts (`probes`, with time limits); `packages`, `gpus`, `host` and `planned` judge them, in pure functions from
facts to findings; `examination` runs all side by side, `printing` shows the result. Imports neither torch nor verl nor ray.
"""
