"""What a run did to its model and to its answers, looked at afterwards: singular vectors, restorations, advantages, forgetting.

`weights` compares two model folders matrix by matrix, `forgetting` reads evaluations of the checkpoints of runs, `advantages` the
rollout dump of a run. Everything here is pure: torch, numpy and files, neither verl nor ray.
"""
