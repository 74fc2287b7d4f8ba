"""What a run is known by: the files that its folder begins with, and what its checkpoint says of itself."""

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
from images import data_plots, leaks, plot_style, splits
from safety import atomic_files, limits
from safety.errors import InputError


def write_first_files(run: Path, settings: config.Settings, table: pd.DataFrame, environment_now: dict) -> None:
    """The run's folder, with what a run is known by before its first step; it appears as a whole."""
    atomic_files.remove_leftovers(run.parent, of=run.name)
    begun = run.with_name(f".{os.getpid()}.{run.name}")
    atomic_files.write_text(begun / "config.yaml", settings.to_yaml())
    atomic_files.write_text(begun / "split.csv", splits.to_csv(table))
    plot_style.save(data_plots.split(table), begun / "split.png", environment_now["notice"])
    atomic_files.write_text(begun / "environment.json", json.dumps(environment_now, indent=1))
    begun.rename(run)


def collect(settings: config.Settings, table: pd.DataFrame, network: keras.Model) -> dict:
    """What another machine needs to know to repeat the run."""
    packages = ["tensorflow", "keras", "tensorflow-addons", "numpy", "pandas", "scikit-learn", "scipy", "pillow"]
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "platform": platform.platform(),
        "seed": settings.data.seed,
        "git_commit": git_commit(),
        "split_sha256": splits.digest(splits.to_csv(table)),
        "weights_sha256": model.weights_hash(model.base_of(network)),
        "leaks": leaks.measure(table),
        "notice": data.notice(settings.data.root),
    }


def git_commit() -> str:
    """The commit of this code, with `-dirty` behind it where files were changed; empty without a checkout or git."""
    if not shutil.which("git"):
        return ""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    return told.stdout.strip()


MAX_BYTES = 2**22


def read(run: Path) -> dict:
    """What environment.json says of the run; empty where a checkpoint stands without it."""
    beside = run / "environment.json"
    try:
        said = json.loads(limits.read_bytes(beside, MAX_BYTES)) if beside.is_file() else {}
    except (ValueError, RecursionError):
        raise InputError(f"{beside}: no JSON") from None
    lists = isinstance(said, dict) and isinstance(said.get("dropped", {}), dict)
    if not lists or not isinstance(said.get("resumed", []), list):
        raise InputError(f"{beside}: no environment of a run")
    return said
