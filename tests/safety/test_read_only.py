"""Folders that can only be read: what needs no writing works there, and the rest is refused in one line."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tree import fold_rows, tiny_settings, write_tree

import config
import train

ROOT = Path(config.__file__).parent
CNN = ["model.base=cnn", "train.epochs=1"]


def drop_privileges():
    """Takes from root, in the process that is started next, the right to write where the permissions forbid it."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; without effect for other users


def start(place, *arguments, script=ROOT / "train.py", env=None):
    result = subprocess.run(
        [sys.executable, script, *arguments], cwd=place, env=env, capture_output=True, text=True,
        preexec_fn=drop_privileges,
    )  # fmt: skip
    assert "Traceback" not in result.stderr, result.stderr
    return result


@pytest.fixture
def protect():
    """Takes the permission to write from folders and all that is in them until the test ends."""
    changed = []

    def remove(folder):
        changed.extend([folder, *folder.rglob("*")])
        for path in changed:
            path.chmod(path.stat().st_mode & ~0o222)

    yield remove
    for path in changed:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.fixture
def data_set(tmp_path, protect):
    write_tree(tmp_path / "data", fold_rows(images=1))
    protect(tmp_path / "data")
    return tmp_path / "data"


def test_the_permissions_hold_in_the_processes_that_the_tests_start(data_set):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1], 'new').touch()"
    process = subprocess.run(
        [sys.executable, "-c", code, data_set], stderr=subprocess.PIPE, text=True, preexec_fn=drop_privileges
    )
    assert process.returncode == 1 and "PermissionError" in process.stderr


def test_read_only_data_and_code_and_no_home_are_enough(data_set, tmp_path, protect):
    checkout, work = tmp_path / "checkout", tmp_path / "work"
    work.mkdir()
    checkout.mkdir()
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.yaml")]:
        shutil.copy(path, checkout)
    for path in ROOT.glob("*/__init__.py"):
        shutil.copytree(path.parent, checkout / path.parent.name, ignore=shutil.ignore_patterns("__pycache__"))
    protect(checkout)
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    result = start(work, *tiny_settings(data_set, *CNN), script=checkout / "train.py", env=env)
    assert result.returncode == 0 and (work / "runs/tiny/history.png").is_file(), result.stderr
    protect(work / "runs")
    image = next(data_set.rglob("*.png"))
    result = start(work, "runs/tiny", image, script=checkout / "predict.py", env=env)
    assert result.returncode == 0 and image.name in result.stdout, result.stderr


def test_a_read_only_cache_is_enough_for_what_is_in_it(data_set, tmp_path, protect):
    train.main(tiny_settings(data_set, "train.epochs=1", "train.run=first"))
    protect(tmp_path / "cache")
    before = sorted(path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*"))
    result = start(tmp_path, *tiny_settings(data_set, "train.epochs=1", "train.run=second"))
    assert result.returncode == 0 and " 0 passes to do" in result.stdout, result.stderr
    first, second = ((tmp_path / "runs" / name / "history.csv").read_bytes() for name in ("first", "second"))
    assert first == second
    result = start(tmp_path, *tiny_settings(data_set, "data.image_size=33", "train.run=third"))
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and last.startswith("error: cache/: must be writable for "), result.stderr
    assert before == sorted(path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*"))


def test_a_cache_that_cannot_be_written_only_costs_time_where_no_features_are_needed(data_set, tmp_path, protect):
    (tmp_path / "cache").mkdir()
    protect(tmp_path / "cache")
    result = start(tmp_path, *tiny_settings(data_set, *CNN))
    assert result.returncode == 0 and "will be checked again next time" in result.stderr, result.stderr


@pytest.mark.parametrize("name", ["train.py", "data.py"])
def test_a_folder_that_cannot_be_written_is_named_in_one_line(data_set, tmp_path, protect, name):
    work = tmp_path / "work"
    work.mkdir()
    protect(work)
    result = start(work, *tiny_settings(data_set, *CNN), script=ROOT / name)
    folder = {"train.py": work / "runs", "data.py": "overview"}[name]
    assert result.returncode == 2 and not list(work.iterdir())
    assert result.stderr.splitlines()[-1] == f"error: {folder}: cannot be written or read: Permission denied"


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path):
    closed = tmp_path / "images" / "closed"
    closed.mkdir(parents=True)
    (tmp_path / "images" / "a.png").touch()
    closed.chmod(0)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from images import external_images as images; images.find(['images'])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=drop_privileges)
    closed.chmod(0o700)
    assert result.returncode == 1 and "PermissionError" in result.stderr and "images/closed" in result.stderr
