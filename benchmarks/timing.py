"""Calls that are timed, in turn with others and without what they print."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


def seconds(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def quietly(run: Callable, *arguments: Any) -> Any:
    """Calls a function without showing what it prints."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run(*arguments)


class Rate(NamedTuple):
    """Units of work a second in several rounds.

    Attributes:
        median: over the rounds.
        lowest: of all rounds.
        highest: of all rounds.
    """

    median: float
    lowest: float
    highest: float


def race(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, Rate]:
    """Runs all contestants in turn, round after round, so that what else runs on the machine meets all of them.

    Args:
        contestants: name -> function that returns how many units of work it did.
        rounds: to run, after one that is not counted.
    """
    for run in contestants.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            rates[name].append(run() / (time.perf_counter() - start))
    return {name: Rate(statistics.median(values), min(values), max(values)) for name, values in rates.items()}
