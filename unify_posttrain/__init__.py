"""unify_posttrain: SFT-RL fusion post-training under one policy-gradient estimator, as an extension of verl 0.7.1."""

__version__ = "0.1.0"
