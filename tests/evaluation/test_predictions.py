import numpy as np
import pandas as pd
import pytest

import data
from evaluation import predictions
from images import audit, decoding, image_datasets
from safety.errors import InputError
from training import checkpoint


def test_a_probability_is_that_of_its_own_file(run, tree, predicted):
    """Each image alone, by its name, through the loaded checkpoint."""
    network, about = checkpoint.load(run / "best_model.keras")
    folder = audit.image_folder(tree)
    for row in predicted.sample(10, random_state=1).itertuples():
        path = next(folder.rglob(row.filename))
        image = decoding.read(str(path), about["settings"].data.image_size)
        assert network.predict(image[None], verbose=0)[0, 0] == pytest.approx(row.probability, abs=1e-5)


def test_predictions_in_another_order_are_never_returned(run, monkeypatch):
    rows = data.describe(pd.read_csv(run / "split.csv").filename).head(20)
    network, about = checkpoint.load(run / "best_model.keras")
    eval_dataset = image_datasets.eval_dataset
    monkeypatch.setattr(
        image_datasets, "eval_dataset", lambda *args: eval_dataset(*args).map(lambda n, i, y: (n[::-1], i, y))
    )
    with pytest.raises(AssertionError, match="other images, or in another order"):
        predictions.predict_images(network, rows, about["settings"])


def test_features_and_images_give_the_same_predictions(run):
    network, about = checkpoint.load(run / "best_model.keras")
    rows = data.describe(pd.read_csv(run / "split.csv").filename).sample(30, random_state=1)
    rows = audit.with_pixels(rows, about["settings"].data)
    of_images = predictions.predict_images(network, rows, about["settings"])
    np.testing.assert_allclose(predictions.predict(network, rows, about["settings"]).probability, of_images, atol=1e-5)


def split_file(run, path, old="", new=""):
    text = (run / "split.csv").read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize("old, new, words", [
    ("filename,label", "name,label", "columns must be"),
    ("benign,14-101AB", "malignant,14-101AB", "must agree with the file name"),
    (",test\n", ",exam\n", "exam"),
    (",test\n", ",train\n", "the same number of each"),
    ("filename", "\x00", "got a NUL byte"),
])  # fmt: skip
def test_a_wrong_split_file_is_refused(run, tmp_path, old, new, words):
    with pytest.raises(InputError, match=words):
        predictions.read_split(split_file(run, tmp_path / "other.csv", old, new))


def test_a_split_that_breaks_its_protocol_is_refused_when_loaded(run, tmp_path):
    path = split_file(run, tmp_path / "split.csv")
    lines = path.read_text().splitlines()
    leaked = next(line for line in lines if line.endswith(",test")).removesuffix("test") + "train"
    path.write_text("\n".join([*lines, leaked]) + "\n")
    with pytest.raises(InputError, match="must be in one set, got test and train"):
        predictions.read_split(path, "image")
