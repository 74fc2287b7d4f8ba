"""Many pieces of work: several processes at a time, and shares for several hosts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from safety.command_line import CommandLine
from safety.errors import InputError


def add_options(parser: CommandLine, what: str) -> None:
    """Adds --jobs and --share to a command; `what` is the plural of what they divide."""
    one = what.removesuffix("s")
    parser.add_argument("--jobs", type=int, default=1, help=f"{what} at a time [1]")
    parser.add_argument(
        "--share", default="1/1", metavar="I/N", help=f"only every Nth {one}, starting with the Ith [1/1]"
    )


def share(items: list, which: str) -> list:
    """Every Nth of the items, starting with the Ith; raises InputError unless `which` is I/N with I from 1 to N."""
    number, count = parse_share(which)
    return items[number - 1 :: count]


def parse_share(which: str) -> tuple[int, int]:
    """The numbers I and N of a share; raises InputError unless `which` is I/N with I from 1 to N."""
    match = re.fullmatch(r"(\d+)/(\d+)", which)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f"--share: needed is I/N with I from 1 to N, for example 1/2, got {which}")
    return int(match[1]), int(match[2])


def check_count(jobs: int) -> None:
    """Raises InputError unless the number of jobs is 1 or more."""
    if jobs < 1:
        raise InputError(f"--jobs: needed is 1 or more, got {jobs}")


def run(function: Callable, items: list, jobs: int, what: str) -> list:
    """The results of a function of each item, `jobs` at a time; after an exception no further item is begun."""
    with ThreadPoolExecutor(jobs) as pool:
        done: Iterable = pool.map(function, items)
        try:
            return list(tqdm(done, what, len(items)))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def last_line(log: Path) -> str:
    """The last line of a log, which is the error of a process that failed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(empty)"
