"""Trains the network on BreakHis: python train.py [--config FILE] [section.key=value ...]

python train.py                                        with config.yaml
python train.py --config thesis.yaml train.run=thesis  with the settings of thesis.yaml, into runs/thesis
python train.py data.protocol=slide train.epochs=20    with single settings changed
python train.py --resume runs/NAME                     resumes a run that was stopped
python train.py --resume runs/NAME train.epochs=24     the same, or trains a finished run longer
python train.py --find-lr                              proposes initial_lr and maximal_lr; keeps no model
python train.py --tune 40                              searches for settings in 40 trials; keeps no model
"""

from __future__ import annotations

import safety.startup

safety.startup.start_command(__name__)  # before all other imports, which take seconds

import argparse
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import keras
import pandas as pd

import config
import data
import model
from devices import fastest, precision, strategy
from features import source
from images import audit, leaks, plot_style, splits, stain_normalization
from safety import command_line, lock, signals
from safety.errors import InputError
from training import (
    callbacks,
    changed_settings,
    checkpoint,
    environment,
    lr_range_test,
    phases,
    resume,
    training_plots,
    tuner,
)


class Experiment(NamedTuple):
    """What a training starts from.

    Attributes:
        settings: with the precision and the engine that are used.
        table: a row for each image, with its set.
        rows: of training, upsampled, and of validation.
        network: of `model.build`.
        environment: for environment.json.
    """

    settings: config.Settings
    table: pd.DataFrame
    rows: phases.Rows
    network: keras.Model
    environment: dict


def main(arguments: list[str]) -> None:
    """Trains a new run, resumes a stopped one, or searches for settings; keeps other processes out of its folder."""
    parser = command_line.CommandLine(__doc__)
    config.add_settings(parser)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", metavar="RUN", type=Path, help="resume a run: runs/NAME")
    modes.add_argument("--find-lr", action="store_true", help="propose train.initial_lr and train.maximal_lr")
    modes.add_argument("--tune", metavar="TRIALS", type=trials, help="search in the ranges of the section tune")
    args = parser.parse(arguments)
    if args.resume:
        run, settings = args.resume, resume.settings_of(args.resume, args.config, args.overrides)
    else:
        settings = config.load_settings(args.config, args.overrides)
        run = Path("runs") / name_of(settings)
    if args.find_lr or args.tune:
        return search(run, settings, args.tune)
    again = " ".join(["--resume", str(run), *(args.overrides if args.resume else [])])
    with resume.advice_on_stop(run, again), strategy.scope(settings, run) as folder, lock.exclusive(folder):
        if folder.exists() and not args.resume:
            raise InputError(f"train.run: {run} exists, and a run is never overwritten; give another name")
        train(folder, prepare(settings, bool(args.resume)))
    print(f"run: {run}")


def prepare(settings: config.Settings, resumed: bool = False) -> Experiment:
    """Reads the table, checks and splits the images, and builds the network; arguments as in `splits.split`.

    Raises:
        InputError: the data or the settings cannot be used; as much as possible is checked before the images are read.
        DataError: there are images that cannot be trained on.
    """
    images = source.of(settings)
    table = images.rows(data.read_table(settings.data))
    images.check()
    splits.split(table, settings.data, resumed)
    settings = fastest.with_fastest(settings)
    chosen = settings.train
    device = precision.use_device(chosen.precision, chosen.deterministic, chosen.engine) + strategy.describe()
    network = model.build(settings, width=images.width)

    table, dropped = images.usable_rows(splits.select(table, settings.data))
    data_sha256 = audit.data_version(table)
    strategy.assert_same(data=data_sha256, precision=settings.train.precision)
    table = splits.split(table, settings.data, resumed)
    given = settings.data.stain_target != "auto"
    if given and not resumed:
        print("note: data.stain_target is given; auto would fit it on the training images of this split alone")
    settings = stain_normalization.fitted(settings, table[table.set == "train"])
    strategy.assert_same(stain=str(settings.data.stain_target))
    rows = phases.Rows(splits.training_rows(table, settings.data), table[table.set == "valid"])

    record = environment.collect(settings, table, network)
    record |= {"device": device, "data_sha256": data_sha256, "dropped": dropped}
    record["stain_target"] = "given" if given else "fitted"
    sets = leaks.describe(table, rows.train)
    notice = [record["notice"]] if record["notice"] else []
    print(settings.to_yaml(), sets, f"device: {device}", *notice, sep="\n")
    return Experiment(settings, table, rows, network, record)


