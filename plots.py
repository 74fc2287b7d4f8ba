"""Arrays and tables in, figures out: no file is read here. Benign is blue and malignant orange everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from scikitplot.metrics import plot_confusion_matrix
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

import files

LABELS = ["benign", "malignant"]
# Okabe and Ito's blue and vermilion, told apart under every common colour blindness.
COLORS = {"benign": "#0072B2", "malignant": "#D55E00"}
INK = "0.2"
SETS = ["train", "valid", "test", "unused"]
plt.rcParams.update({"figure.dpi": 110, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
# A run's name with two dollar signs is no formula.
plt.rcParams["text.parse_math"] = False


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Writes the figure as PNG, with `note` in small type below it, and closes it."""
    if note:
        # Matplotlib takes two dollars for a formula where it wraps, whatever `text.parse_math` says, unless escaped.
        shown = note.replace("$", r"\$")
        figure.text(0.5, -0.01, shown, ha="center", va="top", fontsize=8, color="0.35", wrap=True, parse_math=True)
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


def history(epochs: pd.DataFrame, fine_tuned_from: int | None = None) -> Figure:
    """Loss, accuracy and learning rate over the epochs, with the epoch that was kept.

    Args:
        epochs: columns as in history.csv.
        fine_tuned_from: the first epoch, from 0, of the fine-tuning; None where there is none.
    """
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    number, best = epochs.epoch + 1, epochs.val_loss.idxmin()
    for axis, key in zip(axes, ["loss", "accuracy"]):
        axis.plot(number, epochs[key], color="0.25", label="training", marker=".")
        axis.plot(number, epochs[f"val_{key}"], color="#009E73", label="validation", marker=".", linestyle="--")
        kept = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#CC79A7", "linestyle": "none"}
        axis.plot([number[best]], [epochs[f"val_{key}"][best]], label="kept: lowest validation loss", **kept)
        axis.set(title=key.capitalize())
    axes[2].plot(number, epochs.learning_rate, color="0.25", marker=".")
    axes[2].set(title="Learning rate at the end of the epoch")
    if fine_tuned_from is None:
        axes[2].set_ylim(0, None)
        axes[2].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    else:
        # On a linear axis the small rate of the fine-tuning would look like none.
        axes[2].set_yscale("log")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        if fine_tuned_from is not None:
            axis.axvline(fine_tuned_from + 0.5, color="0.35", linestyle=":", label="fine-tuning begins")
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, ncols=4, loc="outside upper center")
    return figure


def rates(curve: pd.DataFrame, interval: tuple[float, float] | None = None) -> Figure:
    """Loss against the learning rate, with the proposed interval.

    Args:
        curve: rate, loss and val_loss, as `find_lr.sweep` gives it.
        interval: initial_lr and maximal_lr; None where nothing is proposed.
    """
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    axis.plot(curve.rate, curve.loss, color="0.25", label="training")
    axis.plot(curve.rate, curve.val_loss, color="#009E73", label="validation", linestyle="--")
    names = ["initial_lr: steepest fall", "maximal_lr: valley"]
    for rate, name, line in zip(interval or (), names, [":", "-"]):
        axis.axvline(rate, color="#CC79A7", linestyle=line, label=f"{name}, {rate:.1e}")
    # Behind the valley the loss grows without end and would press the rest flat.
    top = 2.5 * max(curve.loss[0], curve.val_loss[0])
    axis.set(xscale="log", ylim=(0, top), xlabel="learning rate", ylabel="loss")
    _plain_powers(axis.xaxis)
    figure.legend(frameon=False, ncols=4, loc="outside upper center", fontsize=9)
    return figure


def _plain_powers(axis: Axis, digits: Sequence[int] = (1,)) -> None:
    # Matplotlib writes powers of ten as formulas, and those are off here.
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def trials(tried: pd.DataFrame, objective: str, present: float | None) -> Figure:
    """The score of each trial in their order and against each setting, with the best one marked.

    Args:
        tried: trial, status, val_loss, val_auc, epoch and a column a setting, as `tune.table` gives them.
        objective: the column that was searched by.
        present: score of the settings that the search started from; None if it was no number.
    """
    done = tried[tried.status == "completed"]
    settings = list(tried.columns[tried.columns.get_loc("epoch") + 1 :])
    best = done[objective].idxmin() if objective == "val_loss" else done[objective].idxmax()
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained", sharey=True)
    for axis, name in zip(axes.flat, ["trial", *settings]):
        places = done[name]
        if name not in ("trial", "initial_lr", "maximal_lr"):
            # Values far apart, or true and false, stand evenly.
            values = sorted(tried[name].unique())
            places = places.map(values.index)
            axis.set_xticks(range(len(values)), [str(value).lower() for value in values])
            axis.set_xlim(-0.5, len(values) - 0.5)
        elif name != "trial":
            axis.set_xscale("log")
            _plain_powers(axis.xaxis)
        axis.plot(places, done[objective], ".", color=INK, alpha=0.7, label="trial")
        if present is not None:
            axis.axhline(present, color="#56B4E9", linestyle="--", label="present settings")
        kept = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": "#CC79A7", "linestyle": "none"}
        axis.plot([places[best]], [done[objective][best]], label="best", **kept)
        axis.set_xlabel(name)
    for axis in axes[:, 0]:
        axis.set_ylabel(objective)
    if objective == "val_loss":
        axes[0, 0].set_yscale("log")
        _plain_powers(axes[0, 0].yaxis, (1, 2, 5))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, ncols=3, loc="outside upper center")
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


