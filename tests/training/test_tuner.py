import errno
import re
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_tree import tiny_settings

import config
import train
from images import splits
from safety.errors import InputError, describe
from training import phases, tuner

SPACE = ["tune.epochs=[2,3]", "tune.batch_size=[16,32]", "tune.standardize=[true]", "tune.momentum=[0.0,0.9]"]
TRIALS = 2


def search(tree, *arguments):
    train.main(["--tune", str(TRIALS), *tiny_settings(tree, *SPACE), *arguments])


@pytest.fixture(scope="module")
def place(tree, tmp_path_factory):
    """A search of two trials."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        search(tree)
    return place


@pytest.fixture
def work(place, tmp_path, monkeypatch):
    """An empty folder with the features of that search at hand."""
    shutil.copytree(place / "cache", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(place):
    return (place / "runs/tiny-tune/trials.csv").read_text()


def test_the_folder_holds_a_row_a_trial_and_what_is_next(place):
    folder = place / "runs" / "tiny-tune"
    names = {path.name for path in folder.iterdir() if not path.name.startswith("search-")}
    assert names == {"config.yaml", "trials.csv", "trials.png", "best.yaml"}
    tried = pd.read_csv(folder / "trials.csv")
    assert tried.trial.tolist() == [1, 2] and (tried.status == "completed").all()
    assert tried.maximal_lr.between(1e-4, 0.1).all() and (tried.initial_lr <= tried.maximal_lr).all()
    assert tried.maximal_lr.nunique() == TRIALS
    assert not (place / "runs" / "tiny").exists()


@pytest.mark.parametrize("seed, expected", [(0, 1), (2**32 - 2, 2**32 - 1), (2**32 - 1, 1)])
def test_every_seed_of_the_settings_is_one_of_the_search(tmp_path, seed, expected):
    settings = config.load_settings(None, [f"data.seed={seed}"])
    oracle = tuner._tuner(20, tmp_path, tuner.Prepared(settings, "images", None, None, {})).oracle
    for _ in range(20):
        trial = oracle.create_trial("tuner0")
        oracle.update_trial(trial.trial_id, {"val_loss": 1.0})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    assert oracle.seed == expected


def test_the_winner_run_by_train_gives_the_score_of_the_search(place, work):
    tried = pd.read_csv(place / "runs/tiny-tune/trials.csv")
    best, monitor = tried.loc[tried.val_loss.idxmin()], "val_balanced_loss"
    train.main(["--config", str(place / "runs/tiny-tune/best.yaml")])
    history = pd.read_csv(work / "runs/tiny-best/history.csv")
    epoch = history[monitor].idxmin()
    assert epoch == best.epoch and len(history) == best.epochs
    assert history[monitor][epoch] == pytest.approx(best.val_loss, abs=1e-6)
    assert history.val_auc[epoch] == pytest.approx(best.val_auc, abs=1e-6)


def test_poisoned_test_labels_and_images_change_nothing(place, tree, work, monkeypatch):
    poisoned, seen = work / "breakhis", []
    shutil.copytree(tree, poisoned)

    def split(table, settings, *rest):
        table = inner(table, settings)
        test = table.set == "test"
        for number, path in enumerate(sorted(set(table.path[test]))):
            noise = np.random.RandomState(10_000 + number).randint(0, 60, (32, 48, 3)).astype(np.uint8)
            Image.fromarray(noise).save(next(poisoned.rglob(path.rpartition("/")[2])))
        other = {"benign": "malignant", "malignant": "benign"}
        seen.append(test.sum())
        return table.assign(
            label=table.label.mask(test, table.label.map(other)),
            label_int=table.label_int.mask(test, 1 - table.label_int),
        )

    inner = splits.split
    monkeypatch.setattr(splits, "split", split)
    search(poisoned)
    assert len(seen) == 2 and min(seen) == 20
    assert outcome(work) == outcome(place)
    best, clean = (config.load_settings(at / "runs/tiny-tune/best.yaml") for at in (work, place))
    assert (best.train, best.model) == (clean.train, clean.model)


class StopError(Exception):
    pass


@pytest.fixture
def prepared(settings):
    """What a search needs besides the training itself."""
    values = settings.model_dump()
    values["tune"] |= {
        "epochs": [2, 3],
        "batch_size": [16],
        "standardize": [True],
        "momentum": [0.9],
        "step_size_epochs": [3],
    }
    return tuner.Prepared(config.validate(config.Settings, values), "a" * 64, None, None, {})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny-tune"


def scored(*scores):
    """In place of `tuner.fit`: the present settings, then the trials, with these losses and areas; None diverges."""
    left = iter(scores)

    def fit(prepared, settings):
        score = next(left)
        return {"val_loss": score[0], "val_auc": score[1], "epoch": 0} if score else {}

    return fit


def lowest_at(peak):
    """In place of `tuner.fit`: a loss that is lowest where maximal_lr is `peak`."""

    def fit(prepared, settings):
        return {"val_loss": 1 + np.log10(settings.train.maximal_lr / peak) ** 2, "val_auc": 0.5, "epoch": 1}

    return fit


def test_a_stopped_search_goes_on_and_ends_as_one_that_was_left_alone(prepared, folder, monkeypatch):
    inner, fits = lowest_at(0.003), []

    def fit(*arguments):
        fits.append("fit")
        if stop and len(fits) == 4:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(tuner, "fit", fit)
    stop = False
    tuner.search(6, folder.with_name("undisturbed-tune"), prepared, "")
    stop, _ = True, fits.clear()
    with pytest.raises(KeyboardInterrupt):
        tuner.search(6, folder, prepared, "")
    tuner.search(6, folder, prepared, "")
    # The present settings, two trials and the third that was stopped; the present settings and the four that were left.
    assert len(fits) == 4 + 5
    assert (folder / "trials.csv").read_text() == (folder.with_name("undisturbed-tune") / "trials.csv").read_text()


def test_a_stopped_search_says_how_to_go_on(tree, work, monkeypatch, capsys):
    def fit(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        search(tree)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "stopped; go on with: python train.py --tune 2 --config runs/tiny-tune/config.yaml"


def test_more_trials_continue_the_first_and_close_in_on_the_best(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    tuner.search(12, folder, prepared, "")
    first = pd.read_csv(folder / "trials.csv")
    tuner.search(20, folder, prepared, "")
    tried = pd.read_csv(folder / "trials.csv")
    assert len(tried) == 20
    pd.testing.assert_frame_equal(tried[:12], first)
    # After the random trials the Gaussian process proposes rates where the loss is low.
    assert tried.val_loss[12:].mean() < first.val_loss.mean()


def test_a_search_with_other_settings_is_not_mixed_in(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    tuner.search(1, folder, prepared, "")
    before = (folder / "trials.csv").read_text()
    other = tuner._changed(prepared.settings, train={"epochs": 5})
    with pytest.raises(InputError, match="tiny-tune holds a search with other settings"):
        tuner.search(2, folder, prepared._replace(settings=other), "")
    assert (folder / "trials.csv").read_text() == before


def test_a_search_of_an_earlier_version_goes_on(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    old = tuner._changed(prepared.settings, train={"select": "plain"}, data={"upsample": True})
    tuner.search(1, folder, prepared._replace(settings=old), "")
    written = folder / "config.yaml"
    written.write_text(written.read_text().replace("  select: plain\n", "").replace("upsample: both", "upsample: true"))
    tuner.search(2, folder, prepared._replace(settings=old), "")
    assert len(pd.read_csv(folder / "trials.csv")) == 2
    with pytest.raises(InputError, match="holds a search with other settings"):
        tuner.search(2, folder, prepared, "")


@pytest.mark.parametrize("select, epoch, loss", [("balanced", 1, 0.2), ("plain", 0, 0.4)])
def test_the_epoch_of_a_trial_is_the_one_that_a_run_keeps(prepared, monkeypatch, select, epoch, loss):
    history = {"loss": [1, 1], "val_loss": [0.4, 0.5], "val_balanced_loss": [0.3, 0.2], "val_auc": [0.6, 0.7]}
    monkeypatch.setattr(tuner.phases, "head_on_features", lambda *_: SimpleNamespace(trained=None, rate=None))
    monkeypatch.setattr(tuner.phases, "fit", lambda *_, **__: history)
    monkeypatch.setattr(tuner.model, "compile_model", lambda *_: None)
    head = SimpleNamespace(set_weights=lambda weights: None)
    settings = tuner._changed(prepared.settings, train={"select": select})
    scores = tuner.fit(prepared._replace(heads={settings.model.standardize: (head, [])}), settings)
    assert (scores["epoch"], scores["val_loss"], scores["val_auc"]) == (epoch, loss, history["val_auc"][epoch])


def test_other_images_begin_another_search(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    tuner.search(1, folder, prepared, "")
    tuner.search(1, folder, prepared._replace(images="b" * 64), "")
    assert len(list(folder.glob("search-*"))) == 2


def test_the_hash_of_the_images_is_that_of_pixels_and_labels():
    frame = pd.DataFrame({"pixels": ["a", "b"], "label_int": [0, 1], "path": ["c", "d"]})
    same, *others = (
        tuner.hash_of(phases.Rows(frame, frame.assign(**change)))
        for change in ({"path": ["e", "f"]}, {"pixels": ["a", "c"]}, {"label_int": [1, 1]})
    )
    assert same == tuner.hash_of(phases.Rows(frame, frame)) and len({same, *others}) == 3


@pytest.mark.parametrize("objective, winner", [("val_loss", 2), ("val_auc", 3)])
def test_the_objective_chooses_and_a_trial_that_diverges_is_on_record(prepared, folder, monkeypatch, objective, winner):
    monkeypatch.setattr(tuner, "fit", scored(None, None, (0.3, 0.6), (0.5, 0.9)))
    tuner.search(
        3, folder, prepared._replace(settings=tuner._changed(prepared.settings, tune={"objective": objective})), ""
    )
    tried = pd.read_csv(folder / "trials.csv")
    assert tried.status.tolist() == ["failed", "completed", "completed"] and np.isnan(tried.val_loss[0])
    best = config.load_settings(folder / "best.yaml")
    assert best.train.maximal_lr == tried.maximal_lr[winner - 1]


@pytest.mark.parametrize("objective, present, worse", [
    ("val_loss", (0.2, 0.5), True), ("val_loss", (0.4, 0.5), False),
    ("val_auc", (0.2, 0.7), True), ("val_auc", (0.2, 0.5), False),
])  # fmt: skip
def test_a_search_that_finds_nothing_better_says_so(prepared, folder, monkeypatch, capsys, objective, present, worse):
    monkeypatch.setattr(tuner, "fit", scored(present, (0.3, 0.6)))
    tuner.search(
        1, folder, prepared._replace(settings=tuner._changed(prepared.settings, tune={"objective": objective})), ""
    )
    words = f"no trial has a better {objective} than the present settings"
    assert (words in capsys.readouterr().out) == worse


def test_a_search_of_which_every_loss_is_nan_is_refused(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", scored(*[None] * 6))
    with pytest.raises(InputError, match="lower tune.maximal_lr"):
        tuner.search(5, folder, prepared, "")
    assert (folder / "trials.csv").exists() and not (folder / "best.yaml").exists()


def test_an_error_in_a_trial_ends_the_search(prepared, folder, monkeypatch):
    def fit(*_):
        raise StopError

    monkeypatch.setattr(tuner, "fit", fit)
    with pytest.raises(StopError):
        tuner.search(2, folder, prepared, "")


def test_a_full_disk_is_named_with_the_folder_of_the_search(prepared, folder, monkeypatch):
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    monkeypatch.setattr(tuner.keras_tuner.Oracle, "save", full)
    with pytest.raises(OSError) as error:
        tuner.search(2, folder, prepared, "")
    assert re.fullmatch(
        rf"{folder}: cannot .*No space left on device; [\d.]+ MiB are free there", describe(error.value)
    )


def test_a_damaged_search_is_refused(prepared, folder, monkeypatch):
    monkeypatch.setattr(tuner, "fit", lowest_at(0.003))
    tuner.search(1, folder, prepared, "")
    next(folder.glob("search-*/oracle.json")).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        tuner.search(2, folder, prepared, "")


@pytest.mark.parametrize("values, peak, foot", [
    ({"maximal_lr": 0.0123456, "initial_share": 0.1}, 0.01235, 0.001235),
    ({"maximal_lr": 0.0123456, "initial_share": 1.0}, 0.01235, 0.01235),
])  # fmt: skip
def test_the_rates_of_a_trial_are_rounded_and_in_order(values, peak, foot):
    chosen = {"momentum": 0.5, "batch_size": 8, "epochs": 3, "step_size_epochs": 1, "standardize": True}
    settings = tuner.with_values(config.load_settings(), {**values, **chosen})
    assert (settings.train.maximal_lr, settings.train.initial_lr) == (peak, foot)
    assert (settings.train.batch_size, settings.model.standardize) == (8, True)


def test_what_has_one_value_is_fixed_and_the_rest_is_searched():
    space = tuner.space(config.load_settings(None, ["tune.momentum=[0.9]", "tune.maximal_lr=[0.01,0.01]"]).tune)
    kinds = {item.name: type(item).__name__ for item in space.space}
    assert kinds == {
        "maximal_lr": "Fixed", "initial_share": "Float", "momentum": "Fixed", "batch_size": "Choice", "epochs": "Choice",
        "step_size_epochs": "Choice", "standardize": "Boolean",
    }  # fmt: skip


@pytest.mark.parametrize("override, words", [
    ("tune.maximal_lr=[0.1,0.01]", "low at most high"),
    ("tune.maximal_lr=[0.1]", "tune.maximal_lr: list should have at least 2"),
    ("tune.initial_share=[0.1,2]", "tune.initial_share.1"),
    ("tune.momentum=[1.0]", "tune.momentum.0"),
    ("tune.epochs=[3,3]", "choices that all differ"),
    ("tune.standardize=[]", "at least 1"),
    ("tune.batch_size=16", "tune.batch_size: input should be a valid list"),
    ("tune.objective=test_loss", "'val_loss' or 'val_auc'"),
])  # fmt: skip
def test_a_wrong_search_space_is_refused_by_name(override, words):
    with pytest.raises(InputError, match=words):
        config.load_settings(None, [override])


@pytest.mark.parametrize("arguments, words", [
    (["--tune", "0"], "trials must be 1 or more"),
    (["--tune", "2", "--find-lr"], "not allowed with"),
    (["--tune", "2", "train.features=end_to_end"], "cached features"),
    (["--find-lr", "model.base=cnn"], "cached features"),
])  # fmt: skip
def test_wrong_commands_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        train.main(arguments)
