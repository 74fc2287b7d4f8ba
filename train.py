"""Trains the network on BreakHis: python train.py [--config FILE] [section.key=value ...]

python train.py                                        with config.yaml
python train.py --config thesis.yaml train.run=thesis  with what thesis.yaml changes, into runs/thesis
python train.py data.protocol=slide train.epochs=20    with single settings changed
python train.py --resume runs/NAME                     goes on with a run that was stopped
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
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
import resume
import splits
import stops
import strategy
import watch


def main(arguments: list[str]) -> None:
    """Reads the settings, joins the devices and runs the experiment on them."""
    parser = config.CommandLine(__doc__)
    parser.add_settings()
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped: runs/NAME")
    args = parser.parse(arguments)
    if args.resume:
        run, settings = args.resume, resume.settings_of(args.resume, [*filter(None, [args.config]), *args.overrides])
    else:
        settings = config.load_settings(args.config, args.overrides)
        run = new_run(settings)
    with resume.told(run), strategy.joined(settings, run) as folder:
        experiment(folder, settings, resumed=bool(args.resume))
    print(f"run: {run}")


def experiment(run: Path, settings: config.Settings, resumed: bool) -> None:
    """The experiment, in the order of time."""
    if resumed:
        held = resume.lock(run)
    # What can be refused is refused before the first long step and before anything is written.
    table = data.read_table(settings.data)
    audit.find_pictures(settings.data.root)
    splits.split(table, settings.data)
    settings = device.with_precision(settings)
    machine = device.use_device(settings.train.precision, settings.train.deterministic) + strategy.describe()
    network = model.build(settings)
    table, dropped = audit.sound(table, settings.data)
    version = audit.data_version(table)
    strategy.same(data=version, precision=settings.train.precision)
    table = splits.split(table, settings.data)

    train, valid = table[table.set == "train"], table[table.set == "valid"]
    rows = splits.upsample(train, settings.data.seed) if settings.data.upsample else train
    drawn = f"training rows: {len(rows)} of {rows.filename.nunique()} images, out of {train.filename.nunique()}"
    surroundings = environment(settings, table, network) | {
        "device": machine,
        "data_sha256": version,
        "dropped": dropped,
    }
    notice = [surroundings["notice"]] if surroundings["notice"] else []
    print(settings.to_yaml(), splits.describe(table), "", drawn, f"device: {machine}", *notice, sep="\n")

    trained, batches_from, valid_batches = prepare(network, rows, valid, settings)
    if resumed:
        resume.reopen(run, table)
    else:
        write_first_files(run, settings, table, surroundings)
        held = resume.lock(run)
    model.compile_model(trained, settings.train, len(rows))
    with held, stops.waiting() as came:
        state = resume.restore(trained, run)
        strategy.same(epoch=state.epoch)
        keeper = checkpoint.KeepBest(network, run / "best_model.keras", about(settings, table), state.best)
        trained.fit(
            strategy.spread(batches_from(state.epoch), weighted=True),
            initial_epoch=state.epoch,
            epochs=settings.train.epochs,
            steps_per_epoch=steps_of(rows, settings),
            validation_data=strategy.spread(valid_batches),
            validation_steps=steps_of(valid, settings),
            callbacks=[*callbacks(run, rows, settings, state, keeper), watch.StopBetweenSteps(came)],
        )
        strategy.wait()
        if not (run / "best_model.keras").exists():
            raise InputError("the validation loss was never a number; lower train.maximal_lr and train.initial_lr")
        plots.save(plots.history(pd.read_csv(run / "history.csv")), run / "history.png", surroundings["notice"])


def prepare(
    network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings
) -> tuple[keras.Model, Callable[[int], tf.data.Dataset], tf.data.Dataset]:
    """What is trained, on what from which epoch on, and validated on what.

    That is the head on cached features, or the network on pictures.
    """
    standardize = settings.model.standardize and settings.model.base == "resnet50"
    if settings.cached or standardize:
        kept = features.pooled(network, rows, settings, augmented=settings.cached and settings.augment.active)
    if standardize:
        model.standardize(network, *features.statistics(kept))
    if not settings.cached:
        folder = audit.find_pictures(settings.data.root)
        valid_batches = pictures.without_names(pictures.eval_dataset(valid, folder, settings))
        return network, lambda first: pictures.train_dataset(rows, folder, settings, first), valid_batches
    valid_kept, labels = features.pooled(network, valid, settings), rows.label_int.to_numpy()
    valid_batches = features.eval_dataset(valid_kept, valid.label_int.to_numpy(), settings.train.batch_size)
    return model.head(network), lambda first: features.train_dataset(kept, labels, settings, first), valid_batches


def callbacks(
    run: Path, rows: pd.DataFrame, settings: config.Settings, state: resume.State, keeper: checkpoint.KeepBest
) -> list[keras.callbacks.Callback]:
    """What happens beside the steps, in the order in which Keras calls it."""
    rate = model.cyclical_rate(settings.train, len(rows))
    return [
        watch.StopOnNoNumber(run, rows.filename, settings, rate),
        # Before those that write the logs, so that they find the rate among them.
        model.LogRate(rate, steps_of(rows, settings)),
        keeper,
        resume.KeepState(run, state, keeper),
        keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
    ]


def steps_of(rows: pd.DataFrame, settings: config.Settings) -> int:
    """Steps of an epoch, the last of which may be smaller."""
    return -(-len(rows) // settings.train.batch_size)


def write_first_files(run: Path, settings: config.Settings, table: pd.DataFrame, surroundings: dict) -> None:
    """The run's folder, with what a run is known by before its first step; it appears as a whole."""
    begun = run.with_name(f".{run.name}")
    shutil.rmtree(begun, ignore_errors=True)
    files.write_text(begun / "config.yaml", settings.to_yaml())
    files.write_text(begun / "split.csv", splits.to_csv(table))
    plots.save(plots.split(table), begun / "split.png", surroundings["notice"])
    files.write_text(begun / "environment.json", json.dumps(surroundings, indent=1))
    begun.rename(run)


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
