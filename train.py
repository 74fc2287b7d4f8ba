"""Trains the network on BreakHis: python train.py [--config FILE] [section.key=value ...]

python train.py                                        with config.yaml
python train.py --config thesis.yaml train.run=thesis  with what thesis.yaml changes, into runs/thesis
python train.py data.protocol=slide train.epochs=20    with single settings changed
python train.py --resume runs/NAME                     goes on with a run that was stopped
python train.py --find-lr                              proposes initial_lr and maximal_lr; keeps no model
python train.py --tune 40                              searches for settings in 40 trials; keeps no model
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import config  # first, because it quiets TensorFlow
from config import InputError

import keras
import pandas as pd

import audit
import checkpoint
import data
import device
import find_lr
import model
import phases
import plots
import record
import resume
import splits
import stops
import strategy
import tune
import watch


class Begun(NamedTuple):
    """What every training begins with.

    Attributes:
        settings: with the precision that is used.
        table: a row an image, with its set.
        rows: those of training, upsampled.
        valid: those of validation.
        network: of `model.build`.
        surroundings: for environment.json.
    """

    settings: config.Settings
    table: pd.DataFrame
    rows: pd.DataFrame
    valid: pd.DataFrame
    network: keras.Model
    surroundings: dict


def main(arguments: list[str]) -> None:
    """A new run, one that goes on, or a search for settings; with no other process in its folder."""
    parser = config.CommandLine(__doc__)
    parser.add_settings()
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped: runs/NAME")
    instead.add_argument("--find-lr", action="store_true", help="propose train.initial_lr and train.maximal_lr")
    instead.add_argument("--tune", metavar="TRIALS", type=tune.trials, help="search where the section tune says")
    args = parser.parse(arguments)
    if args.resume:
        run, settings = args.resume, resume.settings_of(args.resume, [*filter(None, [args.config]), *args.overrides])
    else:
        settings = config.load_settings(args.config, args.overrides)
        run = Path("runs") / name_of(settings)
    if args.find_lr or args.tune:
        return search(run, settings, args.tune)
    with resume.told(run, f"--resume {run}"), strategy.joined(settings, run) as folder, resume.alone_in(folder):
        if folder.exists() and not args.resume:
            raise InputError(f"train.run: {run} is there already and a run is never overwritten; give another name")
        experiment(folder, begin(settings))
    print(f"run: {run}")


def begin(settings: config.Settings) -> Begun:
    """The images, their split and the network; what can be refused is refused before the first long step."""
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
    found = {"device": machine, "data_sha256": version, "dropped": dropped}
    surroundings = record.environment(settings, table, network) | found

    drawn = f"training rows: {len(rows)} of {rows.filename.nunique()} images, out of {train.filename.nunique()}"
    notice = [surroundings["notice"]] if surroundings["notice"] else []
    print(settings.to_yaml(), splits.describe(table), "", drawn, f"device: {machine}", *notice, sep="\n")
    return Begun(settings, table, rows, valid, network, surroundings)


def experiment(run: Path, begun: Begun) -> None:
    """Trains, phase after phase; a run whose folder is there goes on where it stood."""
    settings, table, rows, valid, network, surroundings = begun
    if run.exists():
        resume.reopen(run, surroundings)
    plan = phases.prepare(network, rows, valid, settings)
    if not run.exists():
        record.write_first_files(run, settings, table, surroundings)
    keeper = checkpoint.KeepBest(network, run / "best_model.keras", record.about(settings, table))
    for phase in plan:
        fit(phase, run, rows, settings, keeper)
    figure = plots.history(pd.read_csv(run / "history.csv"), *(phase.first for phase in plan[1:]))
    plots.save(figure, run / "history.png", surroundings["notice"])


def fit(
    phase: phases.Phase, run: Path, rows: pd.DataFrame, settings: config.Settings, keeper: checkpoint.KeepBest
) -> None:
    """Trains a phase from where the run stands; nothing is left to do where a resumed run has the phase behind it."""
    phase.begin(keeper.path)
    model.compile_model(phase.trained, settings.train, phase.rate)
    state = resume.restore(phase.trained, run, phase.first)
    strategy.same(epoch=state.epoch)
    keeper.best = state.best
    with stops.waiting() as came:
        phase.trained.fit(
            strategy.spread(phase.batches_from(state.epoch), weighted=True),
            initial_epoch=state.epoch,
            epochs=phase.last,
            steps_per_epoch=phase.steps,
            validation_data=strategy.spread(phase.valid_batches),
            validation_steps=phase.valid_steps,
            callbacks=[
                watch.StopOnNoNumber(run, rows.filename, settings, phase.rate),
                # Before those that write the logs, so that they find the rate among them.
                model.LogRate(phase.rate, phase.steps),
                keeper,
                resume.KeepState(run, state, keeper),
                keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
                watch.StopBetweenSteps(came),
            ],
        )
    strategy.wait()
    if not keeper.path.exists():
        raise InputError("the validation loss was never a number; lower train.maximal_lr and train.initial_lr")


def search(run: Path, settings: config.Settings, trials: int | None) -> None:
    """A search for settings, into runs/NAME-tune, or for the learning rate alone, into runs/NAME-find-lr."""
    name = "tune" if trials else "find-lr"
    if not settings.cached:
        raise InputError(
            f"--{name} trains the head on cached features: allowed are train.features=cached and "
            f"model.base=resnet50, came {settings.train.features} and {settings.model.base}"
        )
    folder = run.with_name(f"{run.name}-{name}")
    with resume.alone_in(folder), resume.told(folder, f"--tune {trials} --config {folder}/config.yaml"):
        settings, _, rows, valid, network, surroundings = begin(settings)
        if trials:
            return tune.search(trials, folder, tune.prepare(network, rows, valid, settings), surroundings["notice"])
        curve = find_lr.sweep(phases.head(network, rows, valid, settings), settings)
        find_lr.report(curve, folder, surroundings["notice"])


def name_of(settings: config.Settings) -> str:
    """The name of the run's folder."""
    if settings.train.run != "auto":
        return settings.train.run
    return f"{settings.data.protocol}-seed{settings.data.seed}-{datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    config.run(main)
