"""Drawn features of the images of the tiny tree, without the images, and settings for a run on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_tree import fold_rows

import config


def names_of() -> list[str]:
    return sorted(fold_rows().filename.str.rsplit("/", n=1).str[-1].unique())


def _values() -> np.ndarray:
    """Features that know the class somewhat, so that a head learns and still makes mistakes."""
    malignant = np.array([name.startswith("SOB_M") for name in names_of()])
    return (np.random.RandomState(0).normal(0, 1, (len(malignant), 6)) + 0.8 * malignant[:, None]).astype(np.float32)


VALUES = _values()


def write_features(path: Path, names: list[str] | None = None, values: np.ndarray = VALUES) -> Path:
    """An .npz of features, replaced if it is there."""
    np.savez(path, filename=np.array(names_of() if names is None else names), features=values)
    return path


def overrides_for(folder: Path, *overrides: str) -> list[str]:
    """Writes Folds.csv and features.npz into a folder, and returns settings with which a run takes seconds."""
    fold_rows().to_csv(folder / "Folds.csv", index=False)
    write_features(folder / "features.npz")
    return [
        f"data.folds={folder}/Folds.csv", "data.root=nowhere", "data.test_per_class=20", "data.protocol=patient",
        "model.base=file", f"model.weights={folder}/features.npz", "model.standardize=true", "train.epochs=3",
        "train.batch_size=16", "train.precision=float32", "train.engine=tensorflow", "train.maximal_lr=0.5", *overrides,
    ]  # fmt: skip


def settings_for(folder: Path, *overrides: str) -> config.Settings:
    return config.load_settings(None, overrides_for(folder, *overrides))
