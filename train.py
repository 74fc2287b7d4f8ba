"""Trains the network on BreakHis: python train.py [--config FILE] [section.key=value ...]

python train.py                                        with config.yaml
python train.py --config thesis.yaml train.run=thesis  with what thesis.yaml changes, into runs/thesis
python train.py data.protocol=slide train.epochs=20    with single settings changed
python train.py --resume runs/NAME                     goes on with a run that was stopped
"""

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
from config import InputError

import keras
import pandas as pd

import audit
import checkpoint
import data
import device
import files
import model
import phases
import plots
import resume
import splits
import stops
import watch


def main(arguments: list[str]) -> None:
    """A new run or one that goes on, with no other process in its folder."""
    parser = config.CommandLine(__doc__)
    parser.add_settings()
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped: runs/NAME")
    args = parser.parse(arguments)
    if args.resume:
        run, settings = args.resume, resume.settings_of(args.resume, [*filter(None, [args.config]), *args.overrides])
    else:
        settings = config.load_settings(args.config, args.overrides)
        run = Path("runs") / name_of(settings)
    with resume.alone_in(run), resume.told(run):
        if run.exists() and not args.resume:
            raise InputError(f"train.run: {run} is there already and a run is never overwritten; give another name")
        experiment(run, settings)


def experiment(run: Path, settings: config.Settings) -> None:
    """The experiment, in the order of time; a run whose folder is there goes on where it stood."""
    # What can be refused is refused before the first long step and before anything is written.
    table = data.read_table(settings.data)
    audit.find_pictures(settings.data.root)
    splits.split(table, settings.data)
    settings = device.with_precision(settings)
    machine = device.use_device(settings.train.precision, settings.train.deterministic)
    network = model.build(settings)
    table, dropped = audit.sound(table, settings.data)
    version = audit.data_version(table)
    table = splits.split(table, settings.data)
    surroundings = environment(settings, table, network) | {
        "device": machine,
        "data_sha256": version,
        "dropped": dropped,
    }
    if run.exists():
        resume.reopen(run, surroundings)

    train, valid = table[table.set == "train"], table[table.set == "valid"]
    rows = splits.upsample(train, settings.data.seed) if settings.data.upsample else train
    drawn = f"training rows: {len(rows)} of {rows.filename.nunique()} images, out of {train.filename.nunique()}"
    notice = [surroundings["notice"]] if surroundings["notice"] else []
    print(settings.to_yaml(), splits.describe(table), "", drawn, f"device: {machine}", *notice, sep="\n")

    plan = phases.prepare(network, rows, valid, settings)
    if not run.exists():
        write_first_files(run, settings, table, surroundings)
    keeper = checkpoint.KeepBest(network, run / "best_model.keras", about(settings, table))
    for phase in plan:
        fit(phase, run, rows, settings, keeper)
    figure = plots.history(pd.read_csv(run / "history.csv"), *(phase.first for phase in plan[1:]))
    plots.save(figure, run / "history.png", surroundings["notice"])
    print(f"run: {run}")


def fit(
    phase: phases.Phase, run: Path, rows: pd.DataFrame, settings: config.Settings, keeper: checkpoint.KeepBest
) -> None:
    """Trains a phase from where the run stands; nothing is left to do where a resumed run has the phase behind it."""
    phase.begin(keeper.path)
    model.compile_model(phase.trained, settings.train, phase.rate)
    state = resume.restore(phase.trained, run, phase.first)
    keeper.best = state.best
    with stops.waiting() as came:
        phase.trained.fit(
            phase.batches_from(state.epoch),
            initial_epoch=state.epoch,
            epochs=phase.last,
            steps_per_epoch=steps_of(rows, settings),
            validation_data=phase.valid_batches,
            callbacks=[
                watch.StopOnNoNumber(run, rows.filename, settings, phase.rate),
                # Before those that write the logs, so that they find the rate among them.
                model.LogRate(phase.rate, steps_of(rows, settings)),
                keeper,
                resume.KeepState(run, state, keeper),
                keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
                watch.StopBetweenSteps(came),
            ],
        )
    if not keeper.path.exists():
        raise InputError("the validation loss was never a number; lower train.maximal_lr and train.initial_lr")


def steps_of(rows: pd.DataFrame, settings: config.Settings) -> int:
    """Steps of an epoch, the last of which may be smaller."""
    return -(-len(rows) // settings.train.batch_size)


def write_first_files(run: Path, settings: config.Settings, table: pd.DataFrame, surroundings: dict) -> None:
    """The run's folder, with what a run is known by before its first step; it appears as a whole."""
    files.remove_leftovers(run.parent, of=run.name)
    begun = run.with_name(f".{os.getpid()}.{run.name}")
    files.write_text(begun / "config.yaml", settings.to_yaml())
    files.write_text(begun / "split.csv", splits.to_csv(table))
    plots.save(plots.split(table), begun / "split.png", surroundings["notice"])
    files.write_text(begun / "environment.json", json.dumps(surroundings, indent=1))
    begun.rename(run)


def name_of(settings: config.Settings) -> str:
    """The name of the run's folder."""
    if settings.train.run != "auto":
        return settings.train.run
    return f"{settings.data.protocol}-seed{settings.data.seed}-{datetime.now():%Y%m%d-%H%M%S}"


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


if __name__ == "__main__":
    config.run(main)
