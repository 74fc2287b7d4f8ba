"""The whole way of a run for every base: cache, end to end, fine-tuning, resuming, evaluation, heat maps, prediction."""

import numpy as np
import pandas as pd
import pytest
from lively import enliven
from tiny_tree import tiny_settings

import evaluate
import predict
import train
from backbones import networks
from backbones.table import BASES
from images import audit

pytestmark = [pytest.mark.usefixtures("float32"), pytest.mark.long]


@pytest.fixture(params=BASES)
def arguments(request, tree, tmp_path):
    """A short run that fine-tunes the last block of a base whose weights come from a file."""
    about, size = BASES[request.param], max(32, BASES[request.param].smallest)
    images = np.random.RandomState(0).randint(0, 256, (16, size, size, 3)).astype(np.float32)
    base = networks.pretrained(request.param, "random")
    enliven(base, networks.preprocessing(request.param)(images))
    base.save_weights(tmp_path / "mine.weights.h5")
    return tiny_settings(
        tree, f"model.base={request.param}", f"model.weights={tmp_path}/mine.weights.h5", f"data.image_size={size}",
        f"model.trainable_from={about.blocks[-1]}", "train.epochs=1", "train.fine_tune_epochs=1",
    )  # fmt: skip


def test_every_base_goes_the_whole_way(arguments, tree, tmp_path):
    train.main(arguments)
    train.main(["--resume", "runs/tiny", "train.fine_tune_epochs=2"])
    train.main([*arguments, "train.fine_tune_epochs=2", "train.features=end_to_end", "train.run=whole"])
    histories = [pd.read_csv(f"runs/{run}/history.csv") for run in ("tiny", "whole")]
    assert histories[0].epoch.tolist() == [0, 1, 2]
    np.testing.assert_allclose(*(history[["loss", "val_loss"]] for history in histories), rtol=1e-3)
    evaluate.main(["runs/tiny"])
    assert list((tmp_path / "runs/tiny/evaluation").glob("heatmaps-*.png"))
    expected = pd.read_csv("runs/tiny/evaluation/predictions.csv").set_index("filename").probability
    assert predict.main(["runs/tiny", str(audit.image_folder(tree)), "--out", "new.csv"]) == 0
    table = pd.read_csv("new.csv")
    probability = table.set_index(table.file.str.rsplit("/", n=1).str[-1]).probability
    np.testing.assert_allclose(probability[expected.index], expected, atol=1e-5)
    assert expected.std() > 1e-3
