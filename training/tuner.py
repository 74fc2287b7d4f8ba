"""The search for settings: KerasTuner trains the head in many trials on features that are computed once."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import keras
import keras_tuner
import numpy as np
import pandas as pd
from keras_tuner.engine.base_tuner import BaseTuner
from tqdm import tqdm

import config
import model
from features import feature_datasets, source
from features.extraction import Features
from images import plot_style, splits
from safety import atomic_files, errors
from safety.errors import InputError
from training import phases, training_plots

OBJECTIVES = {"val_loss": "min", "val_auc": "max"}
RANGES = ("maximal_lr", "initial_share")
TUNER = "tuner0"


class Prepared(NamedTuple):
    """What every trial needs; nothing of the test set.

    Attributes:
        settings: those that the search starts from.
        images: of `hash_of`, which names the search.
        train: features of the upsampled training rows.
        valid: features of the validation rows.
        heads: model.standardize -> the head and its initial weights.
    """

    settings: config.Settings
    images: str
    train: Features
    valid: Features
    heads: dict[bool, tuple[keras.Model, list[np.ndarray]]]


def prepare(network: keras.Model, rows: phases.Rows, settings: config.Settings) -> Prepared:
    """Computes the features or reads them from the cache, and builds each head that the search may choose.

    Args:
        network: of `model.build`.
        rows: of training and validation.
        settings: that the search starts from.

    Raises:
        InputError: the limit of the cache or the disk is too small.
    """
    train, valid = (
        phases.train_features(network, rows.train, settings),
        source.of(settings).pooled(network, rows.valid),
    )
    heads = {}
    for standardize in {settings.model.standardize, *settings.tune.standardize}:
        # The seed alone decides the head's initial weights, so they are those of a run; the base is not used.
        changed = _changed(settings, model={"standardize": standardize})
        whole = model.build(changed, load_weights=False, width=model.width(network))
        if standardize:
            model.standardize(whole, *feature_datasets.statistics(train.array, train.places))
        head = model.head(whole)
        heads[standardize] = head, head.get_weights()
    return Prepared(settings, hash_of(rows), train, valid, heads)


def hash_of(rows: phases.Rows) -> str:
    """SHA-256 of the pixels and labels of all rows, in hex."""
    return splits.digest(pd.concat(rows)[["pixels", "label_int"]].to_csv())


def fit(prepared: Prepared, settings: config.Settings) -> dict[str, float]:
    """Trains a head as a run with these settings does.

    Returns:
        val_loss (by which `train.select` chooses) and val_auc of the epoch whose model a run keeps, and `epoch`, its
        number from 0; empty if a loss was NaN or infinite, which would stop a run.
    """
    head, initial = prepared.heads[settings.model.standardize]
    head.set_weights(initial)
    phase = phases.head_on_features(head, prepared.train, prepared.valid, settings)
    model.compile_model(phase.trained, settings.train, phase.rate)
    history = phases.fit(phase, [keras.callbacks.TerminateOnNaN()], verbose=0)
    history["val_loss"] = history[settings.train.monitor]
    if not np.isfinite(history["loss"]).all() or np.isnan(history["val_loss"]).all():
        return {}
    best = int(np.nanargmin(history["val_loss"]))
    return {**{name: history[name][best] for name in OBJECTIVES}, "epoch": best}


def space(tune: config.Tune) -> keras_tuner.HyperParameters:
    """The ranges and choices of the section `tune` for KerasTuner; a single value is fixed."""
    parameters = keras_tuner.HyperParameters()
    for name, values in tune.model_dump(exclude={"objective"}).items():
        if len(set(values)) == 1:
            parameters.Fixed(name, values[0])
        elif name == "standardize":
            # A Choice of true and false would return 1 and 0.
            parameters.Boolean(name)
        elif name in RANGES:
            parameters.Float(name, *values, sampling="log")
        else:
            parameters.Choice(name, values)
    return parameters


def with_values(settings: config.Settings, values: dict) -> config.Settings:
    """The settings with the values of a trial; the rates are rounded to four digits, so that they are easy to copy."""
    train = {name: value for name, value in values.items() if name not in ("standardize", *RANGES)}
    train["maximal_lr"] = float(f"{values['maximal_lr']:.4g}")
    # Rounding must not lift a share of 1 above the peak.
    share = float(f"{train['maximal_lr'] * values['initial_share']:.4g}")
    train["initial_lr"] = min(train["maximal_lr"], share)
    return _changed(settings, train=train, model={"standardize": values["standardize"]})


def _changed(settings: config.Settings, **sections: dict) -> config.Settings:
    values = settings.model_dump()
    for section, keys in sections.items():
        values[section].update(keys)
    return config.validate(config.Settings, values)


def search(trials: int, folder: Path, prepared: Prepared, notice: str) -> None:
    """Searches with Bayesian optimisation on the validation set, writes the trials and prints the best settings.

    The first trials are random (three for each setting that is searched); the others are proposed by KerasTuner's
    Gaussian process. A stopped search, and one with fewer trials, goes on when it is started again with its folder.

    Args:
        trials: their number in all.
        folder: for config.yaml, trials.csv, trials.png, best.yaml and KerasTuner's own folder.
        prepared: of `prepare`.
        notice: to print below the figure.

    Raises:
        InputError: the folder holds a search with other settings, or the validation loss of every trial was NaN.
    """
    name = folder.name.removesuffix("-tune")
    initial, path = _changed(prepared.settings, train={"run": name}), folder / "config.yaml"
    prepared = prepared._replace(settings=_changed(initial, train={"run": f"{name}-best"}))
    if path.exists() and config.load_settings(path, of_run=True) != initial:
        raise InputError(
            f"--tune: {folder} holds a search with other settings; go on with it by --config {path}, "
            "or give another train.run"
        )
    atomic_files.write_text(path, initial.to_yaml())
    # KerasTuner writes without naming its files in errors.
    with errors.naming(folder):
        tuner = _tuner(trials, folder, prepared)
    present = fit(prepared, prepared.settings)
    done = len(tuner.oracle.end_order)
    with errors.naming(folder), tqdm(total=max(trials, done), initial=done, desc="trials", unit="trial") as bar:
        while (trial := tuner.oracle.create_trial(TUNER)).status == "RUNNING":
            _run(trial, tuner, prepared)
            bar.update()
    report(tuner.oracle, present, folder, prepared.settings, notice)


def _tuner(trials: int, folder: Path, prepared: Prepared) -> BaseTuner:
    tune, seed = prepared.settings.tune, prepared.settings.data.seed
    oracle = keras_tuner.oracles.BayesianOptimizationOracle(
        keras_tuner.Objective(tune.objective, OBJECTIVES[tune.objective]),
        max_trials=trials,
        hyperparameters=space(tune),
        # For KerasTuner 0 means no seed, and NumPy allows none above 2**32 - 1.
        seed=seed % (2**32 - 1) + 1,
        max_consecutive_failed_trials=trials + 1,
    )
    oracle.verbose = 0
    # Other images start another search.
    project = f"search-{prepared.images[:16]}"
    try:
        return BaseTuner(oracle, directory=str(folder), project_name=project)
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"--tune: {folder / project} is damaged ({error}); delete it to start a new search") from None


def _run(trial: keras_tuner.engine.trial.Trial, tuner: BaseTuner, prepared: Prepared) -> None:
    # BaseTuner.search does the same, but it continues after any error.
    scores = fit(prepared, with_values(prepared.settings, trial.hyperparameters.values))
    if scores:
        step = scores.pop("epoch")
        tuner.oracle.update_trial(trial.trial_id, scores, step=step)
    trial.status = "COMPLETED" if scores else "FAILED"
    tuner.on_trial_end(trial)


def table(oracle: keras_tuner.Oracle, settings: config.Settings) -> pd.DataFrame:
    """A row for each trial in their order: trial, status, val_loss, val_auc, epoch (from 0) and its settings."""
    return pd.DataFrame(
        {
            "trial": int(trial.trial_id) + 1,
            "status": trial.status.lower(),
            **{name: _score(trial, name) for name in OBJECTIVES},
            "epoch": trial.best_step,
            **searched(with_values(settings, trial.hyperparameters.values)),
        }
        for trial in sorted(oracle.trials.values(), key=lambda trial: int(trial.trial_id))
    )


def _score(trial: keras_tuner.engine.trial.Trial, name: str) -> float | None:
    return trial.metrics.get_best_value(name) if trial.metrics.exists(name) else None


def searched(settings: config.Settings) -> dict:
    """The settings that a search may change."""
    names = [name for name in config.Tune.model_fields if name in config.Train.model_fields]
    train = {name: getattr(settings.train, name) for name in ["initial_lr", *names]}
    return {**train, "standardize": settings.model.standardize}


def report(
    oracle: keras_tuner.Oracle, present: dict[str, float], folder: Path, settings: config.Settings, notice: str
) -> None:
    """Writes trials.csv, trials.png and best.yaml, and prints the best trial and the present settings.

    Args:
        oracle: with all trials.
        present: scores of the settings that the search started from, of `fit`.
        folder: for the files.
        settings: that the search started from, with the run's name for best.yaml.
        notice: to print below the figure.

    Raises:
        InputError: the validation loss of every trial was NaN.
    """
    rows, objective = table(oracle, settings), settings.tune.objective
    atomic_files.write_text(folder / "trials.csv", rows.to_csv(index=False))
    best = oracle.get_best_trials()[0]
    if best.status != "COMPLETED":
        raise InputError("--tune: the validation loss of every trial was NaN; lower tune.maximal_lr")
    chosen = with_values(settings, best.hyperparameters.values)
    plot_style.save(training_plots.trials(rows, objective, present.get(objective)), folder / "trials.png", notice)
    atomic_files.write_text(folder / "best.yaml", chosen.to_yaml())
    row = rows[rows.trial == int(best.trial_id) + 1].iloc[0]
    print(f"present settings: {_in_words(present)}")
    print(
        f"best of {len(rows)} trials: {_in_words(row)}", *(f"  {k}: {v}" for k, v in searched(chosen).items()), sep="\n"
    )
    if present and not _better(row, present, objective):
        print(f"no trial has a better {objective} than the present settings")
    print(f"all trials: {folder}/trials.csv, {folder}/trials.png")
    print(f"next: python train.py --config {folder}/best.yaml")


def _better(one: pd.Series, other: dict[str, float], objective: str) -> bool:
    return one[objective] < other[objective] if OBJECTIVES[objective] == "min" else one[objective] > other[objective]


def _in_words(scores: dict[str, float] | pd.Series) -> str:
    if not len(scores):
        return "the loss was NaN"
    return ", ".join(f"{name} {scores[name]:.4f}" for name in OBJECTIVES)
