import copy
import errno
import io
import json
import shutil
import tempfile
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from tiny_tree import tiny_settings

import config
import model
from safety import atomic_files
from safety.errors import InputError
from training import callbacks, checkpoint

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(scope="module")
def saved(tree, pixels, tmp_path_factory):
    """A checkpoint, and what its model predicted before it was saved."""
    settings = config.load_settings(None, tiny_settings(tree))
    network = model.build(settings)
    pooled = model.pooled(network).predict(pixels, verbose=0)
    model.standardize(network, pooled.mean(axis=0), pooled.var(axis=0))
    model.compile_model(network, settings.train, model.cyclical_rate(settings.train, 32))
    network.fit(pixels, np.array([[0], [1], [0], [1], [0], [1]]), verbose=0)
    path = tmp_path_factory.mktemp("run") / "best_model.keras"
    checkpoint.save(network, path, {"settings": settings.model_dump(), "split_sha256": "abc"})
    return path, network.predict(pixels, verbose=0)


def test_a_checkpoint_predicts_as_the_model_did(saved, pixels):
    path, expected = saved
    loaded, about = checkpoint.load(path)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), expected, atol=1e-6)
    assert about["split_sha256"] == "abc" and about["settings"].data.image_size == 32


def test_keras_itself_opens_the_checkpoint(saved, pixels):
    path, expected = saved
    np.testing.assert_allclose(
        keras.models.load_model(path, compile=False).predict(pixels, verbose=0), expected, atol=1e-6
    )


def test_a_full_folder_of_temporary_files_is_named_and_no_damage(saved, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(OSError, match="No space") as error:
        checkpoint.load(saved[0])
    assert error.value.filename == tempfile.gettempdir()


def test_nothing_of_a_checkpoint_but_its_arrays_and_settings_is_used(saved, pixels, tmp_path):
    """A checkpoint whose layers would run code loads, and the code does not run."""
    path, expected = saved
    hostile = tmp_path / "best_model.keras"
    evil = {
        "module": "os",
        "class_name": "system",
        "config": {"command": f"touch {tmp_path}/ran"},
        "registered_name": None,
    }
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(hostile, "w") as new:
        for name in old.namelist():
            new.writestr(name, json.dumps(evil) if name == "config.json" else old.read(name))
    loaded, _ = checkpoint.load(hostile)
    np.testing.assert_allclose(loaded.predict(pixels, verbose=0), expected, atol=1e-6)
    assert not (tmp_path / "ran").exists()


def rewrite(path, target, **members):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = members.get(name.split(".")[0], old.read(name))
            if content is not None:
                new.writestr(name, content)


@pytest.mark.parametrize("spoil, words", [
    (lambda path, target: None, "no checkpoint"),
    (lambda path, target: target.write_bytes(b""), "damaged"),
    (lambda path, target: target.write_bytes(path.read_bytes()[:100_000]), "damaged"),
    (lambda path, target: target.write_text("not a model"), "damaged"),
    (lambda path, target: rewrite(path, target, breakhis=None), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b"{"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b"[]"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, breakhis=b'{"settings": {"data": 3}}'), "data"),
    (lambda path, target: rewrite(path, target, model=b"no HDF5"), "damaged, or no checkpoint of this project"),
    (lambda path, target: rewrite(path, target, model=None), "damaged, or no checkpoint of this project"),
    (lambda path, target: keras.Sequential([keras.layers.Dense(1, input_shape=(2,))]).save(target), "no checkpoint of"),
])  # fmt: skip
def test_a_checkpoint_that_is_missing_damaged_or_not_ours_is_refused(saved, tmp_path, spoil, words):
    target = tmp_path / "best_model.keras"
    spoil(saved[0], target)
    with pytest.raises(InputError, match=words):
        checkpoint.load(target)


@pytest.mark.parametrize("name", ["runs/onest", "onest", "runs/onest/best_model.keras"])
def test_a_missing_run_is_refused_with_the_nearest_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"no checkpoint '{name}'.*; runs/ has none$"):
        checkpoint.find(Path(name))
    for file in ("honesty/best_model.keras", "thesis/best_model.keras", "nest/folds.csv"):
        atomic_files.write_text(Path("runs", file), "")
    with pytest.raises(InputError, match=f"no checkpoint '{name}'.*; the nearest run is runs/honesty$"):
        checkpoint.find(Path(name))
    with pytest.raises(InputError, match="; the nearest run is runs/nest$"):
        checkpoint.find(Path(name), "folds.csv")


def test_a_run_without_a_checkpoint_is_not_taken_for_a_misspelt_one(tmp_path):
    with pytest.raises(InputError, match="or the best_model.keras in one$"):
        checkpoint.find(tmp_path)


