"""Fixtures for all tests: a tiny data set in BreakHis' layout, the real images if they are there, settings and a run."""

from __future__ import annotations

import safety.startup  # noqa: F401  before any other import

import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from tiny_tree import EVALUATED, REAL, fold_rows, tiny_settings, write_tree

import config
import data
import evaluate
import train
from devices import precision
from evaluation import figures

# What was imported is never garbage; without this the collector goes through it again and again.
gc.freeze()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts jobs in the background with Ctrl-C ignored, and the processes that tests start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked bfloat16 in another process, if oneDNN is limited to instructions without it."""
    if not (pyfuncitem.get_closest_marker("bfloat16") and precision.bfloat16_is_ruled_out()):
        return None
    environment = {name: value for name, value in os.environ.items() if name != precision.LIMIT}
    command = [sys.executable, "-m", "pytest", "-n", "0", pyfuncitem.nodeid]
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return True


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs each test in a folder of its own, because runs/ and cache/ are in the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set that no test may change."""
    root = tmp_path_factory.mktemp("breakhis")
    write_tree(root, fold_rows())
    return root


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """A tiny data set that the test may change."""
    root = tmp_path / "breakhis"
    write_tree(root, fold_rows(images=1))
    return root


@pytest.fixture(scope="session")
def full_table() -> pd.DataFrame:
    """The table of all of BreakHis; skips the test if it is not there."""
    if not (REAL / "Folds.csv").is_file():
        pytest.skip(f"the full Folds.csv is not at {REAL}")
    return data.read_folds(REAL / "Folds.csv")


@pytest.fixture(scope="session")
def real_sample() -> Path:
    """The folder of 172 real images; skips the test if it is not there."""
    if not (REAL / "sample" / "Folds.csv").is_file():
        pytest.skip(f"the real images are not at {REAL}")
    return REAL / "sample"


@pytest.fixture
def settings(tree: Path) -> config.Settings:
    """Settings for the tiny data set."""
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
def without_figures(monkeypatch):
    """Evaluations draw no figures, which would take most of the time."""
    monkeypatch.setattr(figures, "draw", lambda found, network: {})


@pytest.fixture(scope="session")
def predicted(run):
    return pd.read_csv(run / "evaluation" / "predictions.csv")


@pytest.fixture
def copy(run, tmp_path, monkeypatch):
    """A copy of the run that the test may change."""
    shutil.copytree(run, tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny"


def pytest_terminal_summary(terminalreporter):
    """Prints the `outcomes` that tests recorded, because the workers of pytest-xdist cannot print."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "outcomes" and report.when == "call":
                terminalreporter.write_line(value)
