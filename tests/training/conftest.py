"""A run that died in its third epoch, for the tests of what a resumed run does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from killed_runs import HALF, StopError, dying
from tiny_tree import tiny_settings

import train
from training import callbacks


@pytest.fixture(scope="session")
def half(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run; no test may change it."""
    place = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(callbacks.StopOnNaN, "on_epoch_begin", dying(callbacks.StopOnNaN.on_epoch_begin))
        with pytest.raises(StopError):
            train.main(tiny_settings(tree, *HALF, "train.run=half"))
    return place / "runs" / "half"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def stopped(half: Path, work: Path) -> Path:
    """A copy of the run that the test may change, in runs/half."""
    return Path(shutil.copytree(half, work / "runs" / "half"))
