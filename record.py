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

import config  # first, because it quiets TensorFlow

import keras
import pandas as pd

import data
import files
import model
import plots
import splits


def write_first_files(run: Path, settings: config.Settings, table: pd.DataFrame, surroundings: dict) -> None:
    """The run's folder, with what a run is known by before its first step; it appears as a whole."""
    files.remove_leftovers(run.parent, of=run.name)
    begun = run.with_name(f".{os.getpid()}.{run.name}")
    files.write_text(begun / "config.yaml", settings.to_yaml())
    files.write_text(begun / "split.csv", splits.to_csv(table))
    plots.save(plots.split(table), begun / "split.png", surroundings["notice"])
    files.write_text(begun / "environment.json", json.dumps(surroundings, indent=1))
    begun.rename(run)


def about(settings: config.Settings, table: pd.DataFrame) -> dict:
    """What the checkpoint says of itself."""
    return {"settings": settings.model_dump(), "split_sha256": splits.digest(splits.to_csv(table))}


def environment(settings: config.Settings, table: pd.DataFrame, network: keras.Model) -> dict:
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
        "leaks": splits.leaks(table),
        "notice": data.notice(settings.data.root),
    }


def git_commit() -> str:
    """The commit of this code, with `-dirty` behind it where files were changed; empty without a checkout or git."""
    if not shutil.which("git"):
        return ""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip()
