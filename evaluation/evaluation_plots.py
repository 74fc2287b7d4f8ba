"""Figures of predictions and scores, from arrays and tables; no file is read here. Benign is blue, malignant orange."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from devices import keras_stack
from images import plot_style


def confusion(labels: Sequence[str], predictions: Sequence[str]) -> Figure:
    """The confusion matrix in counts and in shares of the true class; both arguments (n,)."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    for axis, shares in zip(axes, [False, True]):
        keras_stack.draw_confusion(labels, predictions, plot_style.LABELS, shares, axis)
        axis.set(xlabel="predicted", ylabel="true", title="Share of the true class" if shares else "Images")
        axis.images[0].set_clim(0)
        axis.tick_params(axis="x", rotation=0)
    return figure


def curves(malignant: np.ndarray, probability: np.ndarray, bands: dict, areas: tuple[float, float]) -> Figure:
    """ROC and precision-recall curves.

    Args:
        malignant: (n,), bool, whether each image is malignant.
        probability: (n,), of malignant.
        bands: as `bootstrap.curve_bands` returns them; empty for none.
        areas: the area under the ROC curve, and the average precision.
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
        axis.get_lines()[0].set(color=plot_style.INK, label="test images")
        if key in bands:
            axis.fill_between(
                *bands[key], color=plot_style.INK, alpha=0.15, linewidth=0, label="pointwise 95 % over patients"
            )
        axis.set(title=title, xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axis.legend(frameon=False, loc="lower right" if key == "roc" else "lower left", fontsize=8)
    return figure


def reliability(before: pd.DataFrame, after: pd.DataFrame, errors: Sequence[float]) -> Figure:
    """The reliability diagram (share of malignant images over mean probability), before and after temperature scaling.

    Args:
        before: probability, malignant and n of each bin, as `metrics.reliability` returns them.
        after: the same for the scaled probabilities.
        errors: the expected calibration error before and after.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.3), layout="constrained", sharey=True)
    for axis, bins, error, title in zip(axes, [before, after], errors, ["As predicted", "After temperature scaling"]):
        axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
        axis.plot(bins.probability, bins.malignant, color=plot_style.INK, linewidth=1)
        sizes = 15 + 250 * bins.n / bins.n.sum()
        axis.scatter(bins.probability, bins.malignant, sizes, color=plot_style.INK, label="bins, size by images")
        axis.set(title=f"{title}: error {error:.3f}", xlabel="mean probability of malignant in the bin", aspect="equal")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes[0].set_ylabel("share of the bin that is malignant")
    # Outside, since a point may lie anywhere in the panels.
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    return figure


def scores(predictions: pd.DataFrame, threshold: float) -> Figure:
    """Histogram of the probabilities of each class; columns label and probability."""
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    sns.histplot(
        predictions,
        x="probability",
        hue="label",
        hue_order=plot_style.LABELS,
        palette=plot_style.COLORS,
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
    """Accuracy of each group of images (bars) and of the patients in it (dots), a panel per grouping.

    Args:
        patients: grouping -> frame of group, label and correct (share of images), a row per group and patient.
        accuracy: grouping -> group -> accuracy, n and patients.
    """
    ratios = [len(scores) + 0.5 for scores in accuracy.values()]
    figure, axes = plt.subplots(
        1, len(accuracy), figsize=(11, 4), layout="constrained", sharey=True, width_ratios=ratios
    )
    for axis, (name, scores) in zip(axes, accuracy.items()):
        order = list(scores)
        axis.bar(order, [scores[group]["accuracy"] for group in order], color="0.85", width=0.7)
        dots = patients[name]
        sns.stripplot(
            dots,
            x="group",
            y="correct",
            hue="label",
            hue_order=plot_style.LABELS,
            palette=plot_style.COLORS,
            order=order,
            # The dots of patients with equal accuracy overlap.
            jitter=0.25,
            alpha=0.7,
            size=5,
            ax=axis,
        )
        axis.get_legend().remove()
        labels = [f"{group.replace('_', chr(10))}\n{_numbers(scores[group])}" for group in order]
        axis.set_xticks(range(len(order)), labels, fontsize=8)
        axis.set(title=f"By {name}", xlabel="", ylim=(-0.03, 1.05), ylabel="share of correct images")
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=plot_style.COLORS[label]) for label in plot_style.LABELS
    ]
    labels = [f"a {label} patient" for label in plot_style.LABELS]
    figure.legend(handles, labels, frameon=False, ncols=2, loc="outside upper right", fontsize=9)
    return figure


def _numbers(group: dict) -> str:
    patients = f"{group['patients']} patient{'' if group['patients'] == 1 else 's'}"
    return f"{group['accuracy']:.0%} correct\n{group['n']} images\n{patients}"


