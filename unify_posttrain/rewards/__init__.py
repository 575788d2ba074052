"""Rewards that are more than one task's: pure functions and models, without verl or Ray."""
