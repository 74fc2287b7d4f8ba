"""A tiny data set in BreakHis' layout, and settings with which a run on it takes seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import data

REAL = Path(__file__).resolve().parents[2] / "shared" / "breakhis"
# Patients 14-101 and 14-203 have two slides, the others one; each subtype has at least two slides.
SLIDES = [
    "B_A-14-101AB", "B_A-14-101CD", "B_A-14-102", "B_F-14-103", "B_F-14-104", "B_PT-14-105", "B_PT-15-106",
    "B_TA-14-107", "B_TA-14-108E", "M_DC-14-201", "M_DC-14-202", "M_DC-14-203AB", "M_DC-14-203CD", "M_LC-14-204",
    "M_LC-14-205", "M_MC-14-206", "M_MC-15-207", "M_PC-14-208", "M_PC-14-209",
]  # fmt: skip
# A network that trains quickly, at a rate so low that some of its predictions are wrong.
EVALUATED = ["data.test_per_class=25", "model.base=cnn", "train.epochs=6", "train.maximal_lr=3e-4"]


def fold_rows(slides: list[str] = SLIDES, mags: tuple = (40, 100, 200, 400), images: int = 2) -> pd.DataFrame:
    """The rows of a Folds.csv for these slides; every third slide is tested in each fold."""
    names = pd.Series([f"SOB_{s}-{mag}-{n:03}.png" for s in slides for mag in mags for n in range(1, images + 1)])
    table = data.describe(names)
    assert table.slide.notna().all()
    numbers = table.slide.map({slide: number for number, slide in enumerate(table.slide.unique())})
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "fold": fold,
                    "mag": table.mag,
                    "grp": np.where((numbers + fold) % 3 == 0, "test", "train"),
                    "filename": "BreaKHis_v1/histology_slides/breast/" + table.path,
                }
            )
            for fold in range(1, 6)
        ]
    )


def table_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of these rows, as `data.read_folds` reads it."""
    names = data.describe(rows.filename.str.rsplit("/", n=1).str[-1])
    return names.assign(fold=rows.fold, grp=rows.grp).reset_index(drop=True)


def write_tree(root: Path, rows: pd.DataFrame, size: tuple[int, int] = (48, 32)) -> None:
    """Writes Folds.csv and images of noise; malignant ones are darker in the middle."""
    root.mkdir(parents=True, exist_ok=True)
    rows.to_csv(root / "Folds.csv", index=False)
    for number, name in enumerate(sorted(set(rows.filename))):
        pixels = np.random.RandomState(number).randint(120, 256, (size[1], size[0], 3)).astype(np.uint8)
        if "/malignant/" in name:
            pixels[8:24, 12:36] //= 2
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def tiny_settings(root: Path, *overrides: str) -> list[str]:
    """Overrides with which a run on a tiny data set takes seconds; VGG16 has a tenth of ResNet50's layers to build."""
    return [
        f"data.root={root}", f"data.folds={root / 'Folds.csv'}", "data.protocol=image", "data.test_per_class=10",
        "data.image_size=32", "model.base=vgg16", "model.weights=random", "model.standardize=true",
        "train.epochs=2", "train.batch_size=16", "train.precision=float32", "train.engine=tensorflow",
        "train.run=tiny", *overrides,
    ]  # fmt: skip
