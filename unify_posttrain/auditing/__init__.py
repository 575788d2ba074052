"""For whoever doubts a reward: responses graded by several versions and by math-verify, and where these differ.

Knows neither torch, verl nor ray.
"""
