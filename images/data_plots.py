"""Figures of the data: the split, and images in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from PIL import Image

from images import plot_style, splits

# Of the sheet, in pixels: width and height of a cell, the frame in the colour of the class, half the gap between two.
CELL, FRAME, GAP = (350, 232), 4, 3


def split(table: pd.DataFrame) -> Figure:
    """The number of rows by set and class.

    Args:
        table: frame with set and label.
    """
    present = [name for name in splits.SETS if (table.set == name).any()]
    table = table.assign(set=pd.Categorical(table.set, present))
    figure, axes = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    palette = plot_style.COLORS
    sns.countplot(table, x="set", hue="label", hue_order=list(palette), palette=palette, saturation=1, ax=axes)
    axes.set(xlabel="", ylabel="rows", title="Rows by set and class")
    for bars in axes.containers:
        axes.bar_label(bars, fontsize=8, padding=1)
    return figure


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
    # One picture of all, since Matplotlib takes a twentieth of a second for each pair of axes.
    whole = Image.new("RGB", (CELL[0] * len(mags), CELL[1] * len(subtypes)), "white")
    for row, (subtype, label) in enumerate(subtypes.items()):
        for column, mag in enumerate(mags):
            cell = Image.new("RGB", (CELL[0] - 2 * GAP, CELL[1] - 2 * GAP), plot_style.COLORS[label])
            inner = cell.width - 2 * FRAME, cell.height - 2 * FRAME
            shown = images.get((subtype, mag), np.full((1, 1, 3), 255, np.uint8))
            cell.paste(Image.fromarray(shown).resize(inner, Image.Resampling.BOX), (FRAME, FRAME))
            whole.paste(cell, (column * CELL[0] + GAP, row * CELL[1] + GAP))
    size = 2.1 * len(mags) + 1.2, 1.45 * len(subtypes) + 0.3
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    axis.imshow(whole)
    axis.set_xticks((np.arange(len(mags)) + 0.5) * CELL[0], [f"{mag}X" for mag in mags], fontsize=9)
    names = [f"{subtype.replace('_', ' ')}\n({label})" for subtype, label in subtypes.items()]
    middles = (np.arange(len(subtypes)) + 0.5) * CELL[1]
    axis.set_yticks(middles, names, fontsize=8, rotation=90, va="center", ma="center")
    for text, label in zip(axis.get_yticklabels(), subtypes.values()):
        text.set_color(plot_style.COLORS[label])
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return figure