def test_a_wrong_file_name_in_a_run_is_refused_with_its_checkpoint(tmp_path):
    atomic_files.write_text(tmp_path / "best_model.keras", "")
    with pytest.raises(InputError, match=f"; there is {tmp_path}/best_model.keras$"):
        checkpoint.find(tmp_path / "best.keras")


def test_weights_of_another_shape_in_a_checkpoint_are_refused(saved, tmp_path):
    about = json.loads(zipfile.ZipFile(saved[0]).read("breakhis.json"))
    about["settings"]["model"]["standardize"] = False
    rewrite(saved[0], tmp_path / "best_model.keras", breakhis=json.dumps(about))
    with pytest.raises(InputError, match="its arrays are not those that were saved"):
        checkpoint.load(tmp_path / "best_model.keras")


def saying(saved, target, **more):
    about = json.loads(zipfile.ZipFile(saved[0]).read("breakhis.json"))
    rewrite(saved[0], target, breakhis=json.dumps({**about, **more}))


DECISION = {"rule": "0.5", "threshold": 0.5, "temperature": 1.0}
FAMILIAR = {"mean": [0.0] * 512, "deviation": [1.0] * 512, "limit": 2.0}


def test_what_evaluation_adds_is_read_back(saved, tmp_path):
    saying(saved, tmp_path / "best_model.keras", decision=DECISION, familiar=FAMILIAR, note="of another version")
    about = checkpoint.load(tmp_path / "best_model.keras")[1]
    assert (about["decision"], about["familiar"]) == (DECISION, FAMILIAR)


def test_a_checkpoint_of_an_earlier_version_has_the_settings_of_then(saved, tmp_path):
    settings = json.loads(zipfile.ZipFile(saved[0]).read("breakhis.json"))["settings"]
    del settings["train"]["select"]
    for switch, kind in ((True, "both"), (False, "none")):
        settings["data"]["upsample"] = switch
        saying(saved, tmp_path / "best_model.keras", settings=settings)
        read = checkpoint.load(tmp_path / "best_model.keras")[1]["settings"]
        assert (read.train.select, read.data.upsample) == ("plain", kind)


@pytest.mark.parametrize("more, words", [
    ({"decision": None}, "decision: input should be"),
    ({"decision": [0.5]}, "decision: input should be"),
    ({"decision": {**DECISION, "threshold": "0.5"}}, "decision.threshold: input should be a valid number"),
    ({"decision": {**DECISION, "threshold": float("nan")}}, "decision.threshold"),
    ({"decision": {**DECISION, "threshold": 1.1}}, "decision.threshold: input should be less than or equal to 1, got '1.1'"),
    ({"decision": {**DECISION, "threshold": 0.9}}, "threshold must be the number of its rule, 0.5, got 0.9"),
    ({"decision": {**DECISION, "temperature": 0}}, "decision.temperature: input should be greater than or equal to 0.5"),
    ({"decision": {**DECISION, "temperature": 1e-300}}, "decision.temperature: input should be greater than or equal to 0.5"),
    ({"decision": {**DECISION, "temperature": 1e300}}, "decision.temperature: input should be less than or equal to 10"),
    ({"decision": {**DECISION, "rule": "__import__('os')"}}, "decision.rule"),
    ({"familiar": {**FAMILIAR, "mean": "0"}}, "familiar.mean"),
    ({"familiar": {**FAMILIAR, "mean": [0.0] * 3}}, "familiar.mean has 3 numbers, needed are 512"),
    ({"familiar": {**FAMILIAR, "deviation": [0.0] * 512}}, "familiar.deviation.0: input should be greater than or equal to 0.0003"),
    ({"familiar": {**FAMILIAR, "deviation": [1e-300] * 512}}, "familiar.deviation.0: input should be greater than or equal to 0.0003"),
    ({"familiar": {**FAMILIAR, "deviation": [1.0] * 511}}, "familiar.deviation has 511 numbers, needed are 512"),
    ({"familiar": {**FAMILIAR, "mean": [1e300] * 512}}, "familiar.mean.0: input should be less than or equal to 34028"),
    ({"familiar": {**FAMILIAR, "mean": [float("nan")] * 512}}, "familiar.mean.0: input should be a finite number"),
    ({"familiar": {**FAMILIAR, "limit": 1e300}}, "familiar.limit: input should be less than or equal to 34028"),
    ({"familiar": {**FAMILIAR, "limit": float("inf")}}, "familiar.limit"),
    ({"split_sha256": 5}, "split_sha256"),
    ({"settings": []}, "settings"),
    ({"note": "a" * 2**22}, "allowed are 4194304 bytes of breakhis.json"),
])  # fmt: skip
def test_the_metadata_of_a_checkpoint_is_checked(saved, tmp_path, more, words):
    saying(saved, tmp_path / "best_model.keras", **more)
    with pytest.raises(InputError, match=words):
        checkpoint.load(tmp_path / "best_model.keras")