def gallery(images: np.ndarray, captions: Sequence[str], labels: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Images (n, height, width, 3), 0 to 255, in rows, each framed in the colour of its true class."""
    rows = max(1, -(-len(images) // columns))
    height = 10.8 / columns * (images[0].shape[0] / images[0].shape[1] if len(images) else 1)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, (height + 0.42) * rows + 0.6), layout="constrained", squeeze=False
    )
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


def curves(malignant: np.ndarray, probability: np.ndarray, bands: dict, areas: tuple[float, float]) -> Figure:
    """ROC and precision-recall curves.

    Args:
        malignant: (n,), whether an image is.
        probability: (n,) of malignant.
        bands: as `intervals.curve_bands` gives them; empty for none.
        areas: under the ROC curve, and the average precision.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained")
    RocCurveDisplay.from_predictions(malignant, probability, ax=axes[0])
    PrecisionRecallDisplay.from_predictions(malignant, probability, ax=axes[1])
    share = float(np.mean(malignant))
    axes[0].plot([0, 1], [0, 1], color="0.6", linestyle=":", label="chance")
    axes[1].axhline(share, color="0.6", linestyle=":", label="chance")
    titles = [f"ROC, area {areas[0]:.3f}", f"Precision-recall, average precision {areas[1]:.3f}"]
    names = [("false positive rate (1 - specificity)", "sensitivity"), ("recall (sensitivity)", "precision")]
    for axis, key, title, (x, y) in zip(axes, ["roc", "pr"], titles, names):
        axis.get_lines()[0].set(color=INK, label="test images")
        if key in bands:
            axis.fill_between(*bands[key], color=INK, alpha=0.15, linewidth=0, label="pointwise 95 % over patients")
        axis.set(title=title, xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.legend(frameon=False, loc="lower right" if key == "roc" else "lower left", fontsize=8)
    return figure


def reliability(before: pd.DataFrame, after: pd.DataFrame, errors: Sequence[float]) -> Figure:
    """The share that is malignant against the probability, before and after temperature scaling.

    Args:
        before: probability, malignant and n of each bin, as `measures.reliability` gives them.
        after: the same of the scaled probabilities.
        errors: the expected calibration error of both.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained", sharey=True)
    for axis, bins, error, title in zip(axes, [before, after], errors, ["As predicted", "After temperature scaling"]):
        axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
        axis.plot(bins.probability, bins.malignant, color=INK, linewidth=1)
        sizes = 15 + 250 * bins.n / bins.n.sum()
        axis.scatter(bins.probability, bins.malignant, sizes, color=INK, label="bins, size by images")
        axis.set(title=f"{title}: error {error:.3f}", xlabel="mean probability of malignant in the bin", aspect="equal")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("share of the bin that is malignant")
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def scores(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Histogram of the probabilities of each class; columns label and probability."""
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    sns.histplot(
        predictions,
        x="probability",
        hue="label",
        hue_order=LABELS,
        palette=COLORS,
        bins=np.linspace(0, 1, 26),
        element="step",
        alpha=0.35,
        ax=axis,
    )
    axis.axvline(threshold, color="0.25", linestyle="--", linewidth=1)
    axis.annotate(f"threshold {threshold:.3g}", (threshold, 1.01), xycoords=("data", "axes fraction"), ha="center")
    axis.set(xlabel="probability of malignant", ylabel="test images", xlim=(0, 1))
    sns.move_legend(axis, "center left", bbox_to_anchor=(1.0, 0.5), title=None, frameon=False)
    return figure


def groups(patients: dict[str, pd.DataFrame], accuracy: dict[str, dict]) -> Figure:
    """Accuracy of the groups of images (bars) and of the single patients in them (dots), a panel a grouping.

    Args:
        patients: grouping -> frame of group, label and right (share), a row a patient in a group.
        accuracy: grouping -> group -> accuracy, n and patients.
    """
    ratios = [len(found) + 0.5 for found in accuracy.values()]
    figure, axes = plt.subplots(
        1, len(accuracy), figsize=(11, 4), layout="constrained", sharey=True, width_ratios=ratios
    )
    for axis, (name, found) in zip(axes, accuracy.items()):
        order = list(found)
        axis.bar(order, [found[group]["accuracy"] for group in order], color="0.85", width=0.7)
        dots = patients[name]
        sns.stripplot(
            dots, x="group", y="right", hue="label", hue_order=LABELS, palette=COLORS, order=order, size=5, ax=axis
        )
        axis.get_legend().remove()
        labels = [f"{group.replace('_', chr(10))}\n{_numbers(found[group])}" for group in order]
        axis.set_xticks(range(len(order)), labels, fontsize=8)
        axis.set(title=f"By {name}", xlabel="", ylim=(-0.03, 1.05), ylabel="share of images that are right")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color=COLORS[label]) for label in LABELS]
    words = [f"a {label} patient" for label in LABELS]
    figure.legend(handles, words, frameon=False, ncols=2, loc="outside upper right", fontsize=9)
    return figure


