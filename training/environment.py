"""The first files of a run's folder: settings, split, and environment.json, from which the run can be repeated."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path

import keras
import pandas as pd

import config
import data
import model
from devices import keras_stack
from images import data_plots, leaks, plot_style, splits
from safety import atomic_files, limits
from safety.errors import InputError

PACKAGES = [*keras_stack.PACKAGES, "numpy", "pandas", "scikit-learn", "scipy", "pillow"]
MAX_BYTES = 2**22


def write_first_files(run: Path, settings: config.Settings, table: pd.DataFrame, environment: dict) -> None:
    """Creates the run's folder with config.yaml, split.csv, split.png and environment.json, all at once.

    Args:
        run: the folder.
        settings: of the run.
        table: a row for each image, with its set.
        environment: of `collect`.
    """
    atomic_files.remove_leftovers(run.parent, of=run.name)
    temporary = run.with_name(f".{os.getpid()}.{run.name}")
    atomic_files.write_text(temporary / "config.yaml", settings.to_yaml())
    atomic_files.write_text(temporary / "split.csv", splits.to_csv(table))
    plot_style.save(data_plots.split(table), temporary / "split.png", environment["notice"])
    atomic_files.write_text(temporary / "environment.json", json.dumps(environment, indent=1))
    temporary.rename(run)


def collect(settings: config.Settings, table: pd.DataFrame, network: keras.Model) -> dict:
    """What is needed to repeat the run on another machine, for environment.json; arguments as of the run."""
    return {
        **describe(settings, network),
        "split_sha256": splits.digest(splits.to_csv(table)),
        "leaks": leaks.measure(table, splits.training_rows(table, settings.data)),
    }


def describe(settings: config.Settings, network: keras.Model) -> dict:
    """The part of `collect` that does not depend on a split."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "platform": platform.platform(),
        "seed": settings.data.seed,
        "settings": settings.model_dump(),
        "git_commit": git_commit(),
        "weights_sha256": model.weights_hash(model.pooled(network)),
        "notice": data.notice(settings.data.root),
    }


def git_commit() -> str:
    """The commit of this code, with `-dirty` after it where files were changed; empty without a checkout or git."""
    if not shutil.which("git"):
        return ""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    return described.stdout.strip()


def read(run: Path) -> dict:
    """The content of a run's environment.json; empty for a checkpoint without one.

    Raises:
        InputError: the file is no JSON or no environment of a run.
    """
    path = run / "environment.json"
    try:
        content = json.loads(limits.read_bytes(path, MAX_BYTES)) if path.is_file() else {}
    except (ValueError, RecursionError):
        raise InputError(f"{path}: no JSON") from None
    types = {"dropped": dict, "settings": dict, "resumed": list}
    valid = isinstance(content, dict) and all(isinstance(content.get(key, kind()), kind) for key, kind in types.items())
    if not valid or not all(isinstance(section, dict) for section in content.get("settings", {}).values()):
        raise InputError(f"{path}: no environment of a run")
    return content
