"""Trains the network on BreakHis: python train.py [--config FILE] [section.key=value ...]

python train.py                                        with config.yaml
python train.py --config thesis.yaml train.run=thesis  with what thesis.yaml changes, into runs/thesis
python train.py data.protocol=slide train.epochs=20    with single settings changed
"""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import datetime
from importlib import metadata
from pathlib import Path

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import pandas as pd
import tensorflow as tf

import audit
import checkpoint
import data
import device
import features
import files
import model
import pictures
import plots
import splits


def main(arguments: list[str]) -> None:
    """The experiment, in the order of time."""
    parser = config.CommandLine(__doc__)
    parser.add_settings()
    args = parser.parse(arguments)
    settings = config.load_settings(args.config, args.overrides)
    run = new_run(settings)

    # What can be refused is refused before the first long step and before anything is written.
    table = data.read_table(settings.data)
    audit.find_pictures(settings.data.root)
    splits.split(table, settings.data)
    settings = device.with_precision(settings)
    machine = device.use_device(settings.train.precision)
    network = model.build(settings)
    table, dropped = audit.sound(table, settings.data)
    version = audit.data_version(table)
    table = splits.split(table, settings.data)

    train, valid = table[table.set == "train"], table[table.set == "valid"]
    rows = splits.upsample(train, settings.data.seed) if settings.data.upsample else train
    note = data.notice(settings.data.root)
    drawn = f"training rows: {len(rows)} of {rows.filename.nunique()} images, out of {train.filename.nunique()}"
    print(settings.to_yaml(), splits.describe(table), "", drawn, sep="\n")
    print(f"device: {machine}", *([note] if note else []), sep="\n")

    surroundings = environment(settings, table, network) | {
        "device": machine,
        "data_sha256": version,
        "dropped": dropped,
    }
    trained, batches, valid_batches = prepare(network, rows, valid, settings)
    run.mkdir(parents=True)
    files.write_text(run / "config.yaml", settings.to_yaml())
    files.write_text(run / "split.csv", splits.to_csv(table))
    files.write_text(run / "environment.json", json.dumps(surroundings, indent=1))
    plots.save(plots.split(table), run / "split.png", note)

    steps = -(-len(rows) // settings.train.batch_size)
    model.compile_model(trained, settings.train, len(rows))
    trained.fit(
        batches,
        epochs=settings.train.epochs,
        steps_per_epoch=steps,
        validation_data=valid_batches,
        callbacks=[
            # First, so that the others find the rate among the logs.
            model.LogRate(model.cyclical_rate(settings.train, len(rows)), steps),
            checkpoint.KeepBest(network, run / "best_model.keras", about(settings, table)),
            keras.callbacks.CSVLogger(run / "history.csv"),
            keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    if not (run / "best_model.keras").exists():
        raise InputError("the loss was no number from the first epoch on; lower train.maximal_lr and train.initial_lr")
    plots.save(plots.history(pd.read_csv(run / "history.csv")), run / "history.png", note)
    print(f"run: {run}")


def prepare(
    network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings
) -> tuple[keras.Model, tf.data.Dataset, tf.data.Dataset]:
    """What is trained, on what, and validated on what: the head on cached features, or the network on pictures."""
    standardize = settings.model.standardize and settings.model.base == "resnet50"
    if settings.cached or standardize:
        kept = features.pooled(network, rows, settings, augmented=settings.cached and settings.augment.active)
    if standardize:
        model.standardize(network, *features.statistics(kept))
    if not settings.cached:
        folder = audit.find_pictures(settings.data.root)
        valid_batches = pictures.without_names(pictures.eval_dataset(valid, folder, settings))
        return network, pictures.train_dataset(rows, folder, settings), valid_batches
    valid_kept = features.pooled(network, valid, settings)
    batches = features.train_dataset(kept, rows.label_int.to_numpy(), settings)
    valid_batches = features.eval_dataset(valid_kept, valid.label_int.to_numpy(), settings.train.batch_size)
    return model.head(network), batches, valid_batches


def new_run(settings: config.Settings) -> Path:
    """The path of a run's folder that is not there yet; raises InputError where it is."""
    name = settings.train.run
    if name == "auto":
        name = f"{settings.data.protocol}-seed{settings.data.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    run = Path("runs") / name
    if run.exists():
        raise InputError(f"train.run: {run} is there already and a run is never overwritten; give another name")
    return run


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
    """The commit of this code, with `-dirty` behind it where files were changed; empty outside a checkout."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip()


if __name__ == "__main__":
    config.run(main)
