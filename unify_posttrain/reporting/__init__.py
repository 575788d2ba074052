"""One HTML page about one or several runs. Reads what a run leaves behind; knows neither torch, verl nor ray."""

from unify_posttrain.reporting.build import build_report

__all__ = ["build_report"]
