"""Counting shapes in a drawn picture, with worked solutions: a complete task for models that see, without a download."""
