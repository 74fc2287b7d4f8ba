import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_tree import tiny_settings

import config
import grid
from safety.errors import InputError

ROOT = Path(config.__file__).parent


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The commands that a grid gives in a new folder, of which those of seed 1 fail once; no image is there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid.audit, "image_folder", Path)
    commands = []

    def run(command, **options):
        commands.append(list(map(str, command[1:])))
        if "train.py" in commands[-1][0]:
            name = next(
                word.split("=")[-1].split("/")[-1] for word in command[::-1] if "train.run=" in word or "runs/" in word
            )
            folder = Path("runs", name)
            folder.mkdir(exist_ok=True)
            if "--resume" not in command:
                settings = config.load_settings(None, [word for word in command[2:] if "=" in str(word)])
                (folder / "config.yaml").write_text(settings.to_yaml().replace("precision: auto", "precision: float32"))
            fails = "data.seed=1" in command
            None if fails else (folder / "history.png").touch()
            options["stdout"].write("begins\nerror: no luck\n" if fails else "")
            return subprocess.CompletedProcess(command, int(fails))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(grid.subprocess, "run", run)
    return commands


def test_every_combination_is_a_run_with_its_name():
    runs = grid.grid("a", ["data.protocol=row,fold", "train.epochs=3", "train.maximal_lr=1e-2,7.0e-3"])
    assert list(runs) == ["a-row-1e-2", "a-row-7.0e-3", "a-fold-1e-2", "a-fold-7.0e-3"]
    assert runs["a-fold-1e-2"] == [
        "data.protocol=fold",
        "train.epochs=3",
        "train.maximal_lr=1e-2",
        "train.run=a-fold-1e-2",
    ]
    assert list(grid.grid("a", ["data.seed=4"])) == ["a"]


def test_a_missing_data_set_is_named_before_the_first_run_is_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="data.root: must be a folder, got 'nothing'"):
        grid.main(["a", "data.root=nothing", "data.seed=0,1"])
    assert not list(tmp_path.iterdir())


def test_no_images_are_needed_for_imported_features_and_for_what_is_finished(tmp_path, monkeypatch):
    commands = []

    def run(command, **options):
        commands.append(Path(command[1]).name)
        return subprocess.CompletedProcess(command, int(commands[-1] == "crossval.py"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid.subprocess, "run", run)
    example = f"model.weights={ROOT / 'examples/efficientnet-lite0.npz'}"
    with pytest.raises(InputError, match="1 of 1 runs failed"):
        grid.main(["a", "--crossval", "--config", str(ROOT / "real.yaml"), example, "data.root=nothing"])
    assert commands == ["crossval.py"]
    for seed in (0, 1):
        (tmp_path / f"runs/b-{seed}").mkdir(parents=True)
        (tmp_path / f"runs/b-{seed}/history.png").touch()
    monkeypatch.setattr(grid.changed_settings, "refuse", lambda run, settings: None)
    assert grid.main(["b", "data.root=nothing", "data.seed=0,1"]) == 0
    assert commands == ["crossval.py", "evaluate.py"]


def test_a_grid_goes_on_where_a_run_failed_and_then_compares_all(trained):
    with pytest.raises(InputError, match="1 of 3 runs failed; the last line of runs/a-1.log:\nerror: no luck\nthe"):
        grid.main(["a", "data.seed=0,1,2", "--jobs", "2"])
    assert not any("evaluate.py" in command[0] for command in trained)
    trained.clear()
    assert grid.main(["a", "data.seed=0,1,2"]) == 0
    assert [command[1:] for command in trained] == [
        ["--resume", "runs/a-1"], ["runs/a-0", "runs/a-1", "runs/a-2"],
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", ["0", "0,2"])
def test_a_run_of_the_same_name_with_other_settings_is_refused_before_the_first_run(trained, seeds):
    assert grid.main(["a", f"data.seed={seeds}"]) == 0
    trained.clear()
    name = "a" if seeds == "0" else "a-2"
    with pytest.raises(
        InputError, match=f"runs/{name} was started with train.epochs=12, got 3; change it back, or give"
    ):
        grid.main(["a", "data.seed=2,3" if "," in seeds else "data.seed=0", "train.epochs=3"])
    with pytest.raises(InputError, match=r"train.precision=float32, got bfloat16 \(and 1 more that differ\)"):
        grid.main(["a", f"data.seed={seeds}", "train.precision=bfloat16", "train.strategy=one"])
    assert trained == []


def test_hosts_take_their_share_and_the_last_compares(trained, capsys):
    assert grid.main(["a", "data.seed=0,2,3", "--share", "1/2", "--config", str(ROOT / "sample.yaml")]) == 0
    assert "1 runs of other shares are missing, a-2 for example" in capsys.readouterr().out
    assert all(command[1:3] == ["--config", str(ROOT / "sample.yaml")] for command in trained)
    assert grid.main(["a", "data.seed=0,2,3", "--share", "2/2"]) == 0
    assert [command[0].rsplit("/", 1)[-1] for command in trained] == ["train.py"] * 3 + ["evaluate.py"]


def test_a_grid_of_cross_validations_skips_those_that_are_evaluated(tmp_path, monkeypatch):
    monkeypatch.setattr(grid.audit, "image_folder", Path)
    commands = []

    def run(command, **options):
        commands.append(list(map(str, command[1:])))
        if "crossval.py" in commands[-1][0]:
            evaluation = tmp_path / "runs" / commands[-1][1] / "evaluation"
            evaluation.mkdir(parents=True)
            (evaluation / "metrics.json").touch()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(grid.subprocess, "run", run)
    assert grid.main(["a", "--crossval", "model.standardize=true"]) == 0
    assert [command[1:] for command in commands] == [["a", "model.standardize=true"], ["runs/a"]]
    commands.clear()
    assert grid.main(["a", "--crossval", "data.protocol=image,patient"]) == 0
    assert grid.main(["a", "--crossval", "data.protocol=image,patient"]) == 0
    assert [Path(command[0]).name for command in commands] == [
        "crossval.py",
        "crossval.py",
        "evaluate.py",
        "evaluate.py",
    ]
    assert commands[1][1:] == ["a-patient", "data.protocol=patient"] and commands[2] == commands[3]


@pytest.mark.parametrize("arguments, words", [
    (["a", "--share", "0/2"], "--share: needed is I/N with I from 1 to N, for example 1/2, got 0/2"),
    (["a", "--share", "half"], "got half"),
    (["a", "--jobs", "0"], "--jobs: needed is 1 or more, got 0"),
    (["a", "data.seed=0,x"], "data.seed: "),
    (["a", "train.run=b"], "train.run is set by the grid"),
    ([".."], "train.run: "),
])  # fmt: skip
def test_what_is_no_grid_is_refused_before_the_first_run(trained, arguments, words):
    with pytest.raises(InputError, match=words):
        grid.main(arguments)
    assert trained == []


def test_a_grid_trains_and_compares(tree, tmp_path):
    overrides = tiny_settings(tree, "model.base=cnn", "train.epochs=1")
    settings = [text for text in overrides if not text.startswith("train.run")]
    command = [sys.executable, ROOT / "grid.py", "a", *settings, "data.seed=0,1", "--jobs", "2"]
    result = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs/comparison.csv").read_text().count("a-") >= 2
    for seed in (0, 1):
        assert json.loads((tmp_path / f"runs/a-{seed}/environment.json").read_text())["seed"] == seed
