import functools
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from memory import in_use
from PIL import Image
from tqdm import tqdm

import config
import evaluate
import model
import predict
from evaluation import out_of_distribution
from evaluation.evaluation import RESEARCH_ONLY
from images import audit, decoding, external_images
from safety.errors import InputError
from training import checkpoint


@pytest.fixture(scope="module")
def loaded(run):
    """The network, and the content of breakhis.json without the keys that evaluation or training may have added."""
    network, about = checkpoint.load(run / "best_model.keras")
    with pytest.MonkeyPatch.context() as patch:
        # Tracing the network again in every test would take seconds each time.
        for name in ("pooled", "feature_function"):
            patch.setattr(model, name, functools.lru_cache(getattr(model, name)))
        yield network, {**about, "decision": None, "familiar": None}


@pytest.fixture
def quick(loaded, monkeypatch):
    """Lets main use the loaded checkpoint; returns its content of breakhis.json, to be changed."""
    network, about = loaded
    about = dict(about)
    monkeypatch.setattr(checkpoint, "load", lambda path: (network, about))
    return about


@pytest.fixture
def folder(tmp_path):
    """Two folders with an image of the same name, and images of every format."""
    place = tmp_path / "new"
    (place / "b" / "deep").mkdir(parents=True)
    (place / "a").mkdir()
    for number, name in enumerate(["b/same.png", "a/same.png", "b/deep/x.JPG", "a/y.tiff", "a/z.bmp"]):
        pixels = np.random.RandomState(number).randint(0, 256, (40 + number, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / name)
    (place / "a" / "notes.txt").write_text("no image")
    return place


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def colors(height=6, width=4):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def table_of(run, *arguments, capsys):
    status = predict.main([str(run), *map(str, arguments)])
    captured = capsys.readouterr()
    return status, pd.read_csv(io.StringIO(captured.out), keep_default_na=False), captured.err


def test_the_probability_of_a_file_is_that_of_the_evaluation(run, tree, capsys):
    expected = pd.read_csv(run / "evaluation" / "predictions.csv").set_index("filename")
    status, table, _ = table_of(run, audit.image_folder(tree), capsys=capsys)
    table["filename"] = table.file.str.rsplit("/", n=1).str[-1]
    table = table.set_index("filename").loc[expected.index]
    assert status == 0 and len(table) == 50 and table.probability.nunique() > 40
    np.testing.assert_allclose(table.probability.astype(float), expected.probability, atol=1e-5)


def test_views_are_those_of_the_evaluation_and_give_its_probabilities(copy, tree, capsys, without_figures):
    evaluate.main(["runs/tiny", "--views", "8"])
    capsys.readouterr()
    expected = pd.read_csv(copy / "evaluation" / "predictions.csv").set_index("filename")
    status, table, _ = table_of(copy, audit.image_folder(tree), capsys=capsys)
    table.index = table.file.str.rsplit("/", n=1).str[-1]
    assert status == 0 and list(table.columns) == [*predict.COLUMNS, "views"] and set(table.views) == {8}
    np.testing.assert_allclose(table.probability[expected.index].astype(float), expected.probability, atol=1e-5)
    assert (table.prediction[expected.index] == expected.prediction).all()
    with pytest.raises(
        InputError, match=r"--views: .* were chosen with 8, got 1; first run: python evaluate.py .*--views 1"
    ):
        predict.main([str(copy), str(audit.image_folder(tree)), "--views", "1"])
    with pytest.raises(InputError, match="--views.*invalid"):
        predict.main([str(copy), str(audit.image_folder(tree)), "--views", "3"])


def test_the_mean_over_views_is_that_by_hand_and_depends_on_no_order(loaded, folder):
    network, about = loaded
    paths = external_images.find([str(folder)])
    images = np.stack([external_images.read(path, 32)[0] for path in paths])
    turned = [np.rot90(side, count, (1, 2)) for side in (images, images[:, :, ::-1]) for count in range(4)]
    by_hand = np.mean([network.predict(batch, verbose=0)[:, 0] for batch in turned], axis=0)
    about = predict.with_views(about, 8, "run")
    table, again = (predict.predict(network, about, order) for order in (paths, paths[::-1]))
    np.testing.assert_allclose(table.probability, by_hand, atol=1e-5)
    np.testing.assert_allclose(again.probability[::-1], table.probability, atol=1e-6)
    assert predict.with_views({**about, "decision": {"threshold": 0.5}}, None, "run")["views"] == 1
    eight = config.load_settings(None, ["data.test_views=8"])
    assert predict.with_views({"settings": eight}, None, "run")["views"] == 8


def test_the_whole_network_gives_the_same(loaded, folder):
    network, about = loaded
    paths = external_images.find([str(folder)])
    images = np.stack([external_images.read(path, 32)[0] for path in paths])
    table = predict.predict(network, about, paths)
    np.testing.assert_allclose(table.probability, network.predict(images, verbose=0)[:, 0], atol=1e-5)


def test_other_files_in_a_folder_are_counted_as_skipped(quick, run, folder, capsys):
    for name in ("a/x.webp", "b/x.webp", "b/deep/y.GIF", "b/._same.png", "named.ndpi"):
        (folder / name).write_bytes(b"any")
    status, table, err = table_of(run, folder, folder / "named.ndpi", capsys=capsys)
    assert status == 1 and table.file[table.error != ""].tolist() == [str(folder / "named.ndpi")]
    assert "4 other files were skipped: 2 .webp, 1 .txt, 1 .GIF\n" in err
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[:2] != "._"]
    assert len(table) + 4 == len(files)
    assert "skipped" not in table_of(run, folder / "b" / "same.png", capsys=capsys)[2]


