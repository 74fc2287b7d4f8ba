"""Trains many runs, several at a time, and compares them: python grid.py NAME section.key=a,b,... [--jobs N]

python grid.py a data.protocol=row,patient data.seed=0,1,2 --jobs 2  six runs, two at a time, and their comparison
python grid.py b data.protocol=fold data.fold=1,2,3,4,5              the five official folds
python grid.py c data.seed=0,1,2,3 --share 1/2                       the first of two hosts; on the other: --share 2/2
python grid.py d --crossval model.base=resnet50,densenet121          two cross-validations instead of two runs
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import itertools
import re
import subprocess
import sys
from pathlib import Path

import config
from images import audit
from safety import command_line
from safety.errors import InputError
from training import changed_settings, jobs

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Trains the missing runs of this share of the grid, then evaluates and compares all runs if none is missing."""
    parser = command_line.CommandLine(__doc__)
    parser.add_argument("name", metavar="NAME", help="what the names of the runs begin with")
    parser.add_argument("--crossval", action="store_true", help="cross-validate each combination, as crossval.py does")
    jobs.add_options(parser, "runs")
    config.add_settings(parser)
    args = parser.parse(arguments)
    common = ["--config", args.config] if args.config else []
    runs = grid(args.name, args.overrides)
    settings = {name: config.load_settings(args.config, overrides) for name, overrides in runs.items()}
    for name in runs:
        changed_settings.refuse(Path("runs", name), settings[name])
    mine = jobs.share(list(runs), args.share)
    jobs.check_count(args.jobs)
    for name in mine:
        if not (settings[name].model.imported or finished(name, args.crossval)):
            # The error comes here and not in the log of each run; `features.source` would load TensorFlow for it.
            audit.image_folder(settings[name].data.root)
    work = cross_validate if args.crossval else train
    statuses = jobs.run(lambda name: work(name, [*common, *runs[name]]), mine, args.jobs, "runs")
    failed = [name for name, status in zip(mine, statuses) if status]
    if failed:
        log = Path("runs", f"{failed[0]}.log")
        raise InputError(
            f"{len(failed)} of {len(mine)} runs failed; the last line of {log}:\n{jobs.last_line(log)}\n"
            "the same command resumes them"
        )
    missing = [name for name in runs if not finished(name, args.crossval)]
    if missing:
        print(f"{len(missing)} runs of other shares are missing, {missing[0]} for example; the last share compares all")
        return 0
    return subprocess.run([sys.executable, HERE / "evaluate.py", *(f"runs/{name}" for name in runs)]).returncode


def grid(name: str, overrides: list[str]) -> dict[str, list[str]]:
    """The runs of all combinations of the values, as name -> overrides.

    Args:
        name: that the names of the runs begin with; the values that vary follow.
        overrides: texts `section.key=a,b,...`.

    Raises:
        InputError: train.run is among them.

    >>> grid("a", ["data.fold=1,2", "data.seed=0"])
    {'a-1': ['data.fold=1', 'data.seed=0', 'train.run=a-1'], 'a-2': ['data.fold=2', 'data.seed=0', 'train.run=a-2']}
    """
    if any(text.startswith("train.run=") for text in overrides):
        raise InputError("train.run is set by the grid; give its NAME instead")
    keys, values = [text.partition("=")[0] for text in overrides], [text.partition("=")[2] for text in overrides]
    runs = {}
    for chosen in itertools.product(*(value.split(",") for value in values)):
        varied = [choice for choice, value in zip(chosen, values) if "," in value]
        run = re.sub(r"[^A-Za-z0-9._-]", "_", "-".join([name, *varied]))
        runs[run] = [*map("=".join, zip(keys, chosen)), f"train.run={run}"]
    return runs


def train(name: str, arguments: list[str]) -> int:
    """Trains or resumes a run unless it is finished. Returns the exit status."""
    if finished(name):
        return 0
    run = Path("runs", name)
    return logged(name, ["train.py", *(["--resume", str(run)] if run.exists() else arguments)])


def cross_validate(name: str, arguments: list[str]) -> int:
    """Cross-validates, or goes on with a cross-validation, unless it is finished. Returns the exit status."""
    settings = [text for text in arguments if not text.startswith("train.run=")]
    return 0 if finished(name, crossval=True) else logged(name, ["crossval.py", name, *settings])


def logged(name: str, command: list[str]) -> int:
    """Runs a command, whose output goes to runs/NAME.log, and returns its exit status."""
    log = Path("runs", f"{name}.log")
    log.parent.mkdir(exist_ok=True)
    with log.open("a") as output:
        return subprocess.run(
            [sys.executable, HERE / command[0], *command[1:]], stdout=output, stderr=subprocess.STDOUT
        ).returncode


def finished(name: str, crossval: bool = False) -> bool:
    """Whether a run is trained, or a cross-validation evaluated, to its end: whether the last of its files is there."""
    return Path("runs", name, "evaluation/metrics.json" if crossval else "history.png").exists()


if __name__ == "__main__":
    command_line.run(main)
