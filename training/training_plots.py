"""Figures of training: history, learning-rate range test, search for settings."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from images import plot_style

# An axis of loss or accuracy spans at least this much, so that rounding does not look like a curve.
SPAN = 1e-3


def history(epochs: pd.DataFrame, fine_tuned_from: int | None = None) -> Figure:
    """Loss, accuracy and learning rate over the epochs, with the epoch of the checkpoint marked.

    Args:
        epochs: columns as in history.csv.
        fine_tuned_from: the first epoch, from 0, of the fine-tuning; None without fine-tuning.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    balanced = "val_balanced_loss" in epochs
    number, best = epochs.epoch + 1, epochs["val_balanced_loss" if balanced else "val_loss"].idxmin()
    for axis, key in zip(axes, ["loss", "accuracy"]):
        axis.plot(number, epochs[key], color="0.25", label="training", marker=".")
        axis.plot(number, epochs[f"val_{key}"], color="#009E73", label="validation", marker=".", linestyle="--")
        if balanced and key == "loss":
            label = "validation, classes weighted equally"
            axis.plot(number, epochs.val_balanced_loss, color="#D55E00", label=label, marker=".", linestyle=":")
        circle = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#CC79A7", "linestyle": "none"}
        place = epochs.val_balanced_loss if balanced and key == "loss" else epochs[f"val_{key}"]
        axis.plot([number[best]], [place[best]], label="kept: lowest validation loss", **circle)
        axis.set(title=key.capitalize())
        low, high = axis.get_ylim()
        axis.set_ylim(min(low, (low + high - SPAN) / 2), max(high, (low + high + SPAN) / 2))
    axes[2].plot(number, epochs.learning_rate, color="0.25", marker=".")
    axes[2].set(title="Learning rate at the end of the epoch")
    if fine_tuned_from is None:
        axes[2].set_ylim(0, None)
        axes[2].yaxis.set_major_formatter("{x:g}")
    else:
        # On a linear axis the small rate of the fine-tuning would look like 0.
        axes[2].set_yscale("log")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if fine_tuned_from is not None:
            axis.axvline(fine_tuned_from + 0.5, color="0.35", linestyle=":", label="fine-tuning begins")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=5, loc="outside upper center")
    return figure


def rates(curve: pd.DataFrame, interval: tuple[float, float] | None = None) -> Figure:
    """Loss against the learning rate, with the proposed interval.

    Args:
        curve: rate, loss and val_loss, of `lr_range_test.sweep`.
        interval: initial_lr and maximal_lr; None if none are proposed.
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.plot(curve.rate, curve.loss, color="0.25", label="training")
    axis.plot(curve.rate, curve.val_loss, color="#009E73", label="validation", linestyle="--")
    names = ["initial_lr: steepest fall", "maximal_lr: valley"]
    for rate, name, line in zip(interval or (), names, [":", "-"]):
        axis.axvline(rate, color="#CC79A7", linestyle=line, label=f"{name}, {rate:.1e}")
    # Beyond the valley the loss diverges and would flatten the rest of the curve.
    top = 2.5 * max(curve.loss[0], curve.val_loss[0])
    axis.set(xscale="log", ylim=(0, top), xlabel="learning rate", ylabel="loss")
    _plain_powers(axis.xaxis)
    figure.legend(frameon=False, ncols=4, loc="outside upper center", fontsize=9)
    return figure


def _plain_powers(axis: Axis, digits: Sequence[int] = (1,)) -> None:
    # Matplotlib writes powers of ten as formulas, which plot_style turns off.
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def trials(table: pd.DataFrame, objective: str, present: float | None) -> Figure:
    """The score of each trial over its number and over each setting, with the best trial marked.

    Args:
        table: trial, status, val_loss, val_auc, epoch and a column for each setting, of `tuner.table`.
        objective: the column that the search optimises.
        present: score of the settings that the search started from; None if it is NaN.
    """
    done = table[table.status == "completed"]
    settings = list(table.columns[table.columns.get_loc("epoch") + 1 :])
    best = done[objective].idxmin() if objective == "val_loss" else done[objective].idxmax()
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained", sharey=True)
    for axis, name in zip(axes.flat, ["trial", *settings]):
        places = done[name]
        if name not in ("trial", "initial_lr", "maximal_lr"):
            # Evenly spaced, whether they are numbers far apart or true and false.
            values = sorted(table[name].unique())
            places = places.map(values.index)
            axis.set_xticks(range(len(values)), [str(value).lower() for value in values])
            axis.set_xlim(-0.5, len(values) - 0.5)
        elif name != "trial":
            axis.set_xscale("log")
            _plain_powers(axis.xaxis)
        axis.plot(places, done[objective], ".", color=plot_style.INK, alpha=0.7, label="trial")
        if present is not None:
            axis.axhline(present, color="#56B4E9", linestyle="--", label="present settings")
        circle = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#CC79A7", "linestyle": "none"}
        axis.plot([places[best]], [done[objective][best]], label="best", **circle)
        axis.set_xlabel(name)
    for axis in axes[:, 0]:
        axis.set_ylabel(objective)
    if objective == "val_loss":
        axes[0, 0].set_yscale("log")
        _plain_powers(axes[0, 0].yaxis, (1, 2, 5))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center")
    return figure
