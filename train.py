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

import safety.startup  # noqa: F401  before any other import

import keras
import pandas as pd

import config
import data
import model
from devices import precision, strategy
from images import audit, leaks, plot_style, splits
from safety import command_line, lock, signals
from safety.errors import InputError
from training import callbacks, checkpoint, environment, lr_range_test, phases, resume, training_plots, tuner


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
    environment_now: dict


def main(arguments: list[str]) -> None:
    """A new run, one that goes on, or a search for settings; with no other process in its folder."""
    parser = command_line.CommandLine(__doc__)
    config.add_settings(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--resume", metavar="RUN", type=Path, help="go on with a run that was stopped: runs/NAME")
    instead.add_argument("--find-lr", action="store_true", help="propose train.initial_lr and train.maximal_lr")
    instead.add_argument("--tune", metavar="TRIALS", type=tuner.trials, help="search where the section tune says")
    args = parser.parse(arguments)
    if args.resume:
        run, settings = args.resume, resume.settings_of(args.resume, [*filter(None, [args.config]), *args.overrides])
    else:
        settings = config.load_settings(args.config, args.overrides)
        run = Path("runs") / name_of(settings)
    if args.find_lr or args.tune:
        return search(run, settings, args.tune)
    with resume.advice_on_stop(run, f"--resume {run}"), strategy.scope(settings, run) as folder, lock.exclusive(folder):
        if folder.exists() and not args.resume:
            raise InputError(f"train.run: {run} is there already and a run is never overwritten; give another name")
        experiment(folder, begin(settings))
    print(f"run: {run}")


def begin(settings: config.Settings) -> Begun:
    """The images, their split and the network; what can be refused is refused before the first long step."""
    table = data.read_table(settings.data)
    audit.image_folder(settings.data.root)
    splits.split(table, settings.data)
    settings = precision.with_precision(settings)
    machine = precision.use_device(settings.train.precision, settings.train.deterministic) + strategy.describe()
    network = model.build(settings)
    table, dropped = audit.usable_rows(splits.select(table, settings.data), settings.data)
    version = audit.data_version(table)
    strategy.assert_same(data=version, precision=settings.train.precision)
    table = splits.split(table, settings.data)
    train, valid = table[table.set == "train"], table[table.set == "valid"]
    rows = splits.upsample(train, settings.data.seed) if settings.data.upsample else train
    found = {"device": machine, "data_sha256": version, "dropped": dropped}
    environment_now = environment.collect(settings, table, network) | found

    drawn = f"training rows: {len(rows)} of {rows.filename.nunique()} images, out of {train.filename.nunique()}"
    notice = [environment_now["notice"]] if environment_now["notice"] else []
    print(settings.to_yaml(), leaks.describe(table), "", drawn, f"device: {machine}", *notice, sep="\n")
    return Begun(settings, table, rows, valid, network, environment_now)


def experiment(run: Path, begun: Begun) -> None:
    """Trains, phase after phase; a run whose folder is there goes on where it stood."""
    settings, table, rows, valid, network, environment_now = begun
    if run.exists():
        resume.reopen(run, environment_now)
    plan = phases.prepare(network, rows, valid, settings)
    if not run.exists():
        environment.write_first_files(run, settings, table, environment_now)
    keeper = callbacks.SaveBest(network, run / "best_model.keras", checkpoint.about(settings, table))
    for phase in plan:
        fit(phase, run, rows, settings, keeper)
    figure = training_plots.history(pd.read_csv(run / "history.csv"), *(phase.first for phase in plan[1:]))
    plot_style.save(figure, run / "history.png", environment_now["notice"])


def fit(
    phase: phases.Phase, run: Path, rows: pd.DataFrame, settings: config.Settings, keeper: callbacks.SaveBest
) -> None:
    """Trains a phase from where the run stands; nothing is left to do where a resumed run has the phase behind it."""
    phase.begin(keeper.path)
    model.compile_model(phase.trained, settings.train, phase.rate)
    state = resume.restore(phase.trained, run, phase.first)
    strategy.assert_same(epoch=state.epoch)
    keeper.best = state.best
    with signals.deferred() as received:
        phase.trained.fit(
            strategy.distribute(phase.batches_from(state.epoch), weighted=True),
            initial_epoch=state.epoch,
            epochs=phase.last,
            steps_per_epoch=phase.steps,
            validation_data=strategy.distribute(phase.valid_batches),
            validation_steps=phase.valid_steps,
            callbacks=[
                callbacks.StopOnNaN(run, rows.filename, settings, phase.rate),
                # Before those that write the logs, so that they find the rate among them.
                callbacks.LogLearningRate(phase.rate, phase.steps),
                keeper,
                callbacks.SaveState(run, state, keeper),
                keras.callbacks.TensorBoard(run / "tensorboard", write_graph=False),
                callbacks.StopOnSignal(received),
            ],
        )
    strategy.barrier()
    if not keeper.path.exists():
        raise InputError("the validation loss was never a number; lower train.maximal_lr and train.initial_lr")


def search(run: Path, settings: config.Settings, trials: int | None) -> None:
    """A search for settings, into runs/NAME-tune, or for the learning rate alone, into runs/NAME-find-lr."""
    name = "tune" if trials else "find-lr"
    if not settings.cached:
        raise InputError(
            f"--{name} trains the head on cached features: allowed are train.features=cached and "
            f"model.base=resnet50, got {settings.train.features} and {settings.model.base}"
        )
    folder = run.with_name(f"{run.name}-{name}")
    with lock.exclusive(folder), resume.advice_on_stop(folder, f"--tune {trials} --config {folder}/config.yaml"):
        settings, _, rows, valid, network, environment_now = begin(settings)
        if trials:
            return tuner.search(
                trials, folder, tuner.prepare(network, rows, valid, settings), environment_now["notice"]
            )
        curve = lr_range_test.sweep(phases.head(network, rows, valid, settings), settings)
        lr_range_test.report(curve, folder, environment_now["notice"])


def name_of(settings: config.Settings) -> str:
    """The name of the run's folder."""
    if settings.train.run != "auto":
        return settings.train.run
    return f"{settings.data.protocol}-seed{settings.data.seed}-{datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    command_line.run(main)
