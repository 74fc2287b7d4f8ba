"""The search for settings: KerasTuner trains the head again and again on features that are computed once."""

from __future__ import annotations

import argparse
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
from features import extraction, feature_datasets
from images import plot_style, splits
from safety import atomic_files
from safety.errors import InputError
from training import training_plots

OBJECTIVES = {"val_loss": "min", "val_auc": "max"}
RANGES = ("maximal_lr", "initial_share")
TUNER = "tuner0"


class Prepared(NamedTuple):
    """What every trial shares; the test set is no part of it.

    Attributes:
        settings: those that the search starts from.
        rows: upsampled training rows, with label_int and pixels.
        valid: validation rows, the same.
        kept: features of the training rows.
        valid_kept: features of the validation rows.
        heads: standardize -> head and its weights before the first step.
    """

    settings: config.Settings
    rows: pd.DataFrame
    valid: pd.DataFrame
    kept: extraction.Features
    valid_kept: extraction.Features
    heads: dict[bool, tuple[keras.Model, list[np.ndarray]]]


def prepare(network: keras.Model, rows: pd.DataFrame, valid: pd.DataFrame, settings: config.Settings) -> Prepared:
    """Computes the features, or reads them from the cache, and builds each head that the search may ask for."""
    kept = extraction.pooled(network, rows, settings, augmented=settings.augment.active)
    valid_kept = extraction.pooled(network, valid, settings)
    heads = {}
    for standardize in {settings.model.standardize, *settings.tune.standardize}:
        # The seed alone decides the head's first weights, so they are those of a run; the base is not used.
        whole = model.build(_changed(settings, model={"standardize": standardize}), load_weights=False)
        if standardize:
            model.standardize(whole, *feature_datasets.statistics(kept))
        head = model.head(whole)
        heads[standardize] = head, head.get_weights()
    return Prepared(settings, rows, valid, kept, valid_kept, heads)


def fit(prepared: Prepared, settings: config.Settings) -> dict[str, float]:
    """Trains a head as a run with these settings does.

    Returns:
        val_loss and val_auc of the epoch that the run would keep, the one of lowest validation loss, and `epoch`, from
        0; empty if a loss was no number, which would stop a run.
    """
    head, fresh = prepared.heads[settings.model.standardize]
    head.set_weights(fresh)
    rows, batch_size = len(prepared.rows), settings.train.batch_size
    model.compile_model(head, settings.train, model.cyclical_rate(settings.train, rows))
    history = head.fit(
        feature_datasets.train_dataset(prepared.kept, prepared.rows.label_int.to_numpy(), settings),
        epochs=settings.train.epochs,
        steps_per_epoch=-(-rows // batch_size),
        validation_data=feature_datasets.eval_dataset(
            prepared.valid_kept, prepared.valid.label_int.to_numpy(), batch_size
        ),
        callbacks=[keras.callbacks.TerminateOnNaN()],
        verbose=0,
    ).history
    if not np.isfinite(history["loss"]).all() or np.isnan(history["val_loss"]).all():
        return {}
    best = int(np.nanargmin(history["val_loss"]))
    return {**{name: history[name][best] for name in OBJECTIVES}, "epoch": best}


def trials(text: str) -> int:
    """The number of trials on the command line; less than 1 is refused."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"the number of trials must be 1 or more, got {text!r}")
    return int(text)


def space(tune: config.Tune) -> keras_tuner.HyperParameters:
    """The ranges and choices of the section `tune`; what has one value is fixed."""
    found = keras_tuner.HyperParameters()
    for name, values in tune.model_dump(exclude={"objective"}).items():
        if len(set(values)) == 1:
            found.Fixed(name, values[0])
        elif name == "standardize":
            # KerasTuner's choices would give 1 and 0 back.
            found.Boolean(name)
        elif name in RANGES:
            found.Float(name, *values, sampling="log")
        else:
            found.Choice(name, values)
    return found


def with_values(settings: config.Settings, values: dict) -> config.Settings:
    """The settings with a trial's values in them; the rates get four digits, so that they can be read and copied."""
    train = {name: value for name, value in values.items() if name not in ("standardize", *RANGES)}
    train["maximal_lr"] = float(f"{values['maximal_lr']:.4g}")
    # A share of 1 must not end above the peak by its rounding.
    share = float(f"{train['maximal_lr'] * values['initial_share']:.4g}")
    train["initial_lr"] = min(train["maximal_lr"], share)
    return _changed(settings, train=train, model={"standardize": values["standardize"]})


def _changed(settings: config.Settings, **sections: dict) -> config.Settings:
    values = settings.model_dump()
    for section, keys in sections.items():
        values[section].update(keys)
    return config.validate(config.Settings, values)


def search(trials: int, folder: Path, prepared: Prepared, notice: str) -> None:
    """Searches with Bayesian optimisation on the validation set, writes what came of it, and says what to do next.

    KerasTuner's Gaussian process proposes after a first part of random trials (three for each setting that is
    searched). A search that was stopped goes on when it is started again on the same folder, as one of fewer trials.

    Args:
        trials: how many there are to be in all.
        folder: for config.yaml, trials.csv, trials.png, best.yaml and KerasTuner's own folder.
        prepared: as `prepare` gives it.
        notice: stands below the figure.

    Raises:
        InputError: the folder holds a search with other settings, or no trial gave a number.
    """
    name = folder.name.removesuffix("-tune")
    begun = _changed(prepared.settings, train={"run": name})
    prepared, path = prepared._replace(settings=_changed(begun, train={"run": f"{name}-best"})), folder / "config.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != begun.to_yaml():
        raise InputError(
            f"--tune: {folder} holds a search with other settings; go on with it by --config {path}, "
            "or give another train.run"
        )
    atomic_files.write_text(path, begun.to_yaml())
    tuner = _tuner(trials, folder, prepared)
    present = fit(prepared, prepared.settings)
    done = len(tuner.oracle.end_order)
    with tqdm(total=max(trials, done), initial=done, desc="trials", unit="trial") as bar:
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
        # KerasTuner takes 0 for no seed.
        seed=seed + 1,
        max_consecutive_failed_trials=trials + 1,
    )
    oracle.verbose = 0
    shown = pd.concat([prepared.rows, prepared.valid])[["pixels", "label_int"]]
    # Other images begin another search.
    project = f"search-{splits.digest(shown.to_csv())[:16]}"
    try:
        return BaseTuner(oracle, directory=str(folder), project_name=project)
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"--tune: {folder / project} is damaged ({error}); delete it to begin anew") from None