def _numbers(group: dict) -> str:
    patients = f"{group['patients']} patient{'' if group['patients'] == 1 else 's'}"
    return f"{group['accuracy']:.0%} right\n{group['n']} images\n{patients}"


def patients(table: pd.DataFrame) -> Figure:
    """Each patient's share of right images, worst first, with its images and errors; as `measures.by_patient`."""
    table = table.sort_values(["right", "n"], ascending=[True, False])
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.24 * len(table)), layout="constrained")
    places = np.arange(len(table))
    axis.barh(places, table.right, color=[COLORS[label] for label in table.label], height=0.75)
    for place, row in zip(places, table.itertuples()):
        errors = round(row.n * (1 - row.right))
        wrong = "" if row.pooled_right else "; pooled decision wrong"
        axis.annotate(f" {errors} of {row.n} wrong{wrong}", (row.right, place), va="center", fontsize=8)
    axis.set_yticks(places, table.patient, fontsize=8)
    # A patient without a right image has no bar that could show its class.
    for text, label in zip(axis.get_yticklabels(), table.label):
        text.set_color(COLORS[label])
    axis.set(xlabel="share of the patient's images that are right", ylabel="patient", xlim=(0, 1.35))
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[label]) for label in LABELS]
    figure.legend(handles, LABELS, frameon=False, ncols=2, loc="outside upper right", fontsize=9)
    return figure


def intervals(scores: pd.DataFrame) -> Figure:
    """Each score with its interval over patients (dark) and over images (light).

    Args:
        scores: name, value, patient_low, patient_high, image_low, image_high; NaN where there is no interval.
    """
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.36 * len(scores)), layout="constrained")
    places = np.arange(len(scores))
    for unit, color, width, shift in [("patient", INK, 3, -0.13), ("image", "#56B4E9", 3, 0.13)]:
        low, high = scores[f"{unit}_low"], scores[f"{unit}_high"]
        axis.hlines(places + shift, low, high, color=color, linewidth=width, label=f"95 % resampling {unit}s")
    axis.plot(scores.value, places, "o", color=INK, markersize=5, markerfacecolor="white", label="on the test set")
    axis.set_yticks(places, scores.name)
    axis.set(xlim=(min(0, np.nanmin(scores[["patient_low", "image_low", "value"]])) - 0.02, 1.02))
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.invert_yaxis()
    figure.legend(frameon=False, ncols=3, loc="outside upper center", fontsize=9)
    return figure


def comparison(runs: pd.DataFrame, references: dict[str, float]) -> Figure:
    """Accuracy of each group of runs (bar: mean, dots: runs) beside published figures (dashed).

    Args:
        runs: group, accuracy and shared_patient of each run.
        references: name -> accuracy.
    """
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    order = list(runs.group.unique())
    leaky = runs.groupby("group").shared_patient.mean()[order] > 0
    colors = {True: "0.7", False: "#009E73"}
    means = runs.groupby("group").accuracy.mean()[order]
    bars = axis.bar(order, means, color=[colors[leak] for leak in leaky], width=0.6)
    axis.bar_label(bars, [f"{mean:.1%}" for mean in means], label_type="center", fontsize=9)
    sns.stripplot(runs, x="group", y="accuracy", order=order, color="black", size=4, jitter=0.12, ax=axis, zorder=3)
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
