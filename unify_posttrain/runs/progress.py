"""Live progress of a run on a terminal: step, reward, accuracy, the gate's decisions, time left.

    with show_progress(config) as shown:
        run(shown)

The display reads what the run writes, `metrics.jsonl` and `gate.jsonl` of its folder, whenever it redraws, and shares nothing with
the trainer. It draws on stderr, and only where both outputs are terminals: a log file is not drawn into. `trainer.progress`:

    auto    on a terminal the display; verl's `console` logger, which prints some 200 numbers per step, and progress bars are left
            out (the numbers are in metrics.jsonl). Elsewhere as plain
    plain   what verl prints: the console logger's line and a progress bar per step
    none    neither
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

from omegaconf import DictConfig, open_dict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from unify_posttrain.output import cell
from unify_posttrain.runs.loggers import check_loggers, chosen_loggers
from unify_posttrain.runs.tail import JsonLines
from unify_posttrain.sweeps import check_sweep

MODES = ("auto", "plain", "none")
RECENT_STEPS = 20  # of which the median is taken
REDRAWS_PER_SECOND = 2
BAR_WIDTH = 40  # characters
BARS = "verl.experimental.separation.ray_trainer"  # the module that makes the bar of training steps
STARTING = "starting Ray and verl (about a minute)"


class Progress:
    """What is known of a run: filled by lines of its files, in any order, with any of the metrics missing."""

    def __init__(self, total: int | None, test_freq: int = 0) -> None:
        self.total, self.test_freq = total, test_freq
        self.step: int | None = None  # the last whole one; None until the run has said anything
        self.reward: float | None = None
        self.accuracy: tuple[float, int] | None = None  # and the step at which it was measured
        self.zones: dict[str, float] = {}
        self._steps: deque[float] = deque(maxlen=RECENT_STEPS)
        self._tests: deque[float] = deque(maxlen=RECENT_STEPS)

    def take_metrics(self, entry: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl: {"step": 3, "data": {...}}; step 0 is the validation before training."""
        step, data = entry["step"], entry.get("data")
        data = data if isinstance(data, Mapping) else {}
        self.step = step
        generated = data.get("fusion/tokens_generated")
        # Of sampled responses. A step that samples none (fine-tuning) has no reward; its demonstrations' score is not one.
        self.reward = data.get("critic/score/mean" if generated is None else "fusion/rollout_score") if generated != 0 else None
        accuracies = [value for key, value in data.items() if key.startswith("val-core/") and isinstance(value, int | float)]
        if accuracies:
            self.accuracy = fmean(accuracies), step
        for name, seconds in (("step", self._steps), ("testing", self._tests)):
            if isinstance(value := data.get(f"timing_s/{name}"), int | float):
                seconds.append(value)

    def take_gate(self, entry: Mapping[str, Any]) -> None:
        """A line of gate.jsonl: {"step": 3, "groups": [[row, successes, zone], ...]}."""
        groups = entry.get("groups")
        zones = Counter(group[2] for group in groups if isinstance(group, list) and len(group) == 3) if groups else Counter()
        self.zones = {zone: number / zones.total() for zone, number in zones.items()}

    @property
    def seconds_left(self) -> float | None:
        """Remaining steps at the median of recent ones, and remaining validations at theirs; None before the first step."""
        if not self._steps or self.total is None or self.step is None:
            return None
        seconds = max(0, self.total - self.step) * median(self._steps)
        if self._tests and self.test_freq > 0:  # the last step validates in any case
            seconds += (-(-self.total // self.test_freq) - self.step // self.test_freq) * median(self._tests)
        return seconds

    def headline(self) -> str:
        """`step 12 of 36, about 3 min left`, or why there is no step yet."""
        if self.step is None:
            return STARTING
        place = f"step {self.step}" + (f" of {self.total}" if self.total is not None else "")
        left = self.seconds_left
        return place if left is None else f"{place}, {duration(left)} left" if left else f"{place}, finishing"

    def details(self) -> str:
        """`reward 0.39 · accuracy 62.0 % (step 9) · gate: 35 % demonstrations, 65 % rollouts`, as far as it is known."""
        parts = [] if self.reward is None else [f"reward {self.reward:.3g}"]
        if self.accuracy is not None:
            parts.append(f"accuracy {self.accuracy[0]:.1%} (step {self.accuracy[1]})".replace("%", " %"))
        if self.zones:
            demonstrations = self.zones.get("sft", 0.0) + self.zones.get("off", 0.0)
            shares = {"demonstrations": demonstrations, "rollouts": self.zones.get("rl", 0.0)}
            if "skipped" in self.zones:
                shares["skipped"] = self.zones["skipped"]
            parts.append("gate: " + ", ".join(f"{100 * share:.0f} % {name}" for name, share in shares.items()))
        return " · ".join(parts)


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(seconds) for seconds in (8, 200, 5400)]
    ['8 s', 'about 3 min', 'about 1 h 30 min']
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"


class ProgressDisplay:
    """Two lines at the foot of a terminal that follow a run's folder. A context manager; the last state stays on the screen."""

    def __init__(self, run_dir: Path, name: str, total: int | None, test_freq: int = 0, console: Console | None = None) -> None:
        """`total` steps, None if not known; `run_dir` need not exist yet. `console`: stderr's by default."""
        self.console = console or Console(stderr=True)
        self.name = name
        self._limits = (total, test_freq)
        self.progress = Progress(*self._limits)
        self._metrics, self._gate = JsonLines(run_dir / "metrics.jsonl"), JsonLines(run_dir / "gate.jsonl")
        self._spinner = Spinner("dots")
        self._live = Live(
            self,
            console=self.console,
            refresh_per_second=REDRAWS_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=True,
        )

    def update(self) -> None:
        """Read what the run has written since."""
        fresh, entries = self._metrics.read()
        if fresh:
            self.progress = Progress(*self._limits)
        for entry in entries:
            self.progress.take_metrics(entry)
        _, groups = self._gate.read()
        if groups:
            self.progress.take_gate(groups[-1])

    def __rich__(self) -> RenderableType:
        self.update()
        first = Table.grid(padding=(0, 1))
        parts: list[RenderableType] = [self._spinner, cell(self.name, style="bold")]
        if self.progress.step is not None and self.progress.total is not None:
            parts.append(ProgressBar(total=self.progress.total, completed=self.progress.step, width=BAR_WIDTH))
        first.add_row(*parts, cell(self.progress.headline()))
        details = self.progress.details()
        return Group(first, cell(f"  {details}")) if details else first

    def __enter__(self) -> ProgressDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


def check_outputs(config: DictConfig) -> None:
    """Everything about where a run writes and what it shows: `trainer.progress`, `trainer.logger`, the folders of a sweep.

    Raises:
        ValueError: names the key, its value and the remedy.
    """
    if config.trainer.progress not in MODES:
        raise ValueError(f"trainer.progress={config.trainer.progress!r} is unknown; choose one of {', '.join(MODES)}")
    check_loggers(config)
    check_sweep(config)


@contextmanager
def show_progress(config: DictConfig, console: Console | None = None) -> Iterator[DictConfig]:
    """Show the run that goes on inside of the `with`, as `trainer.progress` says; yields the configuration to run.

    Args:
        config: composed and checked; it is not changed. What is yielded may have fewer loggers.
        console: where to draw, stderr's by default.
    """
    trainer = config.trainer
    loggers = chosen_loggers(config)
    live = trainer.progress == "auto" and "file" in loggers and _on_terminal(console or Console(stderr=True))
    if not live and trainer.progress != "none":
        yield config
        return
    quiet = config.copy()
    with open_dict(quiet):
        quiet.trainer.logger = [each for each in loggers if each != "console"]
    with _without_bars():
        if not live:
            yield quiet
            return
        run_dir = Path(trainer.run_dir)
        display = ProgressDisplay(run_dir, trainer.experiment_name, trainer.total_training_steps, trainer.test_freq, console)
        display.console.print(cell(f"All metrics: {run_dir / 'metrics.jsonl'} (trainer.progress=plain prints them here)"))
        before = sys.stdout, sys.stderr
        with display, _handlers_moved(before):
            yield quiet


def _on_terminal(console: Console) -> bool:
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of tqdm: in this process that of training steps, in those of Ray all (they inherit the environment)."""
    module: Any = importlib.import_module(BARS)
    given, bar = os.environ.get("TQDM_DISABLE"), module.tqdm
    os.environ["TQDM_DISABLE"] = "1"
    module.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        module.tqdm = bar
        if given is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = given


@contextmanager
def _handlers_moved(before: tuple[Any, Any]) -> Iterator[None]:
    """Log handlers hold the streams of their time; inside the display they must write above it, as `print` does."""
    loggers = [logging.root, *(each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger))]
    handlers = [each for one in loggers for each in one.handlers if isinstance(each, logging.StreamHandler)]
    moved = [(each, each.stream) for each in handlers if each.stream in before]
    for handler, stream in moved:
        handler.setStream(sys.stdout if stream is before[0] else sys.stderr)
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)
