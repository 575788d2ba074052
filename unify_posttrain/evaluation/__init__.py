"""Evaluation of models on benchmarks.

Pure, without torch or verl: `store` (resumable samples), `benchmarks`, `results`, `tables`, `plots`, `settings`. What is measured
(avg@k, pass@k, maj@k, intervals, tests) is `unify_posttrain.measures`, shared with validation during training. The engines import
what they run on, `rewards` imports verl's loader of reward functions, `merging` verl's merger, each when used.
"""

from unify_posttrain.measures.metrics import validation_metrics
from unify_posttrain.measures.statistics import avg_at_k, maj_at_k, majority, pass_at_k

__all__ = ["avg_at_k", "maj_at_k", "majority", "pass_at_k", "validation_metrics"]
