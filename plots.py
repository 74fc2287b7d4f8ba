"""Arrays in, figures out; nothing here reads, computes or decides. Benign is blue and malignant orange everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scikitplot.metrics import plot_confusion_matrix

import files

LABELS = ["benign", "malignant"]
# Okabe and Ito's blue and vermilion, told apart under every common colour blindness.
COLORS = {"benign": "#0072B2", "malignant": "#D55E00"}
SETS = ["train", "valid", "test", "unused"]
plt.rcParams.update({"figure.dpi": 110, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Writes the figure as PNG, with `note` in small type below it, and closes it."""
    if note:
        figure.text(0.5, -0.01, note, ha="center", va="top", fontsize=8, color="0.35", wrap=True)
    with files.replacing(path) as beside:
        figure.savefig(beside, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def split(table: pd.DataFrame) -> Figure:
    """Rows by set and label as seaborn's displot; `table` has set and label."""
    present = [name for name in SETS if (table.set == name).any()]
    table = table.assign(set=pd.Categorical(table.set, present))
    grid = sns.displot(
        table,
        x="set",
        hue="label",
        hue_order=LABELS,
        palette=COLORS,
        multiple="dodge",
        shrink=0.8,
        height=3.6,
        aspect=1.5,
        alpha=1,
    )
    axes = grid.ax
    axes.set(xlabel="", ylabel="rows", title="Rows by set and class")
    for bars in axes.containers:
        axes.bar_label(bars, fontsize=8, padding=1)
    return grid.figure


def history(epochs: pd.DataFrame) -> Figure:
    """Loss, accuracy and learning rate over the epochs, with the epoch that was kept; columns as in history.csv."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    number, best = epochs.epoch + 1, epochs.val_loss.idxmin()
    for axis, key in zip(axes, ["loss", "accuracy"]):
        axis.plot(number, epochs[key], color="0.25", label="training", marker=".")
        axis.plot(number, epochs[f"val_{key}"], color="#009E73", label="validation", marker=".", linestyle="--")
        kept = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#CC79A7", "linestyle": "none"}
        axis.plot([number[best]], [epochs[f"val_{key}"][best]], label="kept: lowest validation loss", **kept)
        axis.set(title=key.capitalize())
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center")
    axes[2].plot(number, epochs.learning_rate, color="0.25", marker=".")
    axes[2].set(title="Learning rate at the end of the epoch", ylim=(0, None))
    axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def confusion(labels: Sequence[str], predictions: Sequence[str]) -> Figure:
    """The confusion matrix in counts and in shares of the true class, drawn by scikit-plot."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    for axis, normalize in zip(axes, [False, True]):
        plot_confusion_matrix(
            labels,
            predictions,
            normalize=normalize,
            labels=LABELS,
            ax=axis,
            cmap="Greys",
            title="Share of the true class" if normalize else "Images",
        )
        axis.set(xlabel="predicted", ylabel="true")
        axis.images[0].set_clim(0)
        axis.tick_params(axis="x", rotation=0)
    return figure


def gallery(images: np.ndarray, captions: Sequence[str], labels: Sequence[str], title: str) -> Figure:
    """Images (n, height, width, 3), 0 to 255, in rows of six, each framed in the colour of its true class."""
    columns = 6
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(11, 1.62 * rows + 0.5), layout="constrained", squeeze=False)
    figure.suptitle(f"{title}\nframes: benign blue, malignant orange")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption, label in zip(axes.flat, images, captions, labels):
        axis.axis("on")
        axis.imshow(np.asarray(image, np.uint8))
        axis.set(xticks=[], yticks=[])
        axis.set_title(caption, fontsize=7)
        for spine in axis.spines.values():
            spine.set(visible=True, color=COLORS[label], linewidth=2.5)
    return figure


def sheet(images: dict[tuple[str, int], np.ndarray], subtypes: dict[str, str]) -> Figure:
    """One image for each subtype (rows, framed by class) and magnification (columns).

    Args:
        images: (subtype, magnification) -> image; a pair that the data lacks is left blank.
        subtypes: subtype -> label.
    """
    mags = sorted({mag for _, mag in images})
    figure, axes = plt.subplots(
        len(subtypes),
        len(mags),
        figsize=(2.1 * len(mags) + 1.2, 1.55 * len(subtypes) + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for row, (subtype, label) in zip(axes, subtypes.items()):
        for axis, mag in zip(row, mags):
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=True, color=COLORS[label], linewidth=2)
            if (subtype, mag) in images:
                axis.imshow(images[subtype, mag])
        row[0].set_ylabel(f"{subtype.replace('_', ' ')}\n({label})", fontsize=8, color=COLORS[label])
    for axis, mag in zip(axes[0], mags):
        axis.set_title(f"{mag}X", fontsize=9)
    return figure


def comparison(runs: pd.DataFrame, references: dict[str, float]) -> Figure:
    """Accuracy of each protocol (bar: mean, dots: runs) beside published figures (dashed).

    Args:
        runs: protocol, accuracy and shared_patient of each run.
        references: name -> accuracy.
    """
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    order = list(runs.protocol.unique())
    leaky = runs.groupby("protocol").shared_patient.mean()[order] > 0
    colors = {True: "0.7", False: "#009E73"}
    means = runs.groupby("protocol").accuracy.mean()[order]
    bars = axis.bar(order, means, color=[colors[leak] for leak in leaky], width=0.6)
    axis.bar_label(bars, [f"{mean:.1%}" for mean in means], label_type="center", fontsize=9)
    sns.stripplot(runs, x="protocol", y="accuracy", order=order, color="black", size=4, jitter=0.12, ax=axis, zorder=3)
    above = 0.0
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        axis.axhline(value, color="0.35", linestyle="--", linewidth=0.9, zorder=0)
        # Names of neighbouring lines move up rather than onto each other.
        above = max(value, above + 0.045)
        place = {"xy": (1.01, above), "xycoords": ("axes fraction", "data")}
        axis.annotate(f"{name}: {value:.1%}", **place, fontsize=8, va="center")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors[leak]) for leak in (True, False)]
    words = ["test patients also in training", "patients new to the network"]
    axis.legend(handles, words, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    axis.set(xlabel="protocol: what the split keeps whole", ylabel="test accuracy", ylim=(0, 1.03))
    return figure