def _run(trial: keras_tuner.engine.trial.Trial, tuner: BaseTuner, prepared: Prepared) -> None:
    # BaseTuner.search does the same and goes on behind any error whatever.
    found = fit(prepared, with_values(prepared.settings, trial.hyperparameters.values))
    if found:
        step = found.pop("epoch")
        tuner.oracle.update_trial(trial.trial_id, found, step=step)
    trial.status = "COMPLETED" if found else "FAILED"
    tuner.on_trial_end(trial)


def table(oracle: keras_tuner.Oracle, settings: config.Settings) -> pd.DataFrame:
    """A row a trial in their order: number, status, val_loss, val_auc, epoch (from 0) and its settings."""
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
    """Writes trials.csv, trials.png and best.yaml into the folder and prints the winner beside the present settings."""
    tried, objective = table(oracle, settings), settings.tune.objective
    atomic_files.write_text(folder / "trials.csv", tried.to_csv(index=False))
    best = oracle.get_best_trials()[0]
    if best.status != "COMPLETED":
        raise InputError("--tune: no trial's validation loss was a number; lower tune.maximal_lr")
    found = with_values(settings, best.hyperparameters.values)
    plot_style.save(training_plots.trials(tried, objective, present.get(objective)), folder / "trials.png", notice)
    atomic_files.write_text(folder / "best.yaml", found.to_yaml())
    row = tried[tried.trial == int(best.trial_id) + 1].iloc[0]
    print(f"present settings: {_told(present)}")
    print(f"best of {len(tried)} trials: {_told(row)}", *(f"  {k}: {v}" for k, v in searched(found).items()), sep="\n")
    if present and not _better(row, present, objective):
        print(f"no trial has a better {objective} than the present settings")
    print(f"all trials: {folder}/trials.csv, {folder}/trials.png")
    print(f"next: python train.py --config {folder}/best.yaml")


def _better(one: pd.Series, other: dict[str, float], objective: str) -> bool:
    return one[objective] < other[objective] if OBJECTIVES[objective] == "min" else one[objective] > other[objective]


def _told(scores: dict[str, float] | pd.Series) -> str:
    if not len(scores):
        return "the loss was no number"
    return ", ".join(f"{name} {scores[name]:.4f}" for name in OBJECTIVES)
