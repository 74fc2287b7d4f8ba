"""The notebook runs from its first to its last cell, and holds no outputs in the repository."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_tree import tiny_settings

import config

ROOT = Path(config.__file__).parent
NOTEBOOK = ROOT / "notebooks" / "breakhis.ipynb"


def execute(place, monkeypatch, **environment):
    """The notebook after all cells were run in a folder."""
    for name, value in {"CODE": ROOT, **environment}.items():
        monkeypatch.setenv(f"BREAKHIS_{name}", str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
    return notebook


def figures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_the_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


def test_the_notebook_runs_on_a_read_only_data_set(own_tree, tmp_path, monkeypatch):
    before = sorted((path, path.stat().st_mtime_ns) for path in own_tree.rglob("*"))
    for path in [own_tree, *own_tree.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    settings = [
        one
        for one in tiny_settings(own_tree, "model.base=cnn")
        if not one.startswith(("data.root", "data.folds", "data.protocol", "train.run"))
    ]
    notebook = execute(tmp_path, monkeypatch, DATA=own_tree, SETTINGS=" ".join(settings))
    # Two of the data, the history, the evaluation's and the comparison.
    assert figures(notebook) >= 8
    assert sorted(os.listdir(tmp_path)) == ["breakhis", "cache", "overview", "runs"]
    assert len(list(tmp_path.glob("runs/*/evaluation/report.html"))) == 2
    assert before == sorted((path, path.stat().st_mtime_ns) for path in own_tree.rglob("*"))


@pytest.mark.long
def test_without_data_the_notebook_draws_the_sample(tmp_path, monkeypatch):
    notebook = execute(tmp_path, monkeypatch, DATA="", SETTINGS="train.epochs=2")
    assert figures(notebook) >= 8 and (tmp_path / "sample" / "Folds.csv").is_file()
