import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from tiny_tree import fold_rows, tiny_settings, write_tree

import config
import evaluate
import train
from safety import command_line
from training import environment

ROOT = Path(config.__file__).parent


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory):
    """A run on the tiny tree, and what it printed."""
    place = tmp_path_factory.mktemp("work")
    result = shell("train.py", *tiny_settings(tree, "augment.flip=true"), cwd=place)
    assert result.returncode == 0, result.stderr
    return place / "runs" / "tiny", result.stdout


def shell(script, *arguments, cwd):
    return subprocess.run([sys.executable, ROOT / script, *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_last_line_names_the_run(run):
    folder, printed = run
    assert printed.splitlines()[-1] == "run: runs/tiny"
    assert "device: CPU" in printed and "learning_rate" in printed


def test_the_folder_holds_what_a_run_leaves(run):
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "split.csv", "best_model.keras", "history.csv", "history.png", "split.png", "environment.json",
        "tensorboard", "state.npz",
    }  # fmt: skip
    history = pd.read_csv(folder / "history.csv")
    about = json.loads(zipfile.ZipFile(folder / "best_model.keras").read("breakhis.json"))
    best = history.loc[history.val_balanced_loss.idxmin()]
    assert about["epoch"] == best.epoch and about["val_loss"] == pytest.approx(best.val_loss)
    assert len(history) == 2 and {"loss", "accuracy", "precision", "recall", "auc", "val_loss", "learning_rate"} <= set(
        history
    )


def test_environment_json_has_what_another_machine_needs(run):
    folder, _ = run
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["tensorflow"].startswith("2.") and environment["seed"] == 0
    assert environment["device"].startswith("CPU") and environment["device"].endswith("float32")
    assert {len(environment[key]) for key in ("split_sha256", "weights_sha256", "data_sha256")} == {64}


def test_the_resolved_settings_run_again(run, tree):
    folder, _ = run
    assert config.load_settings(folder / "config.yaml") == config.load_settings(
        None, tiny_settings(tree, "augment.flip=true")
    )


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Calls train.py on wrong input in an empty folder; nothing may be written there."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        before = snapshot(tmp_path)
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.run(train.main)
        assert ended.value.code == 2 and snapshot(tmp_path) == before

    return call


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def image(root):
    return next(root.rglob("SOB_B_F-14-103-40-001.png"))


def spoil_three(root):
    """Spoils an image each of three kinds; returns the lines to be printed, in order."""
    names = ["SOB_B_F-14-103-40-001.png", "SOB_B_TA-14-107-100-001.png", "SOB_M_DC-14-202-400-001.png"]
    missing, empty, cut = (next(root.rglob(name)) for name in names)
    missing.unlink()
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:99])
    return [f"{names[0]} is missing", f"{names[1]} is empty", f"{names[2]} is cut short or damaged"]


def keep_rows(root, count):
    table = pd.read_csv(root / "Folds.csv")
    table[table.filename.str.contains("-40-")].head(count).to_csv(root / "Folds.csv", index=False)


@pytest.mark.parametrize("spoil, change, words", [
    (None, "data.root=nowhere", "must be a folder, got 'nowhere'; get BreakHis as README.md describes"),
    (None, "data.folds=nowhere.csv", "must be a CSV file or tree, got 'nowhere.csv', which does not exist; get BreakHis as"),
    (None, "data.test_per_class=500", "got 500"),
    (None, "train.epoch=1", "the nearest is train.epochs"),
    (None, "train.epochs=two", "train.epochs"),
    (None, "model.weights=nowhere.h5", "no file 'nowhere.h5'"),
    (lambda root: keep_rows(root, 3), "data.seed=0", "too few"),
    (lambda root: (root / "Folds.csv").write_text("fold,mag,grp\n1,40,train\n"), "data.seed=0", "column filename is missing"),
])  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(own_tree, refused, capfd, spoil, change, words):
    if spoil:
        spoil(own_tree)
    refused(*tiny_settings(own_tree, change))
    out, error = capfd.readouterr()
    assert out == "" and error.startswith("error: ") and error.count("\n") == 1 and words in error


@pytest.mark.parametrize("script", [train, evaluate])
def test_bad_images_stop_with_status_1_and_are_all_named(own_tree, tmp_path, monkeypatch, capfd, script):
    monkeypatch.chdir(tmp_path)
    arguments = tiny_settings(own_tree, "model.base=cnn")
    if script is evaluate:
        train.main(arguments)
        arguments = ["runs/tiny"]
    before = snapshot(tmp_path / "runs")
    words = spoil_three(own_tree)
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", ["", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.run(script.main)
    title, *named = capfd.readouterr().err.splitlines()
    assert ended.value.code == 1 and snapshot(tmp_path / "runs") == before
    assert re.fullmatch(r"error: data.root: \d of \d+ images cannot be used; mend them, or .*on_bad_image=drop", title)
    assert named == words if script is train else named and set(named) <= set(words)


def test_dropped_images_are_listed_left_out_and_on_record(own_tree, without_figures, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    words = spoil_three(own_tree)
    before = set(own_tree.rglob("*"))
    train.main(tiny_settings(own_tree, "model.base=cnn", "data.on_bad_image=drop"))
    listed = [line for line in capfd.readouterr().err.splitlines() if line in words or "left out" in line]
    assert listed == ["data.root: 3 of 76 images cannot be used; they are left out", *words]
    names = {line.split(" ", 1)[0]: line.split(" ", 1)[1] for line in words}
    assert json.loads((tmp_path / "runs/tiny/environment.json").read_text())["dropped"] == names
    split = pd.read_csv(tmp_path / "runs/tiny/split.csv")
    assert len(split) == 73 and not set(split.filename) & set(names)
    evaluate.main(["runs/tiny"])
    for name in ("report.txt", "report.html"):
        text = (tmp_path / "runs/tiny/evaluation" / name).read_text()
        assert "3 broken images were left out before the split" in text
    assert set(own_tree.rglob("*")) == before
    assert {path.name for path in tmp_path.iterdir()} == {"breakhis", "runs", "cache"}


def test_a_run_is_never_overwritten(own_tree, refused, tmp_path, capfd):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    refused(*tiny_settings(own_tree))
    assert "never overwritten" in capfd.readouterr().err


def test_the_shell_gets_status_2_and_no_traceback(tmp_path):
    for script, arguments in {
        "train.py": ["data.root=nowhere"],
        "evaluate.py": ["runs/nowhere"],
        "data.py": ["--split"],
    }.items():
        result = shell(script, *arguments, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (2, ""), script
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "data.py"])
def test_help_is_there(script, tmp_path):
    result = shell(script, "--help", cwd=tmp_path)
    assert result.returncode == 0 and "python " + script in result.stdout


def test_another_python_is_refused(tmp_path):
    code = f"import sys; sys.version_info = (3, 14, 1); sys.path.insert(0, {str(ROOT)!r}); import config"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    # Both ways are named.
    assert "3.9 to 3.11 with requirements.txt" in result.stderr
    assert "3.10 to 3.13 with requirements-keras3.txt" in result.stderr


def test_one_run_end_to_end_without_upsampling(tmp_path):
    write_tree(tmp_path / "breakhis", fold_rows(images=1))
    result = shell("train.py", *tiny_settings(tmp_path / "breakhis", "data.upsample=false", "train.features=end_to_end",
                                            "train.epochs=1", "train.run=auto"), cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    name = result.stdout.splitlines()[-1].removeprefix("run: ")
    assert name.startswith("runs/image-seed0-") and os.path.isdir(tmp_path / name)


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit() == ""
