"""General points: reach a target from a hand of cards under a rule that says what faces are worth (arXiv 2501.17161)."""
