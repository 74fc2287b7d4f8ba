"""Runs that are killed at random moments, and what must be equal between them and a run that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
MODES = {
    "cached": ["train.features=cached", "augment.flip=true"],
    "end_to_end": ["train.features=end_to_end", "augment.flip=true", "model.base=resnet50"],
    "from_scratch": ["augment.flip=true", "model.base=cnn"],
    "fine_tuned": ["model.base=resnet50", "model.trainable_from=conv5_block3", "train.fine_tune_epochs=6"],
}
# A run of four epochs that take no time.
HALF = [*MODES["from_scratch"], "train.epochs=4"]


class StopError(Exception):
    """Raised by a test in the middle of a run."""


def dying(on_epoch_begin):
    """A callback's `on_epoch_begin` that stops the run in its third epoch."""

    def die(self, epoch, logs=None):
        if epoch == 2:
            raise StopError
        on_epoch_begin(self, epoch, logs)

    return die


def start(place, *arguments, command="train.py", **options):
    return subprocess.Popen(
        [sys.executable, ROOT / command, *arguments], cwd=place, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def what_is_left(run):
    """The outcome of a run: weights, optimizer, history, and the arrays of its checkpoint."""
    with np.load(run / "state.npz") as state:
        arrays = {name: state[name].tobytes() for name in state.files}
    about = json.loads(zipfile.ZipFile(run / "best_model.keras").read("breakhis.json"))
    best = {key: about[key] for key in ("arrays_sha256", "epoch", "val_loss", "split_sha256")}
    return arrays, (run / "history.csv").read_text(), best


def epochs_of(run):
    history = run / "history.csv"
    return history.read_text().count("\n") - 1 if history.exists() else 0


def kill_at_random(place, name, settings, kills, rng):
    """Trains, killed and resumed until the run is finished; how many kills there were, and how many inside a write.

    One kill in three falls anywhere from the start on, the others soon after an epoch, where the writes are.
    """
    run, done, inside = place / "runs" / name, 0, 0
    process, started = start(place, *settings, f"train.run={name}"), time.monotonic()
    while True:
        before, until = epochs_of(run), rng.uniform(0, 12) if rng.random() < 1 / 3 else 1e9
        while process.poll() is None and epochs_of(run) == before and time.monotonic() < started + until:
            time.sleep(0.005)
        if process.poll() is None and done < kills:
            time.sleep(rng.uniform(0, 0.4))
            process.kill()
        stderr = process.communicate()[1]
        if process.returncode == 0:
            return done, inside
        assert process.returncode == -signal.SIGKILL, stderr
        done, inside = done + 1, inside + any(place.rglob(f".{process.pid}.*"))
        again = ["--resume", f"runs/{name}"] if run.exists() else [*settings, f"train.run={name}"]
        process, started = start(place, *again), time.monotonic()


def kill_group_at_random(place, command, arguments, kills, seconds, rng, check=lambda: None):
    """Runs a command, killed with all processes that it has started and then repeated, until it is done.

    Args:
        place: the working folder.
        command: the script.
        arguments: of the command.
        kills: how often to kill; after these it is left alone.
        seconds: each kill falls at a random moment from the start to here.
        rng: of the moments.
        check: called after each kill.

    Returns:
        How often it was killed; fewer times than `kills` if it was done before.
    """
    for done in range(kills + 1):
        process = start(place, *arguments, command=command, start_new_session=True)
        until = time.monotonic() + rng.uniform(0, seconds)
        while process.poll() is None and (done == kills or time.monotonic() < until):
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        stderr = process.communicate()[1]
        if process.returncode == 0:
            return done
        assert process.returncode == -signal.SIGKILL, stderr
        check()
    raise AssertionError("the last repetition was not left alone")
