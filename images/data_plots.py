"""Figures of the data: the split, and images in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from images import plot_style, splits


def split(table: pd.DataFrame) -> Figure:
    """The number of rows by set and class.

    Args:
        table: frame with set and label.
    """
    present = [name for name in splits.SETS if (table.set == name).any()]
    table = table.assign(set=pd.Categorical(table.set, present))
    grid = sns.displot(
        table,
        x="set",
        hue="label",
        hue_order=plot_style.LABELS,
        palette=plot_style.COLORS,
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


def gallery(images: np.ndarray, captions: Sequence[str], labels: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Images in a grid, each framed in the colour of its true class.

    Args:
        images: (n, height, width, 3), RGB from 0 to 255.
        captions: the text above each image.
        labels: the true class of each image, benign or malignant.
        title: of the figure.
        columns: images in a row.
    """
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
            spine.set(visible=True, color=plot_style.COLORS[label], linewidth=2.5)
    return figure


def sheet(images: dict[tuple[str, int], np.ndarray], subtypes: dict[str, str]) -> Figure:
    """One image for each subtype (rows, framed by class) and magnification (columns).

    Args:
        images: (subtype, magnification) -> image, (height, width, 3); missing pairs stay blank.
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
                spine.set(visible=True, color=plot_style.COLORS[label], linewidth=2)
            if (subtype, mag) in images:
                axis.imshow(images[subtype, mag])
        row[0].set_ylabel(f"{subtype.replace('_', ' ')}\n({label})", fontsize=8, color=plot_style.COLORS[label])
    for axis, mag in zip(axes[0], mags):
        axis.set_title(f"{mag}X", fontsize=9)
    return figure
