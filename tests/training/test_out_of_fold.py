"""A training of a cross-validation, on made-up features: what is predicted, when, and that no held-out label matters."""

import numpy as np
import pytest
from killed_runs import StopError
from tiny_tree import fold_rows, table_of, tiny_settings

import config
import data
import model
from devices import keras_stack
from features.extraction import Features
from images import audit, decoding, stain_normalization
from safety.errors import InputError
from training import out_of_fold

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture(scope="module")
def prepared(tree):
    """Of a head on features that say little about the label."""
    settings = config.load_settings(None, tiny_settings(tree, "train.epochs=3", "train.maximal_lr=0.01"))
    table = table_of(fold_rows(images=1)).drop_duplicates("filename").reset_index(drop=True)
    array = np.random.RandomState(0).normal(table.label_int.to_numpy()[:, None] / 4, 1, (len(table), 512))
    features = Features(array.astype(np.float32), np.arange(len(table))[:, None], table.label_int.to_numpy())
    network = model.build(settings)
    return out_of_fold.Prepared(settings, table, network, model.head(network).get_weights(), features, features)


@pytest.fixture
def parts(prepared):
    held_out = np.arange(0, len(prepared.table), 3)
    return np.setdiff1d(np.arange(len(prepared.table)), held_out), held_out


def test_the_prediction_after_the_last_epoch_is_the_last_of_all_epochs(prepared, parts):
    every = out_of_fold.fit(prepared, *parts, [3])[1]
    network, last = out_of_fold.fit(prepared, *parts, [3], every_epoch=False)
    assert every.shape == (3, len(parts[1])) and len(np.unique(every, axis=0)) == 3
    np.testing.assert_array_equal(last, every[-1:])
    head = model.head(network)(prepared.turned.array[parts[1]]).numpy()[:, 0]
    np.testing.assert_allclose(last[0], head, atol=1e-5)
    # A longer training begins with the same epochs.
    np.testing.assert_array_equal(out_of_fold.fit(prepared, *parts, [2])[1], every[:2])


def test_held_out_images_pass_through_the_network_once_and_their_labels_not_at_all(prepared, parts, monkeypatch):
    expected = out_of_fold.fit(prepared, *parts, [2])[1]
    labels, seen, fit = prepared.turned.labels.copy(), [], keras_stack.fit
    labels[parts[1]] = 1 - labels[parts[1]]
    table = prepared.table.assign(label_int=labels, label=np.where(labels, "malignant", "benign"))
    spoiled = prepared._replace(table=table, turned=prepared.turned._replace(labels=labels))

    def recorded(trained, batches, *rest):
        seen.append(batches.valid)
        return fit(trained, batches, *rest)

    monkeypatch.setattr(keras_stack, "fit", recorded)
    np.testing.assert_array_equal(out_of_fold.fit(spoiled, *parts, [2])[1], expected)
    assert seen == [None]


def test_a_loss_that_is_no_number_is_refused_in_both_ways(prepared, parts):
    array = prepared.turned.array.copy()
    array[parts[0][0]] = np.nan
    broken = prepared._replace(trained_on=prepared.turned._replace(array=array))
    for every_epoch in (True, False):
        with pytest.raises(InputError, match="the loss is nan in epoch 1; lower train.maximal_lr and train.initial_lr"):
            out_of_fold.fit(broken, *parts, [2], every_epoch)


def test_the_stain_is_fitted_on_all_training_images_whatever_upsampling_draws(prepared, parts, monkeypatch):
    """As in a run, and as the checkpoint of the final model states it; no held-out image is among them."""
    data = prepared.settings.data.model_copy(update={"stain": "reinhard", "upsample": "both"})
    spoiled = prepared._replace(settings=prepared.settings.model_copy(update={"data": data}))
    fitted = []

    def stop(settings, train):
        fitted.extend(train.filename)
        raise StopError

    monkeypatch.setattr(out_of_fold.stain_normalization, "fitted", stop)
    with pytest.raises(StopError):
        out_of_fold.fit(spoiled, *parts, [1])
    assert sorted(fitted) == sorted(prepared.table.filename.iloc[parts[0]])


@pytest.mark.parametrize("override, epochs", [
    ("train.features=cached", [2]),
    ("data.stain=reinhard", [1]),
    ("model.trainable_from=block5", [1, 1]),
    ("model.trainable_from=block5 train.features=end_to_end", [1, 1]),
])  # fmt: skip
def test_an_image_has_the_mean_over_its_turns_in_every_way_of_training(tree, override, epochs):
    """By hand, each image turned by NumPy, through the network that `fit` returns; the turns of another differ."""
    given = ["data.test_views=8", "train.maximal_lr=0.01", "train.batch_size=20", "data.magnification=40"]
    settings = config.load_settings(None, tiny_settings(tree, *given, *override.split()))
    table = data.read_table(settings.data).drop_duplicates("filename")
    table = audit.with_pixels(table[table.mag == 40], settings.data)
    train, held_out = np.arange(0, 30), np.array([37, 31, 34])
    prepared = out_of_fold.prepare(model.build(settings), table, settings)
    network, found = out_of_fold.fit(prepared, train, held_out, epochs)
    images = decoding.decode([audit.image_folder(tree) / table.path.iloc[row] for row in held_out], 32)
    of_fit = stain_normalization.fitted(settings, table.iloc[train])
    images = np.stack([stain_normalization.normalise(image, of_fit.data) for image in images]).astype(np.float32)
    turned = [np.rot90(side, count, (1, 2)) for side in (images, images[:, :, ::-1]) for count in range(4)]
    by_view = np.array([network.predict(batch, verbose=0)[:, 0] for batch in turned])
    assert found.shape == (sum(epochs), 3)
    np.testing.assert_allclose(found[-1], by_view.mean(axis=0), atol=1e-5)
    # The first view alone, the mean of the log-odds, and the mean of another image are all something else.
    log_odds = np.log(by_view / (1 - by_view)).mean(axis=0)
    for wrong in (by_view[0], 1 / (1 + np.exp(-log_odds)), by_view.mean(axis=0)[[1, 2, 0]]):
        assert np.abs(found[-1] - wrong).max() > 1e-3