def with_arrays(saved, target, fill):
    """The checkpoint with other things in its HDF5 file."""
    content = io.BytesIO(zipfile.ZipFile(saved[0]).read("model.weights.h5"))
    with h5py.File(content, "a") as file:
        fill(file)
    rewrite(saved[0], target, model=content.getvalue())


def compress(saved, target):
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in zipfile.ZipFile(saved[0]).namelist():
            archive.writestr(name, bytes(2**28) if name == "model.weights.h5" else "{}")


def after_a_hole(saved, target):
    """An archive may begin anywhere in a file; what lies before it takes no room on the disk."""
    with target.open("wb") as file:
        file.seek(2**31)
        file.write(saved[0].read_bytes())


def test_arrays_are_looked_at_without_going_back_in_the_archive(saved, monkeypatch):
    """Which would read them from the start each time."""
    monkeypatch.setattr(zipfile.ZipExtFile, "seek", lambda *arguments: pytest.fail("went back"))
    checkpoint._read_metadata(saved[0])


@pytest.mark.parametrize("spoil, words", [
    (compress, "its members are compressed"),
    (after_a_hole, "has 2[0-9]{9} bytes, allowed are 1073741824"),
    (lambda saved, target: rewrite(saved[0], target, breakhis="[" * 100_000), "recursion"),
    (lambda saved, target: with_arrays(saved, target, lambda file: file.__setitem__("a", h5py.ExternalLink("b", "/"))), "link to elsewhere"),
    (lambda saved, target: with_arrays(saved, target, lambda file: file.create_dataset("a", (10**6, 10**6), "f4")), "bytes in the file, got 0"),
])  # fmt: skip
def test_bombs_and_ways_out_of_a_checkpoint_are_refused(saved, tmp_path, spoil, words):
    spoil(saved, tmp_path / "best_model.keras")
    with pytest.raises(InputError, match=words):
        checkpoint.load(tmp_path / "best_model.keras")


def test_members_that_lie_over_each_other_are_refused(saved, tmp_path):
    """Two entries of the directory that point to the same bytes: each could be read, and a thousand would be a bomb."""
    target = tmp_path / "best_model.keras"
    with zipfile.ZipFile(saved[0]) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        twin = copy.copy(new.getinfo("model.weights.h5"))
        twin.filename = "twin.weights.h5"
        new.filelist.append(twin)
        new._didModify = True
    with pytest.raises(InputError, match="its members are larger than the file"):
        checkpoint.load(target)


def test_another_ending_is_refused(saved, tmp_path):
    shutil.copy(saved[0], tmp_path / "best_model.zip")
    with pytest.raises(InputError, match="does not end in .keras"):
        checkpoint.load(tmp_path / "best_model.zip")


def test_the_epoch_of_lowest_validation_loss_is_saved(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda network, path, metadata: saved.append(metadata))
    save_best = callbacks.SaveBest(None, tmp_path / "best_model.keras", {"split_sha256": "abc"})
    for epoch, loss in enumerate([0.9, 0.5, 0.6, float("nan"), 0.4]):
        save_best.on_epoch_end(epoch, {"val_loss": loss})
    assert [(metadata["epoch"], metadata["val_loss"]) for metadata in saved] == [(0, 0.9), (1, 0.5), (4, 0.4)]
    assert saved[0]["split_sha256"] == "abc"


def test_the_monitored_loss_chooses_the_epoch_and_both_are_on_record(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda network, path, metadata: saved.append(metadata))
    save_best = callbacks.SaveBest(None, tmp_path / "best_model.keras", {}, "val_balanced_loss")
    for epoch, (loss, balanced) in enumerate([(0.5, 0.9), (0.7, 0.8), (0.4, 0.85)]):
        save_best.on_epoch_end(epoch, {"val_loss": loss, "val_balanced_loss": balanced})
    assert saved[-1] == {"epoch": 1, "val_loss": 0.7, "val_balanced_loss": 0.8} and save_best.best == 0.8


def test_arrays_that_do_not_fit_into_memory_are_damage(saved, monkeypatch):
    def read(*arguments):
        raise MemoryError

    monkeypatch.setattr(checkpoint.hdf5_files, "check", read)
    with pytest.raises(InputError, match="damaged, or no checkpoint"):
        checkpoint.load(saved[0])
