"""Evaluation of models on benchmarks.

Pure, without torch or verl: `statistics` (avg@k, pass@k, maj@k, intervals, tests), `metrics` (of a source; also for validation
during training), `store` (resumable samples), `benchmarks`, `results`, `tables`, `plots`, `settings`. The engines import what they
run on, `rewards` imports verl's loader of reward functions, `merging` verl's merger, each when used.
"""

from unify_posttrain.evaluation.metrics import validation_metrics
from unify_posttrain.evaluation.statistics import avg_at_k, maj_at_k, majority, pass_at_k

__all__ = ["avg_at_k", "maj_at_k", "majority", "pass_at_k", "validation_metrics"]
