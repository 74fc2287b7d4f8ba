import numpy as np
import pandas as pd
import pytest
from tiny_tree import tiny_settings

import config
import data
import model
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


@pytest.mark.parametrize("kind", ["cached", "end_to_end"])
def test_the_mean_over_views_is_that_by_hand_and_depends_on_no_order(tree, kind):
    settings = config.load_settings(None, tiny_settings(tree, f"train.features={kind}", "train.batch_size=7"))
    rows = data.read_table(settings.data).drop_duplicates("filename").sample(20, random_state=1)
    rows = audit.with_pixels(rows, settings.data)
    network = model.build(settings)
    # So that probabilities differ; a new head gives almost all 0 or 1.
    network.get_layer("head").set_weights([array / 30 for array in network.get_layer("head").get_weights()])
    images = decoding.decode([audit.image_folder(tree) / path for path in rows.path], 32).astype(np.float32)
    turned = [np.rot90(side, count, (1, 2)) for side in (images, images[:, :, ::-1]) for count in range(4)]
    by_hand = np.mean([network.predict(batch, verbose=0)[:, 0] for batch in turned], axis=0)
    predicted = predictions.predict(network, rows, settings, 8)
    np.testing.assert_allclose(predicted.probability, by_hand, atol=1e-5)
    assert predicted.filename.tolist() == rows.filename.tolist() and set(predicted.views) == {8}
    again = predictions.predict(network, rows[::-1], settings, 8)[::-1]
    np.testing.assert_allclose(again.probability, predicted.probability, atol=1e-5)
    plain = predictions.predict(network, rows, settings)
    np.testing.assert_allclose(plain.probability, network.predict(images, verbose=0)[:, 0], atol=1e-5)
    assert "views" not in plain and np.abs(plain.probability - predicted.probability).max() > 1e-4


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