def test_more_images_than_a_batch_keep_their_own_rows(loaded, tmp_path):
    network, about = loaded
    paths = [saved(tmp_path / f"{number:02}.png", np.full((9, 9, 3), number * 3, np.uint8)) for number in range(40)]
    table = predict.predict(network, about, paths)
    assert table.file.tolist() == paths and table.index.tolist() == list(range(40))
    again = predict.predict(network, about, paths[::-1])
    np.testing.assert_allclose(again.probability[::-1], table.probability, atol=1e-6)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.long)])
def test_memory_stays_flat_over_many_files_and_a_bar_counts_them(
    loaded, tmp_path, monkeypatch, capsys, record_property, count
):
    network, about = loaded
    saved(tmp_path / "0.png", colors(40, 50))
    for number in range(1, count):
        os.link(tmp_path / "0.png", tmp_path / f"{number}.png")
    used, judge = [], predict.judge
    monkeypatch.setattr(predict, "judge", lambda *arguments: used.append(in_use()) or judge(*arguments))
    monkeypatch.setattr(predict, "tqdm", lambda *arguments, **options: tqdm(*arguments, **{**options, "delay": 0}))
    table = predict.predict(network, about, external_images.find([str(tmp_path)]))
    assert len(table) == count and f"{count}/{count}" in capsys.readouterr().err
    record_property(
        "outcomes",
        f"predict.py: {count} files, MiB in use at a quarter {used[len(used) // 4]:.1f}, at the end {used[-1]:.1f}",
    )
    # A thousand images alone, kept by mistake, would take 12 MiB.
    assert max(used[len(used) // 4 :]) - used[len(used) // 4] < 4 * count / 1000


def test_wrong_arguments_are_refused_before_the_checkpoint_is_read(run, folder, tmp_path):
    for arguments, words in [
        (["--margin", "2"], "allowed is 0 to 1, got 2"), (["--margin", "nan"], "0 to 1"), (["--margin", "x"], "margin"),
        (["--out", str(tmp_path)], "needed is a file, got the folder"),
        (["--heatmaps", __file__], "needed is a folder, got the file"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=words):
            predict.main([str(run), str(folder), *arguments])
    with pytest.raises(InputError, match="no checkpoint"):
        predict.main([str(tmp_path / "other"), str(folder)])


def test_broken_images_become_rows_and_the_rest_goes_on(quick, run, folder, capsys, monkeypatch):
    (folder / "a" / "empty.png").touch()
    (folder / "a" / "text.png").write_text("no image")
    sound = (folder / "b" / "same.png").read_bytes()
    (folder / "a" / "half.png").write_bytes(sound[: len(sound) // 2])
    jpeg = (folder / "b" / "deep" / "x.JPG").read_bytes()
    (folder / "a" / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    saved(folder / "a" / "float.tif", np.ones((4, 4), np.float32))
    saved(folder / "a" / "wide.png", np.zeros((60, 60, 3), np.uint8))
    monkeypatch.setattr(external_images, "MAX_PIXELS", 3000)
    status, table, err = table_of(run, folder, "--heatmaps", folder.parent / "maps", capsys=capsys)
    errors = {file.rsplit("/", 1)[1]: error for file, error in zip(table.file, table.error) if error}
    words = {
        "empty.png": "is empty", "text.png": "is no PNG", "half.png": "truncated", "half.jpg": "truncated",
        "float.tif": "mode F", "wide.png": "60 x 60 pixels",
    }  # fmt: skip
    assert status == 1 and "6 of 11 images could not be read" in err
    assert errors.keys() == words.keys() and all(words[name] in errors[name] for name in words), errors
    bad = table.error != ""
    assert (table[bad][["probability", "calibrated", "prediction", "review", "why"]] == "").all(axis=None)
    assert (table[~bad].probability != "").all()
    assert len(list((folder.parent / "maps").iterdir())) == 5


def rows_with(**columns):
    return pd.DataFrame({"file": "a", "distance": 0.0, "error": "", **columns})


def test_threshold_and_temperature_are_the_checkpoints():
    about = {"decision": {"threshold": 0.3, "rule": "youden", "temperature": 2.0}}
    table = predict.judge(rows_with(probability=[0.0, 0.29, 0.3, 0.8, 1.0]), about, 0)
    assert table.prediction.tolist() == ["benign", "benign"] + ["malignant"] * 3
    # The logit of 0.8 is log 4; half of it is log 2, the logit of 2/3.
    assert table.calibrated[3] == pytest.approx(2 / 3) and table.calibrated[[0, 4]].tolist() == pytest.approx(
        [0, 1], abs=1e-3
    )


def test_without_a_decision_the_threshold_is_a_half():
    table = predict.judge(rows_with(probability=[0.49, 0.5]), {}, 0)
    assert table.prediction.tolist() == ["benign", "malignant"] and table.calibrated.isna().all()


def test_what_is_near_the_threshold_or_unlike_training_is_reviewed():
    about = {"decision": {"threshold": 0.3, "temperature": 1.0}, "familiar": {"limit": 2.0}}
    # A third of the way from 0.3 is 0.2 below it and 0.533 above it.
    rows = rows_with(probability=[0.19, 0.21, 0.9, 0.52, 0.54], distance=[0, 0, 2.1, 2.1, 2.0])
    table = predict.judge(rows, about, 1 / 3)
    near, unlike = "near the threshold", "unlike the training images"
    assert table.why.tolist() == ["", near, unlike, f"{near}; {unlike}", ""]
    assert table.review.tolist() == ["no", "yes", "yes", "yes", "no"]
    assert not predict.judge(rows, {**about, "familiar": None}, 0).why.any()


def test_a_checkpoint_with_a_decision_and_a_description_is_used(run, loaded, tree, tmp_path, capsys):
    """Both are written into the file as evaluation writes them; a black image is unlike the noise of the tree."""
    network, _ = loaded
    paths = sorted(audit.image_folder(tree).rglob("*.png"))
    rows = model.pooled(network).predict(decoding.decode(paths, 32).astype(np.float32), verbose=0)
    decision = {"threshold": 1.0, "rule": "sensitivity=0.95", "temperature": 3.0}
    path = tmp_path / "best_model.keras"
    shutil.copy(run / "best_model.keras", path)
    checkpoint.amend(path, decision=decision, familiar=out_of_distribution.describe(rows))
    black = saved(tmp_path / "black.png", np.zeros((32, 32, 3), np.uint8))
    status, table, err = table_of(path, *paths[:20], black, "--margin", 0, capsys=capsys)
    table = table.astype({"probability": float, "calibrated": float})
    assert status == 0 and set(table.prediction) == {"benign"}
    assert table.why.tolist()[-1] == "unlike the training images" and (table.why == "").sum() >= 18
    assert (np.sign(table.calibrated - 0.5) == np.sign(table.probability - 0.5)).all()
    assert ((table.calibrated - 0.5).abs() < (table.probability - 0.5).abs()).all()
    assert err.splitlines()[-1] == RESEARCH_ONLY
    assert predict.NOT_CALIBRATED not in err and predict.NOT_DESCRIBED not in err


def test_keys_that_the_checkpoint_lacks_are_reported(quick, run, folder, capsys):
    _, _, err = table_of(run, folder, capsys=capsys)
    lines = [line for line in err.splitlines() if "were skipped" not in line]
    assert lines[-3:] == [predict.NOT_CALIBRATED, predict.NOT_DESCRIBED, RESEARCH_ONLY]
    quick["decision"] = {"threshold": 0.5, "rule": "0.5", "temperature": 1.0}
    assert predict.NOT_CALIBRATED not in table_of(run, folder, capsys=capsys)[2]


def test_each_image_gets_an_overlay_of_its_own(quick, run, folder, tmp_path, capsys):
    _, table, _ = table_of(run, folder, "--heatmaps", tmp_path / "maps", capsys=capsys)
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["00001-same.png", "00002-y.png", "00003-z.png", "00004-x.png", "00005-same.png"]
    assert all(Image.open(tmp_path / "maps" / name).size == (32, 32) for name in names)


def test_an_overlay_is_that_of_the_predicted_class(loaded, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        predict.gradcam, "heatmaps", lambda network, images, malignant: asked.extend(malignant) or images[..., 0] * 0
    )
    network, about = loaded
    paths = external_images.find([str(folder)])
    middle = float(predict.predict(network, about, paths).probability.median())
    about = {**about, "decision": {"threshold": middle, "temperature": 1.0}}
    table = predict.predict(network, about, paths, heatmaps=tmp_path)
    assert asked == (table.prediction == "malignant").tolist() and set(asked) == {True, False}
    # No heat at all leaves the image.
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "00003-z.png")), external_images.read(paths[2], 32)[0]
    )


def test_out_gets_the_table_and_standard_output_nothing(quick, run, folder, tmp_path, capsys):
    _, table, _ = table_of(run, folder, capsys=capsys)
    predict.main([str(run), str(folder), "--out", str(tmp_path / "deep" / "out.csv")])
    assert capsys.readouterr().out == ""
    assert pd.read_csv(tmp_path / "deep" / "out.csv", keep_default_na=False).equals(table)
    assert list(table.columns) == predict.COLUMNS and os.listdir(tmp_path / "deep") == ["out.csv"]


def test_names_that_would_harm_are_harmless_in_the_table(quick, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = {
        "=1+1.png": "'=1+1.png", "+a.png": "'+a.png", "-a.png": "'-a.png", "@a.png": "'@a.png", "a\nb.png": r"a\nb.png",
        "\t=a.png": r"\t=a.png", "a\x1b[31m.png": r"a\x1b[31m.png", "a\u202eb.png": r"a\u202eb.png",
        os.fsdecode(b"a\xff.png"): r"a\udcff.png", 'a,"b".png': 'a,"b".png', "é=.png": "é=.png",
    }  # fmt: skip
    for name in shown:
        saved(name, colors())
    status, table, _ = table_of(run, ".", "--heatmaps", "maps", capsys=capsys)
    assert status == 0 and table.file.tolist() == [shown[name] for name in sorted(shown)]


def test_an_error_is_made_harmless_too(capsys):
    rows = rows_with(probability=[0.5], error="=cmd\r\n")
    predict.write(predict.judge(rows, {}, 0), None)
    assert capsys.readouterr().out.splitlines()[1:] == [r"a,,,,,,'=cmd\r\n"]


def test_the_shell_gets_a_line_and_a_status(run, folder, tmp_path):
    """The command itself: a wrong path is one line and 2."""
    command = [sys.executable, predict.__file__, run, tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
