"""Figures of the data: the split, and images in a grid."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from images import plot_style, splits

# Of the sheet, in pixels: width and height of a cell, its white margin, and within it the frame.
CELL, MARGIN, FRAME = (350, 232), 3, 4
# Of a gallery, in inches: the room above an image, for its caption, and between images.
ABOVE, APART = 0.42, 0.08


def split(table: pd.DataFrame) -> Figure:
    """The number of rows by set and class, called images where each image has one row.

    Args:
        table: frame with set, label and filename.
    """
    counted = "rows" if table.filename.duplicated().any() else "images"
    present = [name for name in splits.SETS if (table.set == name).any()]
    table = table.assign(set=pd.Categorical(table.set, present))
    figure, axes = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
    palette = plot_style.COLORS
    sns.countplot(table, x="set", hue="label", hue_order=list(palette), palette=palette, saturation=1, ax=axes)
    axes.set(xlabel="", ylabel=counted, title=f"{counted.capitalize()} by set and class")
    sns.move_legend(axes, "center left", bbox_to_anchor=(1, 0.5), frameon=False)
    for bars in axes.containers:
        axes.bar_label(bars, fontsize=8, padding=1)
    return figure


def gallery(images: Sequence, captions: Sequence[str], labels: Sequence[str], title: str, columns: int = 6) -> Figure:
    """Images in a grid, each framed in the colour of its true class.

    Args:
        images: n of them, (height, width, 3), RGB from 0 to 255; the first one's shape is the room for each.
        captions: the text above each image, of up to three lines.
        labels: the true class of each image, benign or malignant.
        title: of the figure.
        columns: images in a row.
    """
    rows, width = max(1, -(-len(images) // columns)), 10.8 / columns
    # All lengths are in inches.
    height = width * images[0].shape[0] / images[0].shape[1] if len(images) else width
    # In one pair of axes, since Matplotlib takes a twentieth of a second for each.
    figure, axis = plt.subplots(figsize=(11, (height + ABOVE) * rows + 0.6), layout="constrained")
    figure.suptitle(f"{title}\nframes: benign blue, malignant orange")
    for number, (image, caption, label) in enumerate(zip(images, captions, labels)):
        left, top = number % columns * width, number // columns * (height + ABOVE) + ABOVE
        size = np.array(image.shape[1::-1])
        wide, high = size * min((width - APART) / size[0], height / size[1])
        left += (width - APART - wide) / 2
        axis.imshow(np.asarray(image, np.uint8), extent=(left, left + wide, top + high, top))
        color = plot_style.COLORS[label]
        axis.add_patch(Rectangle((left, top), wide, high, fill=False, edgecolor=color, linewidth=2.5, clip_on=False))
        axis.text(left + wide / 2, top - APART, caption, fontsize=7, ha="center")
    axis.axis("off")
    axis.set(xlim=(0, columns * width - APART), ylim=(rows * (height + ABOVE), 0), aspect="equal")
    return figure


def sheet(images: dict[tuple[str, int], np.ndarray], subtypes: dict[str, str]) -> Figure:
    """One image for each subtype (rows, framed by class) and magnification (columns).

    Args:
        images: (subtype, magnification) -> image, (height, width, 3); missing pairs stay blank.
        subtypes: subtype -> label.
    """
    mags = sorted({mag for _, mag in images})
    figure, axis = plt.subplots(figsize=(2.1 * len(mags) + 1.2, 1.45 * len(subtypes) + 0.3), layout="constrained")
    # One picture of all, since Matplotlib takes a twentieth of a second for each pair of axes.
    axis.imshow(_mosaic(images, subtypes, mags))
    columns, rows = ((np.arange(len(names)) + 0.5) * size for names, size in zip((mags, subtypes), CELL))
    axis.set_xticks(columns, [f"{mag}X" for mag in mags], fontsize=9)
    names = [f"{subtype.replace('_', ' ')}\n({label})" for subtype, label in subtypes.items()]
    axis.set_yticks(rows, names, fontsize=8, rotation=90, va="center", ma="center")
    for text, label in zip(axis.get_yticklabels(), subtypes.values()):
        text.set_color(plot_style.COLORS[label])
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return figure


def _mosaic(images: dict, subtypes: dict[str, str], mags: list[int]) -> Image.Image:
    """The images of the sheet, each in a cell of its own, with a frame in the colour of its class."""
    mosaic = Image.new("RGB", (CELL[0] * len(mags), CELL[1] * len(subtypes)), "white")
    for row, (subtype, label) in enumerate(subtypes.items()):
        for column, mag in enumerate(mags):
            framed = Image.new("RGB", (CELL[0] - 2 * MARGIN, CELL[1] - 2 * MARGIN), plot_style.COLORS[label])
            inner = framed.width - 2 * FRAME, framed.height - 2 * FRAME
            shown = images.get((subtype, mag), np.full((1, 1, 3), 255, np.uint8))
            framed.paste(Image.fromarray(shown).resize(inner, Image.Resampling.BOX), (FRAME, FRAME))
            mosaic.paste(framed, (column * CELL[0] + MARGIN, row * CELL[1] + MARGIN))
    return mosaic
