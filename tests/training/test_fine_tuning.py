import re
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from killed_runs import StopError, what_is_left
from lively import norms
from tiny_tree import tiny_settings

import config
import data
import evaluate
import model
import train
from backbones.table import BASES
from evaluation import predictions
from features import extraction
from images import audit, decoding, splits
from safety.errors import InputError
from training import callbacks, checkpoint, fine_tuning, phases

pytestmark = pytest.mark.usefixtures("float32")

BLOCK = "conv5_block3"
TUNED = [
    "model.base=resnet50",
    "train.epochs=1",
    f"model.trainable_from={BLOCK}",
    "train.fine_tune_epochs=2",
    "train.fine_tune_lr=1e-4",
    "train.momentum=0.5",
]
CUT = "conv5_block2_out"
# Another network, which is built in a moment.
OTHER = ["model.base=vgg16", "model.trainable_from=block5"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    place = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


@pytest.fixture(autouse=True)
def working_folder(work):
    """One working folder for all, so that the tests share a cache."""


@pytest.fixture(scope="module")
def undisturbed(tree, work):
    """A fine-tuned run that nothing disturbed."""
    train.main(tiny_settings(tree, *TUNED, "train.run=undisturbed"))
    return work / "runs/undisturbed"


@pytest.fixture(scope="module")
def network(tree):
    return model.build(config.load_settings(None, tiny_settings(tree, "model.base=resnet50")))


@pytest.fixture(scope="module")
def tuned(undisturbed):
    """The network of the run's checkpoint, and its metadata."""
    return checkpoint.load(undisturbed / "best_model.keras")


def check_what_moved(trained, before):
    """After the cut every convolution has changed; BatchNorm and all layers before the cut are bit-identical."""
    old, new = model.base_of(before).layers, model.base_of(trained).layers
    cut = [layer.name for layer in old].index(CUT)
    for number, (layer, same) in enumerate(zip(old, new)):
        same_bits = all((one == other).all() for one, other in zip(layer.get_weights(), same.get_weights()))
        assert same_bits == (number <= cut or "_bn" in layer.name or not layer.weights), layer.name


def prepare(tree, *overrides):
    """Settings, network, training rows and phases of a run before its first step."""
    settings = config.load_settings(None, tiny_settings(tree, *TUNED, *overrides))
    table = splits.split(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
    network = model.build(settings)
    rows = splits.training_rows(table, settings.data)
    return settings, network, rows, phases.prepare(network, phases.Rows(rows, table[table.set == "valid"]), settings)


def fine_tune_once(tree, best, *overrides):
    """The network, what it was trained on, and what it predicts in validation, after the second phase alone."""
    settings, network, _, (_, second) = prepare(tree, *overrides)
    second.begin(best)
    model.compile_model(second.trained, settings.train, second.rate)
    phases.fit(second, [], epoch=1, verbose=0)
    shape = second.trained.input_shape[1:]
    return network, shape, second.trained.predict(second.batches.valid, verbose=0)


def test_the_blocks_are_those_of_resnet50(network):
    names = (re.match(r"conv\d_block\d+", layer.name) for layer in model.base_of(network).layers)
    assert list(dict.fromkeys(name[0] for name in names if name)) == list(BASES["resnet50"].blocks)


@pytest.mark.parametrize("block, shape", [
    ("conv2_block1", (8, 8, 64)), ("conv4_block2", (2, 2, 1024)), ("conv5_block1", (2, 2, 1024)), (BLOCK, (1, 1, 2048)),
])  # fmt: skip
def test_what_is_below_and_above_the_cut_is_the_whole(network, pixels, block, shape):
    below, above = fine_tuning.below(network, block), fine_tuning.above(network, block)
    assert below.output_shape[1:] == shape
    np.testing.assert_allclose(above(below(pixels)), network(pixels), atol=1e-5)
    shared = {id(weight) for part in (below, above) for weight in part.weights}
    assert shared == {id(weight) for weight in network.weights}


def test_batchnorm_stands_still_in_both_parts_in_training(network, pixels):
    below, above = fine_tuning.below(network, BLOCK), fine_tuning.above(network, BLOCK)
    expected = above(below(pixels))
    # On Keras 3 `training=True` overrides the `training=False` of the parts, but not a BatchNorm that is not trainable.
    fine_tuning.unfreeze(network, "conv2_block1")
    trained = above(below(pixels, training=True), training=True)
    network.get_layer("resnet50").trainable = False
    np.testing.assert_array_equal(trained, expected)


def test_only_the_blocks_convolutions_and_the_head_are_trained(tree):
    network = model.build(config.load_settings(None, tiny_settings(tree, "model.base=resnet50")))
    fine_tuning.unfreeze(network, "conv5_block2")
    convolutions = [f"conv5_block{block}_{number}_conv" for block in (2, 3) for number in (1, 2, 3)]
    expected = [f"{name}/{kind}" for name in [*convolutions, "head"] for kind in ("kernel", "bias")]
    # Keras 2 has the layer in the name of a weight, Keras 3 in its path.
    names = [getattr(weight, "path", weight.name).removesuffix(":0") for weight in network.trainable_weights]
    assert ["/".join(name.split("/")[-2:]) for name in names] == expected
    above = fine_tuning.above(network, "conv5_block2")
    assert [id(weight) for weight in above.trainable_weights] == [id(weight) for weight in network.trainable_weights]


def test_a_cached_cut_trains_the_same_weights_as_the_whole_network(tree, undisturbed, network):
    cached, shape, predicted = fine_tune_once(tree, undisturbed / "best_model.keras")
    whole, pixels, expected = fine_tune_once(tree, undisturbed / "best_model.keras", "train.features=end_to_end")
    assert (shape, pixels) == ((None, None, 2048), (32, 32, 3))
    for array, same in zip(cached.get_weights(), whole.get_weights()):
        np.testing.assert_allclose(array, same, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(predicted, expected, atol=1e-4)
    assert np.ptp(predicted) > 1e-2
    # Far more than the two differ by, the training has moved them.
    kernels = [part.get_layer("resnet50").get_layer(f"{BLOCK}_3_conv").kernel for part in (cached, whole, network)]
    near, far = (np.linalg.norm(kernels[0] - kernel) for kernel in kernels[1:])
    assert near < 1e-3 * far
    check_what_moved(cached, network)
    check_what_moved(whole, network)


@pytest.mark.long
def test_a_run_on_features_ends_as_one_through_the_whole_network(tree, undisturbed):
    train.main(tiny_settings(tree, *TUNED, "train.features=end_to_end", "train.run=whole"))
    paths = [undisturbed, undisturbed.with_name("whole")]
    (cached, about), (whole, same_about) = (checkpoint.load(path / "best_model.keras") for path in paths)
    assert about["epoch"] == same_about["epoch"] >= 1
    for array, same in zip(cached.get_weights(), whole.get_weights()):
        np.testing.assert_allclose(array, same, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(*(pd.read_csv(path / "history.csv") for path in paths), rtol=1e-4, atol=1e-4)


def test_what_is_frozen_keeps_its_bits_and_what_is_not_moves(tuned, network):
    assert tuned[1]["epoch"] >= 1
    check_what_moved(tuned[0], network)


def test_the_history_goes_on_in_the_second_phase(undisturbed):
    history = pd.read_csv(undisturbed / "history.csv")
    assert history.epoch.tolist() == [0, 1, 2]
    np.testing.assert_allclose(history.learning_rate[1:], 1e-4)
    assert history.learning_rate[0] > 1e-3


def test_the_second_phase_begins_from_the_best_checkpoint_and_takes_warped_images_whole(
    tree, undisturbed, tuned, pixels
):
    _, network, _, (first, second) = prepare(tree, "augment.flip=true")
    assert (first.epochs, second.epochs) == (range(1), range(1, 3))
    assert {id(weight) for weight in network.trainable_weights} <= {id(weight) for weight in second.trained.weights}
    batches = (next(iter(batches))[0] for batches in (second.batches.train_from(2), second.batches.valid))
    assert [batch.shape for batch in batches] == [(16, 32, 32, 3)] * 2
    assert len(network.trainable_weights) == 2
    second.begin(undisturbed / "best_model.keras")
    assert all((array == same).all() for array, same in zip(network.get_weights(), tuned[0].get_weights()))
    trainable = [{id(weight) for weight in part.trainable_weights} for part in (network, second.trained)]
    assert trainable[0] == trainable[1] and len(trainable[0]) == 3 * 2 + 2
    # What is below the block is folded, with the weights of the checkpoint.
    assert norms(second.trained) == 3
    np.testing.assert_allclose(second.trained(pixels), network(pixels), atol=1e-5)


@pytest.mark.parametrize("spoil, overrides, words", [
    (lambda path: path.unlink(), OTHER, "best_model.keras: is missing"),
    (lambda path: path.write_bytes(path.read_bytes()[:1000]), OTHER, "best_model.keras: damaged"),
    (lambda path: None, OTHER, "best_model.keras: damaged, or no checkpoint of this project"),
    (lambda path: checkpoint.amend(path, arrays_sha256="x"), [], "best_model.keras: .*its arrays are not those that were saved"),
], ids=["missing", "cut", "of another network", "with other arrays"])  # fmt: skip
def test_a_second_phase_does_not_begin_from_a_wrong_checkpoint(tree, undisturbed, tmp_path, spoil, overrides, words):
    path = tmp_path / "best_model.keras"
    shutil.copy(undisturbed / "best_model.keras", path)
    spoil(path)
    _, _, _, (_, second) = prepare(tree, *overrides)
    with pytest.raises(InputError, match=words):
        second.begin(path)


def test_the_key_of_the_cut_does_not_depend_on_what_was_trained_above_it(tuned, network):
    def key(part):
        return extraction.key(part, tuned[1]["settings"], False)

    below = key(fine_tuning.below(network, BLOCK))
    assert key(fine_tuning.below(tuned[0], BLOCK)) == below
    pooled = model.pooled(network)
    unpooled = keras.Model(pooled.input, pooled.get_layer("pooling").input, name="base")
    others = [model.pooled(tuned[0]), pooled, unpooled, fine_tuning.below(network, "conv5_block2")]
    assert len({below, *(key(part) for part in others)}) == 5


def test_too_small_a_cache_for_the_cut_is_refused_before_the_run_begins(tree, work):
    with pytest.raises(InputError, match="train.cache_gib: the features of this run need"):
        train.main(tiny_settings(tree, *TUNED, "model.trainable_from=conv4_block2", "train.cache_gib=1e-3"))
    assert not (work / "runs/tiny").exists()


def stop(arguments, callback, moment, epoch):
    """Lets training die when a callback is called in an epoch, numbered from 0."""
    call = getattr(callback, moment)

    def die(self, number, logs=None):
        if number == epoch:
            raise StopError
        call(self, number, logs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(callback, moment, die)
        train.main(arguments)


@pytest.mark.long
def test_a_run_stopped_twice_in_the_second_phase_ends_as_one_that_was_left_alone(tree, undisturbed):
    """First when the phase has replaced the checkpoint that it started from and has not saved its first epoch."""
    run = undisturbed.with_name("stopped")
    stop(tiny_settings(tree, *TUNED, "train.run=stopped"), callbacks.SaveState, "on_epoch_end", 1)
    assert checkpoint.load(run / "best_model.keras")[1]["epoch"] == 1
    stop(["--resume", "runs/stopped"], callbacks.StopOnNaN, "on_epoch_begin", 2)
    train.main(["--resume", "runs/stopped"])
    assert what_is_left(run) == what_is_left(undisturbed)


@pytest.mark.long
def test_a_run_stopped_between_its_phases_ends_as_one_that_was_left_alone(tree, undisturbed):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StopError):
        patch.setattr(fine_tuning, "unfreeze", lambda *args: (_ for _ in ()).throw(StopError))
        train.main(tiny_settings(tree, *TUNED, "train.run=between"))
    train.main(["--resume", "runs/between"])
    assert what_is_left(undisturbed.with_name("between")) == what_is_left(undisturbed)


def test_the_state_holds_what_is_trained(undisturbed, network):
    with np.load(undisturbed / "state.npz") as state:
        shapes = [state[name].shape for name in state.files]
    # Kernel and momentum of the block's last convolution; nothing of the block before.
    assert shapes.count((1, 1, 512, 2048)) == 2
    assert sum(int(np.prod(shape)) for shape in shapes[1:]) < 0.4 * network.count_params()


def test_a_nan_loss_names_the_rate_of_the_second_phase(tmp_path):
    settings = config.load_settings(None, TUNED)
    names = pd.Series([f"{number}.png" for number in range(200)])
    watcher = callbacks.StopOnNaN(tmp_path, names, settings, fine_tuning.rate(settings.train))
    watcher.params = {"steps": 4}
    for epoch, words in [(0, "lower train.maximal_lr and train.initial_lr,"), (1, "lower train.fine_tune_lr,")]:
        watcher.on_epoch_begin(epoch)
        with pytest.raises(InputError, match=f"in epoch {epoch + 1}, .* at a learning rate of 0.0001; .*{words}"):
            watcher.on_train_batch_end(1, {"loss": float("nan")})


def direct(network, tree, filenames):
    """The probabilities of Keras' own predict."""
    paths = [audit.image_folder(tree) / path for path in data.describe(filenames).path]
    images = decoding.decode(paths, 32).astype(np.float32)
    return network.predict(images, verbose=0)[:, 0]


def test_features_of_the_tuned_base_predict_what_the_checkpoint_itself_does(tree, undisturbed, tuned):
    settings = tuned[1]["settings"]
    rows = pd.read_csv(undisturbed / "split.csv").query("set == 'test'")
    rows = audit.with_pixels(data.describe(rows.filename), settings.data)
    probability = predictions.predict(tuned[0], rows, settings).probability
    np.testing.assert_allclose(probability, direct(tuned[0], tree, rows.filename), atol=1e-5)


@pytest.mark.long
def test_the_evaluation_predicts_what_the_checkpoint_itself_does(tree, undisturbed):
    evaluate.main(["runs/undisturbed"])
    predicted = pd.read_csv(undisturbed / "evaluation/predictions.csv")
    loaded = keras.models.load_model(undisturbed / "best_model.keras", compile=False)
    np.testing.assert_allclose(predicted.probability, direct(loaded, tree, predicted.filename), atol=1e-5)
    assert list((undisturbed / "evaluation").glob("heatmaps-*.png"))


@pytest.mark.parametrize("settings, words", [
    (["model.trainable_from=conv5_block4"], "^model.trainable_from: allowed with base resnet50: none, conv2_block1, .*, conv5_block3, got 'conv5_block4'"),
    (["model.trainable_from=conv5_block1", "model.base=cnn"], "^model.trainable_from: allowed with base cnn: none, got 'conv5_block1'"),
    (["train.fine_tune_epochs=0"], "train.fine_tune_epochs: input should be greater than or equal to 1"),
    (["train.fine_tune_lr=0"], "train.fine_tune_lr: input should be greater than 0"),
])  # fmt: skip
def test_wrong_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(InputError, match=words) as refused:
        config.load_settings(None, settings)
    assert "\n" not in str(refused.value)
