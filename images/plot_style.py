"""What all figures share: the backend, colours, fonts and how they are saved."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from safety import atomic_files

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Blue and vermilion of Okabe and Ito's palette, which people with colour blindness can distinguish.
COLORS = {"benign": "#0072B2", "malignant": "#D55E00"}
LABELS = list(COLORS)
INK = "0.2"

plt.rcParams.update({"figure.dpi": 110, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
# Two dollar signs in the name of a run must not start a formula.
plt.rcParams["text.parse_math"] = False


def save(figure: Figure, path: Path, note: str = "") -> None:
    """Writes a figure as PNG and closes it.

    Args:
        figure: to write.
        path: of the PNG.
        note: printed in small type below the figure.
    """
    if note:
        # Where it wraps text, Matplotlib ignores `text.parse_math`, so dollar signs must be escaped.
        escaped = note.replace("$", r"\$")
        figure.text(0.5, -0.01, escaped, ha="center", va="top", fontsize=8, color="0.35", wrap=True, parse_math=True)
    with atomic_files.replacing(path) as temporary:
        figure.savefig(temporary, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