def train(run: Path, experiment: Experiment) -> None:
    """Trains all phases of a run; a run whose folder exists is resumed."""
    settings, table, rows, network, record = experiment
    if run.exists():
        resume.reopen(run, record, settings)
    plan = phases.prepare(network, rows, settings)
    if not run.exists():
        environment.write_first_files(run, settings, table, record)
    save_best = callbacks.SaveBest(
        network, run / "best_model.keras", checkpoint.metadata(settings, table), settings.train.monitor
    )
    for phase in plan:
        fit(phase, run, experiment, save_best)
    figure = training_plots.history(pd.read_csv(run / "history.csv"), *(phase.epochs.start for phase in plan[1:]))
    plot_style.save(figure, run / "history.png", record["notice"])


def fit(phase: phases.Phase, run: Path, experiment: Experiment, save_best: callbacks.SaveBest) -> None:
    """Trains the epochs of a phase that are missing; none are if a resumed run has finished the phase."""
    settings = experiment.settings
    phase.begin(save_best.path)
    model.compile_model(phase.trained, settings.train, phase.rate)
    state = resume.restore(phase.trained, run, phase.epochs.start)
    strategy.assert_same(epoch=state.epoch)
    save_best.best = state.best
    with signals.deferred() as received:
        phases.fit(
            phase,
            [
                callbacks.StopOnNaN(run, experiment.rows.train.filename, settings, phase.rate),
                # Before the callbacks that write the logs, so that these have the learning rate.
                callbacks.LogLearningRate(phase.rate, phase.batches.steps),
                save_best,
                callbacks.SaveState(run, state, save_best),
                keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
                callbacks.StopOnSignal(received),
            ],
            state.epoch,
        )
    strategy.barrier()
    if not save_best.path.exists():
        raise InputError("the validation loss was NaN in every epoch; lower train.maximal_lr and train.initial_lr")


def search(run: Path, settings: config.Settings, trials: int | None) -> None:
    """Searches for settings in `trials` trials, into runs/NAME-tune, or for the rates alone, into runs/NAME-find-lr."""
    name = "tune" if trials else "find-lr"
    if not settings.cached:
        raise InputError(
            f"--{name} trains the head on cached features: allowed are train.features=cached and a "
            f"frozen model.base, got {settings.train.features} and {settings.model.base}"
        )
    folder = run.with_name(f"{run.name}-{name}")
    again = f"--tune {trials} --config {folder}/config.yaml" if trials else ""
    with lock.exclusive(folder), resume.advice_on_stop(folder, again):
        known = changed_settings.with_known_values(folder, settings)
        settings, _, rows, network, record = prepare(known)
        if trials:
            tuner.search(trials, folder, tuner.prepare(network, rows, settings), record["notice"])
        else:
            curve = lr_range_test.sweep(phases.head(network, rows, settings), settings)
            lr_range_test.report(curve, folder, record["notice"])


def trials(text: str) -> int:
    """The number of trials on the command line; raises ArgumentTypeError unless it is 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the number of trials must be 1 or more, got {text!r}")
    return int(text)


def name_of(settings: config.Settings) -> str:
    """The name of the run's folder."""
    if settings.train.run != "auto":
        return settings.train.run
    return f"{settings.data.protocol}-seed{settings.data.seed}-{datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    command_line.run(main)
