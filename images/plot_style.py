"""What all figures share: colours, fonts, saving."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from safety import atomic_files

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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
    with atomic_files.replacing(path) as beside:
        figure.savefig(beside, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
