import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image
from scipy import ndimage
from tiny_tree import tiny_settings

import config
import data
from images import audit, decoding, image_datasets, splits, warp

OFF = {"views": 1, "rotation": 0.0, "shift": 0.0, "shear": 0.0, "zoom": 0.0, "flip": False}


def augment(**changes):
    return config.Augment(**{**OFF, **changes})


@pytest.fixture(scope="module")
def rows(tree):
    table = data.read_folds(tree / "Folds.csv")
    return splits.select(table, config.load_settings(None, tiny_settings(tree)).data)


@pytest.fixture(scope="module")
def folder(tree):
    return audit.image_folder(tree)


def draws(count, seed=0):
    return tf.constant(np.random.RandomState(seed).uniform(-1, 1, (count, warp.DRAWS)).astype(np.float32))


@pytest.fixture
def image():
    """Two smooth images, in which errors of interpolation are small."""
    noise = np.random.RandomState(0).rand(2, 64, 64, 3)
    return ndimage.gaussian_filter(noise, (0, 4, 4, 0)).astype(np.float32) * 2550


def test_an_image_is_resized_as_pillow_does(tmp_path):
    y, x = np.mgrid[:456, :700]
    pixels = np.stack([x % 256, y % 256, (x + y) // 8 % 256], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = decoding.read(tf.constant(str(tmp_path / "a.png")), 224).numpy()
    assert read.shape == (224, 224, 3) and read.dtype == np.float32 and (read == read.round()).all()
    pillow = np.asarray(Image.fromarray(pixels).resize((224, 224), Image.Resampling.BILINEAR), np.float32)
    # The first two channels are sawtooth waves, which would differ without antialiasing.
    assert np.abs(read - pillow).mean() < 1


def test_the_channels_are_red_green_blue(tmp_path):
    Image.new("RGB", (40, 40), (250, 100, 3)).save(tmp_path / "a.png")
    assert decoding.read(tf.constant(str(tmp_path / "a.png")), 32).numpy()[5, 5].tolist() == [250, 100, 3]


def test_eval_yields_every_image_once_in_order_with_its_name(rows, folder, settings):
    rows = rows.sample(frac=1, random_state=2).head(37)
    names, images, labels = [], [], []
    for name, image, label in image_datasets.eval_dataset(rows, folder, settings):
        names += name.numpy().astype(str).tolist()
        images.append(image.numpy())
        labels.append(label.numpy())
    assert names == rows.filename.tolist()
    assert np.concatenate(labels)[:, 0].tolist() == rows.label_int.tolist()
    for image, path in zip(np.concatenate(images), rows.path):
        assert (image == decoding.read(tf.constant(str(folder / path)), 32).numpy()).all()


def epochs(rows, folder, settings):
    steps = -(-len(rows) // settings.train.batch_size)
    batches = list(image_datasets.train_dataset(rows, folder, settings))
    assert len(batches) == steps * settings.train.epochs
    return [
        tuple(np.concatenate([batch[part].numpy() for batch in batches[start : start + steps]]) for part in (0, 1))
        for start in range(0, len(batches), steps)
    ]


def test_each_epoch_trains_on_every_row_once_in_another_order(rows, folder, settings):
    rows = rows.head(37)
    first, second = epochs(rows, folder, settings)
    expected = sorted(decoding.read(tf.constant(str(folder / path)), 32).numpy().tobytes() for path in rows.path)
    for images, _ in (first, second):
        assert sorted(image.tobytes() for image in images) == expected
    assert not (first[0] == second[0]).all()


def test_training_labels_stay_with_their_images(rows, folder, settings):
    known = {
        decoding.read(tf.constant(str(folder / path)), 32).numpy().tobytes(): label
        for path, label in zip(rows.path, rows.label_int)
    }
    for images, labels in epochs(rows, folder, settings):
        assert [known[image.tobytes()] for image in images] == labels[:, 0].tolist()


def test_training_batches_depend_on_the_seed_alone(tree, rows, folder):
    def batches(*overrides):
        settings = config.load_settings(
            None, tiny_settings(tree, "augment.rotation=30", "augment.flip=true", *overrides)
        )
        return np.concatenate([images for images, _ in epochs(rows.head(40), folder, settings)])

    first = batches()
    assert (first == batches()).all()
    assert not (first == batches("data.seed=1")).all()


def test_warps_differ_between_epochs_and_are_never_applied_in_eval(tree, rows, folder):
    settings = config.load_settings(None, tiny_settings(tree, "augment.rotation=30", "train.batch_size=1"))
    one = rows.head(1)
    (first, _), (second, _) = epochs(one, folder, settings)
    plain = next(iter(image_datasets.eval_dataset(one, folder, settings)))[1].numpy()
    assert not (first == second).all() and not (first == plain).all()
    assert (plain[0] == decoding.read(tf.constant(str(folder / one.path.iloc[0])), 32).numpy()).all()


def test_without_augmentation_an_image_is_unchanged(image):
    assert (warp.warp(tf.constant(image), augment(), draws(len(image))) == image).numpy().all()


def test_flip_mirrors_about_half_of_the_images(image):
    many = tf.constant(np.repeat(image[:1], 200, axis=0))
    flipped = warp.warp(many, augment(flip=True), draws(200)).numpy()
    mirrored = np.isclose(flipped, image[0][:, ::-1], atol=1e-2).all(axis=(1, 2, 3))
    unchanged = np.isclose(flipped, image[0], atol=1e-2).all(axis=(1, 2, 3))
    assert (mirrored ^ unchanged).all() and 60 < mirrored.sum() < 140


@pytest.mark.parametrize("kind, amount", [("rotation", 40), ("shift", 0.2), ("shear", 20), ("zoom", 0.3)])
def test_the_warp_is_scipys_affine_map_of_the_documented_amount(image, kind, amount):
    options, drawn = augment(**{kind: float(amount)}), draws(2)
    warped = warp.warp(tf.constant(image), options, drawn).numpy()
    for which, matrix in enumerate(warp._transforms(64, options, drawn).numpy()):
        a, b, x, c, d, y = matrix[:6]
        # SciPy has the row coordinate first.
        expected = np.stack([
            ndimage.affine_transform(image[which, ..., channel], [[d, c], [b, a]], [y, x], order=1, mode="reflect")
            for channel in range(3)
        ], -1)  # fmt: skip
        assert np.abs(warped[which] - expected).max() < 1.0
        turn, size = np.rad2deg(np.arctan2(c, a)), np.hypot(a, c)
        centre = np.array([a * 31.5 + b * 31.5 + x, c * 31.5 + d * 31.5 + y]) - 31.5
        assert abs(turn) <= (amount if kind == "rotation" else 0) + 1e-3
        assert np.abs(centre).max() <= (amount * 64 if kind == "shift" else 0) + 1e-3
        assert 1 / 1.3 - 1e-4 <= size <= 1.3 + 1e-4 if kind == "zoom" else abs(size - 1) < 1e-4
        assert abs(b / d) <= np.tan(np.deg2rad(amount)) + 1e-4 if kind == "shear" else True
    assert not np.allclose(warped, image)


def test_each_image_gets_its_own_warp(image):
    twice = tf.constant(np.repeat(image[:1], 2, axis=0))
    warped = warp.warp(twice, augment(rotation=40.0), draws(2)).numpy()
    assert not np.allclose(warped[0], warped[1])


def test_real_images_of_height_456_are_read(real_sample, tmp_path):
    table = audit.inspect(
        data.read_folds(real_sample / "Folds.csv").path.unique(), audit.image_folder(real_sample), tmp_path / "s.csv"
    )
    low = table[table.height == 456]
    assert len(low)
    rows = pd.DataFrame({"path": low.path, "filename": low.path.str.rsplit("/").str[-1], "label_int": 0})
    batches = image_datasets.eval_dataset(rows, audit.image_folder(real_sample), config.load_settings())
    assert sum(len(images) for _, images, _ in batches) == len(low)
