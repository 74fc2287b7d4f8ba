"""A cross-validation of the real features against a second one, in NumPy and scikit-learn, of the same head and folds.

Of the project the second one takes the assignments alone, outer and inner folds, and of TensorFlow the first weights of
the head and the order of the batches. It reads the files by other means, and draws, standardises, trains, predicts,
chooses the epoch and scores by itself, in float64.
"""

import json

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score

import config
import crossval
import data
import model
from evaluation import figures
from images import folds

EXAMPLES = config.DEFAULTS.parent / "examples"
EPOCHS, BATCH, STEP_EPOCHS, MOMENTUM, RATES = 6, 64, 2, 0.9, (2e-4, 2e-3)
ARGUMENTS = [
    "real", "--config", str(config.DEFAULTS.with_name("real.yaml")), f"data.folds={EXAMPLES}/Folds.csv",
    f"model.weights={EXAMPLES}/efficientnet-lite0.npz", "data.protocol=patient", "--draw", "--folds", "2",
    f"train.epochs={EPOCHS}", f"train.step_size_epochs={STEP_EPOCHS}",
]  # fmt: skip


@pytest.fixture(scope="module")
def images():
    """A row an image in the order of the names, its label, and its features, (n, 1280)."""
    rows = pd.read_csv(EXAMPLES / "Folds.csv")
    names = rows.filename.str.rsplit("/", n=1).str[-1].drop_duplicates().sort_values(ignore_index=True)
    with np.load(EXAMPLES / "efficientnet-lite0.npz") as file:
        features = pd.DataFrame(file["features"], file["filename"]).loc[names].to_numpy(float)
    return names, names.str.startswith("SOB_M").to_numpy(int), features


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of the project's cross-validation."""
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(figures, "draw", lambda evaluation, network: {})
        crossval.main(ARGUMENTS)
    return place / "runs/real"


def head_after_each_epoch(features, labels, train):
    """Standardises, upsamples and trains; a function from images to the probabilities after each epoch."""
    variance = features[train].var(axis=0)
    deviation = np.sqrt(np.maximum(variance, 1e-3 * variance.mean() + 1e-7))
    inputs = (features - features[train].mean(axis=0)) / deviation
    smaller = min((train[labels[train] == label] for label in (0, 1)), key=len)
    missing = len(train) - 2 * len(smaller)
    rows = np.concatenate([train, smaller[np.random.RandomState(0).choice(len(smaller), missing, replace=True)]])

    settings = config.load_settings(None, [text for text in ARGUMENTS if "=" in text] + ["model.base=file"])
    kernel, bias = (array.astype(float) for array in model.build(settings, width=1280).get_layer("head").get_weights())
    weights, velocity = np.append(kernel[:, 0], bias), np.zeros(len(kernel) + 1)
    inputs = np.column_stack([inputs, np.ones(len(inputs))])
    half_cycle, step, after = STEP_EPOCHS * (len(rows) // BATCH), 0, []
    for epoch in range(EPOCHS):
        order = rows[tf.random.experimental.stateless_shuffle(tf.range(len(rows)), seed=[0, epoch * 2**32]).numpy()]
        for batch in np.split(order, range(BATCH, len(order), BATCH)):
            # Smith's triangular2.
            cycle = step // (2 * half_cycle)
            height = 1 - abs(step / half_cycle - 2 * cycle - 1)
            rate = RATES[0] + (RATES[1] - RATES[0]) * height / 2**cycle
            error = 1 / (1 + np.exp(-inputs[batch] @ weights)) - labels[batch]
            velocity = MOMENTUM * velocity - rate * error @ inputs[batch] / len(batch)
            weights, step = weights + velocity, step + 1
        after.append(weights)
    return lambda held: 1 / (1 + np.exp(-inputs[held] @ np.transpose(after))).T


def balanced_log_loss(labels, probability):
    losses = -np.log(np.where(labels, probability, 1 - probability))
    return np.mean([losses[labels == label].mean() for label in (0, 1)])


@pytest.fixture(scope="module")
def independent(run, images):
    """Of the second cross-validation: the fold and the probability of each image, the losses of each fold."""
    names, labels, features = images
    fold_of = names.map(pd.read_csv(run / "folds.csv").set_index("filename").fold).to_numpy()
    probability, losses = np.full(len(names), np.nan), []
    for fold in (1, 2):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        drawn = folds.draw(data.describe(names[train]), "patient", 2).set_index("filename").fold
        inner, predicted = names[train].map(drawn).to_numpy(), np.full((EPOCHS, len(train)), np.nan)
        for held in (inner == 1, inner == 2):
            predicted[:, held] = head_after_each_epoch(features, labels, train[~held])(train[held])
        losses.append([balanced_log_loss(labels[train], row) for row in predicted])
        probability[test] = head_after_each_epoch(features, labels, train)(test)[np.argmin(losses[-1])]
    return fold_of, probability, losses


def test_losses_epochs_and_probabilities_agree(run, independent, images):
    _, probability, losses = independent
    results = [json.loads((run / f"folds/1-{fold}.json").read_text()) for fold in (1, 2)]
    np.testing.assert_allclose([result["losses"] for result in results], losses, atol=2e-6)
    assert [result["epochs"] for result in results] == [[1 + np.argmin(row)] for row in losses]
    assert len({result["epochs"][0] for result in results}) == 2
    oof = pd.read_csv(run / "oof.csv").set_index("filename").loc[images[0]]
    np.testing.assert_allclose(oof.probability, probability, rtol=0, atol=2e-6)
    # Nothing is so close that the rounding of float32 could order or classify it otherwise.
    benign, malignant = (probability[images[1] == label] for label in (0, 1))
    assert min(np.abs(benign[:, None] - malignant).min(), np.abs(probability - 0.5).min()) > 1e-5


def test_scores_are_those_of_scikit_learn(run, independent, images):
    (fold_of, probability, _), labels = independent, images[1]
    found = json.loads((run / "evaluation/metrics.json").read_text())
    of_folds = found["cross_validation"]["by_fold"]
    for scores, rows in ((found, fold_of > 0), (of_folds[0], fold_of == 1), (of_folds[1], fold_of == 2)):
        predicted = labels[rows], probability[rows] >= 0.5
        expected = {
            "balanced_accuracy": balanced_accuracy_score(*predicted),
            "accuracy": accuracy_score(*predicted),
            "sensitivity": recall_score(*predicted),
            "specificity": recall_score(*predicted, pos_label=0),
            "roc_auc": roc_auc_score(labels[rows], probability[rows]),
        }
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)
