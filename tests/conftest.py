"""What the tests share: a tiny tree in BreakHis' layout, the real images where they are, and settings for both."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import config

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import data
import evaluate
import figures
import train

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A suite in the background would hand on to its processes that Ctrl-C is to be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL = Path(__file__).resolve().parents[2] / "shared" / "breakhis"
# Two slides of one patient, the rest of a patient each; every subtype twice and more.
SLIDES = [
    "B_A-14-101AB", "B_A-14-101CD", "B_A-14-102", "B_F-14-103", "B_F-14-104", "B_PT-14-105", "B_PT-15-106",
    "B_TA-14-107", "B_TA-14-108E", "M_DC-14-201", "M_DC-14-202", "M_DC-14-203AB", "M_DC-14-203CD", "M_LC-14-204",
    "M_LC-14-205", "M_MC-14-206", "M_MC-15-207", "M_PC-14-208", "M_PC-14-209",
]  # fmt: skip


def fold_rows(slides: list[str] = SLIDES, mags: tuple = (40, 100, 200, 400), images: int = 2) -> pd.DataFrame:
    """The rows of a Folds.csv for these slides; every third slide is tested in each fold."""
    names = pd.Series([f"SOB_{s}-{mag}-{n:03}.png" for s in slides for mag in mags for n in range(1, images + 1)])
    table = data.describe(names)
    assert table.slide.notna().all()
    places = table.slide.map({slide: place for place, slide in enumerate(table.slide.unique())})
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "fold": fold,
                    "mag": table.mag,
                    "grp": np.where((places + fold) % 3 == 0, "test", "train"),
                    "filename": "BreaKHis_v1/histology_slides/breast/" + table.path,
                }
            )
            for fold in range(1, 6)
        ]
    )


def write_tree(root: Path, rows: pd.DataFrame, size: tuple[int, int] = (48, 32)) -> None:
    """Folds.csv and pictures of noise, malignant ones a little darker in the middle."""
    root.mkdir(parents=True, exist_ok=True)
    rows.to_csv(root / "Folds.csv", index=False)
    for number, name in enumerate(sorted(set(rows.filename))):
        pixels = np.random.RandomState(number).randint(120, 256, (size[1], size[0], 3)).astype(np.uint8)
        if "/malignant/" in name:
            pixels[8:24, 12:36] //= 2
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)


def tiny_settings(root: Path, *overrides: str) -> list[str]:
    """Overrides with which a run on a tiny tree takes seconds."""
    return [
        f"data.root={root}", f"data.folds={root / 'Folds.csv'}", "data.protocol=image", "data.test_per_class=10",
        "data.image_size=32", "model.weights=random", "model.standardize=true", "train.epochs=2",
        "train.batch_size=16", "train.precision=float32", "train.run=tiny", *overrides,
    ]  # fmt: skip


# Of a network that is quickly trained, and so slowly that some of its predictions are wrong.
EVALUATED = ["data.test_per_class=25", "model.base=cnn", "train.epochs=6", "train.maximal_lr=3e-4"]


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder of its own for each test, since runs/ and cache/ stand in it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tree; not to be changed."""
    root = tmp_path_factory.mktemp("breakhis")
    write_tree(root, fold_rows())
    return root


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """A tiny tree to spoil."""
    root = tmp_path / "breakhis"
    write_tree(root, fold_rows(images=1))
    return root


@pytest.fixture(scope="session")
def full_table() -> pd.DataFrame:
    """The table of all of BreakHis, where it is."""
    if not (REAL / "Folds.csv").is_file():
        pytest.skip(f"the full Folds.csv is not at {REAL}")
    return data.read_folds(REAL / "Folds.csv")


@pytest.fixture(scope="session")
def real_sample() -> Path:
    """The folder of 172 real images, where it is."""
    if not (REAL / "sample" / "Folds.csv").is_file():
        pytest.skip(f"the real images are not at {REAL}")
    return REAL / "sample"


@pytest.fixture
def settings(tree: Path) -> config.Settings:
    """Settings for the tiny tree."""
    return config.load_settings(None, tiny_settings(tree))


@pytest.fixture
def float32():
    keras.mixed_precision.set_global_policy("float32")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="session")
def pixels():
    return np.random.RandomState(0).randint(0, 256, (6, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def run(tree, tmp_path_factory):
    """An evaluated run."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train.main(tiny_settings(tree, *EVALUATED))
        evaluate.main(["runs/tiny"])
    return place / "runs" / "tiny"


@pytest.fixture
def undrawn(monkeypatch):
    """Evaluations without figures, which take most of their time."""
    monkeypatch.setattr(figures, "draw", lambda found, network: {})


@pytest.fixture(scope="session")
def predicted(run):
    return pd.read_csv(run / "evaluation" / "predictions.csv")


@pytest.fixture
def copy(run, tmp_path, monkeypatch):
    """The run to spoil."""
    shutil.copytree(run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny"


def pytest_terminal_summary(terminalreporter):
    """Prints what tests put on record as `outcomes`, which the workers of pytest-xdist could not print themselves."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "outcomes" and report.when == "call":
                terminalreporter.write_line(value)