def patients(table: pd.DataFrame) -> Figure:
    """Each patient's share of correct images, lowest first, with its number of images and errors.

    Args:
        table: of `metrics.by_patient`.
    """
    table = table.sort_values(["correct", "n"], ascending=[True, False])
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.24 * len(table)), layout="constrained")
    positions = np.arange(len(table))
    axis.barh(positions, table.correct, color=[plot_style.COLORS[label] for label in table.label], height=0.75)
    for position, row in zip(positions, table.itertuples()):
        errors = round(row.n * (1 - row.correct))
        pooled = "" if row.pooled_correct else "; patient misclassified"
        axis.annotate(f" {errors} of {row.n} wrong{pooled}", (row.correct, position), va="center", fontsize=8)
    axis.set_yticks(positions, table.patient, fontsize=8)
    # A patient without a correct image has no bar to show the class by its colour.
    for text, label in zip(axis.get_yticklabels(), table.label):
        text.set_color(plot_style.COLORS[label])
    label = "share of the patient's images that are correct\n(the patient is classified by their mean probability)"
    axis.set(xlabel=label, ylabel="patient", xlim=(0, 1.35))
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.invert_yaxis()
    handles = [plt.Rectangle((0, 0), 1, 1, color=plot_style.COLORS[label]) for label in plot_style.LABELS]
    figure.legend(handles, plot_style.LABELS, frameon=False, ncols=2, loc="outside upper right", fontsize=9)
    return figure


def intervals(scores: pd.DataFrame) -> Figure:
    """Each score with its intervals: over patients (dark), patients resampled (grey) and images resampled (light).

    Args:
        scores: name, value, and low and high of headline, patient and image; NaN where there is no interval.
    """
    figure, axis = plt.subplots(figsize=(9, 1.3 + 0.36 * len(scores)), layout="constrained")
    positions = np.arange(len(scores))
    for unit, color, shift, label in [
        ("headline", plot_style.INK, -0.22, "95 % over patients"),
        ("patient", "0.6", 0, "resampling patients"),
        ("image", "#56B4E9", 0.22, "resampling images"),
    ]:
        low, high = scores[f"{unit}_low"], scores[f"{unit}_high"]
        axis.hlines(positions + shift, low, high, color=color, linewidth=3, label=label)
    axis.plot(
        scores.value,
        positions,
        "o",
        color=plot_style.INK,
        markersize=5,
        markerfacecolor="white",
        label="on the test set",
    )
    axis.set_yticks(positions, scores.name)
    axis.set(xlim=(min(0, np.nanmin(scores[["headline_low", "patient_low", "image_low", "value"]])) - 0.02, 1.02))
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.invert_yaxis()
    figure.legend(frameon=False, ncols=4, loc="outside upper center", fontsize=9)
    return figure


def comparison(runs: pd.DataFrame, references: dict[str, float]) -> Figure:
    """Accuracy of each group of runs (bar: mean, dots: runs) and of published results (dashed lines).

    Args:
        runs: group, accuracy and shared_patient, a row per run.
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
    label_height = 0.0
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        axis.axhline(value, color="0.35", linestyle="--", linewidth=0.9, zorder=0)
        # Labels of close lines are moved up, so that they do not overlap.
        label_height = max(value, label_height + 0.045)
        axis.annotate(
            f"{name}: {value:.1%}", (1.01, label_height), xycoords=("axes fraction", "data"), fontsize=8, va="center"
        )
    handles = [plt.Rectangle((0, 0), 1, 1, color=colors[leak]) for leak in (True, False)]
    labels = ["test patients also in training", "test patients not in training"]
    axis.legend(handles, labels, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
    axis.set(xlabel="protocol: what the split keeps together", ylabel="test accuracy", ylim=(0, 1.03))
    return figure


def cross_validations(table: pd.DataFrame) -> Figure:
    """Balanced accuracy of each cross-validation with its 95 % interval over patients, and sensitivity and specificity.

    Args:
        table: of `comparison.headline`.
    """
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    places = np.arange(len(table))
    colors = ["0.7" if leak else "#009E73" for leak in table.shared_patient > 0]
    axis.bar(places, table.balanced_accuracy, color=colors, width=0.6)
    # Rounding can leave the end of a perfect score below it.
    ends = np.maximum(0, [table.balanced_accuracy - table.low, table.high - table.balanced_accuracy])
    axis.errorbar(places, table.balanced_accuracy, ends, fmt="none", color=plot_style.INK, capsize=5)
    for place, value in zip(places, table.balanced_accuracy):
        axis.annotate(f"{value:.1%}", (place, 0.03), ha="center", fontsize=9)
    for name, marker in {"sensitivity": "^", "specificity": "v"}.items():
        axis.plot(places + 0.18, table[name], marker, color=plot_style.INK, markersize=6, label=name, linestyle="none")
    axis.axhline(0.5, color="0.35", linestyle="--", linewidth=0.9, label="chance")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in ("0.7", "#009E73")]
    points, names = axis.get_legend_handles_labels()
    labels = ["test patients also in training", "test patients not in training", *names]
    axis.legend(
        [*handles, *points], labels, frameon=False, ncols=5, loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=9
    )
    axis.set_xticks(places, table.protocol if table.protocol.is_unique else table.run)
    axis.set(
        xlabel="protocol: what each fold keeps together",
        ylabel="balanced accuracy, 95 % over patients",
        ylim=(0, 1.03),
    )
    return figure
