"""Metrics and statistics that training, evaluation and the study share. Pure."""
