"""The settings of a run stay those that it was started with, except that it may train longer."""

import json
import zipfile

import numpy as np
import pytest
from killed_runs import HALF, MODES, start, what_is_left
from tiny_tree import tiny_settings

import train
from safety.errors import InputError
from training import checkpoint, environment, resume


def edit(run, old, new):
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


def without_record(run):
    """Takes the settings out of environment.json, which older runs did not write there."""
    content = environment.read(run)
    del content["settings"]
    (run / "environment.json").write_text(json.dumps(content))


def fine_tuning_began(run):
    np.savez(run / "state.npz", says='{"epoch": 3, "first": 2, "best": 0.1, "history": [{}, {}, {}]}')


@pytest.mark.parametrize("spoil, arguments, words", [
    (lambda run: edit(run, "maximal_lr: 0.007", "maximal_lr: 0.07"), [],
     "runs/half was started with train.maximal_lr=0.007, got 0.07; only train.epochs and train.fine_tune_epochs may change"),
    (lambda run: edit(run, "flip: true", "flip: false"), ["train.epochs=9"], "with augment.flip=true, got false"),
    (lambda run: None, ["data.seed=3"], "with data.seed=0, got 3"),
    (lambda run: None, ["train.epochs=1"], "has trained 2 epochs already; needed are as many or more, got 1"),
    (lambda run: edit(run, "  epochs: 4", "  epochs: 1"), [], "needed are as many or more, got 1"),
    (fine_tuning_began, ["train.epochs=9"], "fine-tuning began after epoch 2 of runs/half, so train.epochs may not change, got 9"),
    (fine_tuning_began, ["train.epochs=0"], "train.epochs: input should be greater than or equal to 1"),
])  # fmt: skip
def test_what_would_be_another_run_is_refused(stopped, spoil, arguments, words):
    spoil(stopped)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words):
        train.main(["--resume", "runs/half", *arguments])
    assert before == {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}


def test_a_run_without_a_record_of_its_settings_is_resumed_and_gets_one(stopped):
    without_record(stopped)
    train.main(["--resume", "runs/half"])
    assert environment.read(stopped)["settings"]["train"]["epochs"] == 4


def test_a_record_in_the_words_of_an_earlier_version_is_no_change(stopped):
    content = environment.read(stopped)
    assert content["settings"]["data"]["upsample"] == "minority"
    content["settings"]["data"]["upsample"] = "both"
    (stopped / "environment.json").write_text(json.dumps(content))
    edit(stopped, "upsample: minority", "upsample: true")
    assert resume.settings_of(stopped, None, []).data.upsample == "both"
    content["settings"]["data"]["upsample"] = True
    del content["settings"]["train"]["select"]
    (stopped / "environment.json").write_text(json.dumps(content))
    edit(stopped, "  select: balanced\n", "")
    assert resume.settings_of(stopped, None, []).train.select == "plain"


@pytest.fixture(scope="module")
def six(tree, tmp_path_factory):
    """What is left of a run that was asked for six epochs from the start."""
    place = tmp_path_factory.mktemp("six")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train.main(tiny_settings(tree, *HALF, "train.epochs=6", "train.run=half"))
    return outcome(place / "runs/half")


def outcome(run):
    about = json.loads(zipfile.ZipFile(run / "best_model.keras").read("breakhis.json"))
    return what_is_left(run), about["settings"], (run / "config.yaml").read_text(), environment.read(run)["settings"]


class KilledError(Exception):
    pass


def killed(*arguments, **values):
    raise KilledError


def test_a_stopped_run_trains_longer_as_one_that_was_asked_for_it_from_the_start(stopped, six):
    train.main(["--resume", "runs/half", "train.epochs=6"])
    assert outcome(stopped) == six
    assert environment.read(stopped)["resumed"][-1]["changed"] == {"train.epochs": [4, 6]}


def test_so_does_a_finished_run_even_if_it_is_killed_while_this_is_recorded(stopped, six, monkeypatch):
    train.main(["--resume", "runs/half"])
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(checkpoint, "amend", killed)
        train.main(["--resume", "runs/half", "train.epochs=6"])
    train.main(["--resume", "runs/half"])
    assert outcome(stopped) == six and (stopped / "history.png").exists()


def test_more_epochs_in_config_yaml_are_a_change_like_that_in_the_shell(stopped, six):
    edit(stopped, "  epochs: 4", "  epochs: 6")
    train.main(["--resume", "runs/half"])
    assert outcome(stopped) == six
    assert environment.read(stopped)["resumed"][-1]["changed"] == {"train.epochs": [4, 6]}


@pytest.mark.long
@pytest.mark.parametrize("mode, longer", [
    ("cached", {"train.epochs": 5}),
    ("end_to_end", {"train.epochs": 5}),
    ("fine_tuned", {"train.fine_tune_epochs": 8}),
])  # fmt: skip
def test_a_finished_run_of_each_mode_trains_longer(tree, tmp_path, mode, longer):
    settings, more = tiny_settings(tree, *MODES[mode]), [f"{name}={value}" for name, value in longer.items()]
    for arguments in (
        [*settings, "train.run=longer"], ["--resume", "runs/longer", *more], [*settings, *more, "train.run=whole"],
    ):  # fmt: skip
        process = start(tmp_path, *arguments)
        stderr = process.communicate()[1]
        assert process.returncode == 0, stderr
    assert what_is_left(tmp_path / "runs/longer") == what_is_left(tmp_path / "runs/whole")
