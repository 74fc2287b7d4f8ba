import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_tree import EVALUATED, tiny_settings

import config
import data
import evaluate
import model
import predict
import train
from features import extraction
from images import audit, decoding, image_datasets, splits, stain_normalization
from safety.errors import InputError
from training import checkpoint, out_of_fold

METHODS = ["macenko", "reinhard"]
# Haematoxylin and eosin of a drawn slide, as optical densities in red, green and blue.
STAINS = np.array([[0.62, 0.66, 0.42], [0.20, 0.88, 0.43]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
BLANK = {
    "black": np.zeros((32, 32, 3), np.uint8),
    "white": np.full((32, 32, 3), 255, np.uint8),
    "one colour": np.full((32, 32, 3), (200, 100, 150), np.uint8),
    "grey": np.repeat(np.random.RandomState(0).randint(0, 256, (32, 32, 1)), 3, axis=2).astype(np.uint8),
    "one stained pixel": np.where(np.arange(1024).reshape(32, 32, 1) == 5, (120, 40, 130), 255).astype(np.uint8),
}


def drawn(seed, strength=(1.2, 0.8), size=64):
    """A drawn image: pixels of pure haematoxylin, of pure eosin, of both, and background."""
    random = np.random.RandomState(seed)
    amounts = random.uniform(0.3, 1, (size, size, 2)) * random.choice([0, 1], (size, size, 2))
    pixels = 256 * np.exp(-(amounts * strength) @ STAINS) - 1
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=["drawn", "real"])
def images(request):
    """Twelve drawn images, or twelve real ones; the real ones are skipped, by their fixture, where they are not."""
    if request.param == "drawn":
        return np.stack([drawn(seed, (0.8 + 0.1 * seed, 1.2 - 0.05 * seed)) for seed in range(12)])
    paths = sorted(audit.image_folder(request.getfixturevalue("real_sample")).rglob("*.png"))[::15]
    return np.stack([np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in paths[:12]])


def settings_of(method, images):
    target = stain_normalization.fit(images, method)
    return config.load_settings(None, [f"data.stain={method}", f"data.stain_target={target}"]).data


def macenko(image, target):
    """Macenko's method another way: singular values of centred pixels, complex angles, the normal equations."""
    density = np.log(256) - np.log(image.reshape(-1, 3) + 1.0)
    tissue = density[density.min(axis=1) >= 0.15]
    _, _, axes = np.linalg.svd(tissue - tissue.mean(axis=0), full_matrices=False)
    first, second = (axis if axis.sum() > 0 else -axis for axis in axes[:2])
    angles = np.angle(tissue @ first + 1j * (tissue @ second))
    stains = [first * np.cos(end) + second * np.sin(end) for end in np.quantile(angles, [0.01, 0.99])]
    stains = np.array(sorted(stains, key=lambda stain: stain[0], reverse=True))
    amounts = np.linalg.solve(stains @ stains.T, stains @ density.T)
    scaled = amounts / np.quantile(amounts, 0.99, axis=1)[:, None] * np.array(target[6:])[:, None]
    light = np.prod([np.exp(-np.outer(scaled[k], target[3 * k : 3 * k + 3])) for k in range(2)], axis=0)
    return (256 * light - 1).reshape(image.shape)


def reinhard(image, target):
    """Reinhard's method another way: channel by channel, with the inverse matrices as the paper prints them."""
    red, green, blue = ((image[..., channel] + 1.0) / 256 for channel in range(3))
    long = np.log10(0.3811 * red + 0.5783 * green + 0.0402 * blue)
    middle = np.log10(0.1967 * red + 0.7244 * green + 0.0782 * blue)
    short = np.log10(0.0241 * red + 0.1288 * green + 0.8444 * blue)
    opponent = [(long + middle + short) / 3**0.5, (long + middle - 2 * short) / 6**0.5, (long - middle) / 2**0.5]
    light, yellow, reddish = (
        (channel - channel.mean()) * target[3 + k] / channel.std() + target[k] for k, channel in enumerate(opponent)
    )
    light, yellow, reddish = light / 3**0.5, yellow / 6**0.5, reddish / 2**0.5
    long, middle, short = (
        10**logarithm for logarithm in (light + yellow + reddish, light + yellow - reddish, light - 2 * yellow)
    )
    return 256 * np.stack([
        4.4679 * long - 3.5873 * middle + 0.1193 * short,
        -1.2186 * long + 2.3809 * middle - 0.1624 * short,
        0.0497 * long - 0.2439 * middle + 1.2045 * short,
    ], -1) - 1  # fmt: skip


@pytest.mark.parametrize("method, other, tolerance", [("macenko", macenko, 1), ("reinhard", reinhard, 2)])
def test_an_independent_implementation_gives_the_same_grey_levels(images, method, other, tolerance):
    settings = settings_of(method, images)
    for image in images:
        normalised = stain_normalization.normalise(image, settings)
        expected = np.clip(np.rint(other(image, settings.stain_target)), 0, 255)
        assert normalised.dtype == np.uint8 and not (normalised == image).all()
        assert np.abs(normalised - expected).max() <= tolerance


def test_the_stains_of_a_drawn_image_are_found():
    measured = stain_normalization._measure(drawn(0), "macenko")
    cosines = (measured[:6].reshape(2, 3) * STAINS).sum(axis=1)
    assert cosines.min() > np.cos(np.deg2rad(2))
    np.testing.assert_allclose(measured[6:], [1.2, 0.8], rtol=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_images_that_differ_in_stain_alone_become_alike(method):
    weak, strong = (drawn(3, (1.0, 1.0)), drawn(3, (1.6, 1.6)))
    settings = settings_of(method, np.stack([drawn(seed) for seed in range(5)]))
    before = np.abs(weak.astype(int) - strong).mean()
    after = np.abs(
        np.subtract(*(stain_normalization.normalise(image, settings).astype(int) for image in (weak, strong)))
    )
    assert after.mean() < before / 5


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_is_its_own_target_stays(method):
    image = drawn(1)
    normalised = stain_normalization.normalise(image, settings_of(method, image[None]))
    assert np.abs(normalised.astype(int) - image).max() <= 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BLANK)
def test_an_image_without_stain_is_left_as_it_is(method, name):
    settings = settings_of(method, drawn(0)[None])
    assert stain_normalization.normalise(BLANK[name], settings).tobytes() == BLANK[name].tobytes()
    floats = BLANK[name].astype(np.float32)
    assert stain_normalization.normalise(floats, settings).tobytes() == floats.tobytes()
    with pytest.raises(InputError, match="data.stain: needed is a training image with stained tissue, got 1 without"):
        stain_normalization.fit(BLANK[name][None], method)
    # Next to others it does not count.
    assert stain_normalization.fit(np.stack([drawn(0, size=32), BLANK[name]]), method) == stain_normalization.fit(
        drawn(0, size=32)[None], method
    )


def options(tree, method, *overrides):
    return config.load_settings(None, tiny_settings(tree, f"data.stain={method}", *overrides))


def table_of(settings):
    rows = splits.select(audit.with_pixels(data.read_table(settings.data), settings.data), settings.data)
    return splits.split(rows, settings.data)


@pytest.mark.parametrize("method", METHODS)
def test_images_that_are_not_trained_on_change_nothing_that_is_fitted(own_tree, method):
    settings = options(own_tree, method, "data.test_per_class=5")
    table = table_of(settings)
    parts = {name: table[table.set == name] for name in ("train", "valid", "test")}
    fitted = stain_normalization.fitted(settings, parts["train"]).data.stain_target
    folder = audit.image_folder(own_tree)

    def poison(rows):
        for path in rows.path:
            Image.new("RGB", (48, 32), (255, 0, 128)).save(folder / path)
            pixels = np.random.RandomState(5).randint(0, 40, (32, 48, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / path)

    poison(pd.concat([parts["valid"], parts["test"]]))
    assert stain_normalization.fitted(settings, parts["train"]).data.stain_target == fitted
    poison(parts["train"].head(5))
    assert stain_normalization.fitted(settings, parts["train"]).data.stain_target != fitted


def test_a_run_fits_on_its_training_set_and_a_fold_on_its_training_part(tree, monkeypatch):
    given, fitted = [], stain_normalization.fitted
    monkeypatch.setattr(
        stain_normalization, "fitted", lambda settings, rows: given.append(rows) or fitted(settings, rows)
    )
    settings = options(tree, "reinhard", "model.base=cnn")
    experiment = train.prepare(settings)
    assert set(given[0].set) == {"train"} and len(given[0]) == (experiment.table.set == "train").sum()
    table = experiment.table.reset_index(drop=True)
    prepared = out_of_fold.prepare(experiment.network, table, settings)
    training, held_out = np.arange(0, 100), np.arange(100, 120)
    out_of_fold._plan(prepared, training, held_out)
    assert set(given[1].filename) == set(table.filename[training]) and prepared.turned is None
    # No features of all images in common, which one target would have made.
    assert out_of_fold._head_alone(options(tree, "none")) and not out_of_fold._head_alone(options(tree, "macenko"))


def test_only_so_many_training_images_are_read_whatever_their_order(tree, monkeypatch):
    monkeypatch.setattr(stain_normalization, "FITTED_ON", 10)
    settings, read, decode = options(tree, "reinhard"), [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda paths, size: read.append(paths) or decode(paths, size))
    rows = table_of(settings)
    first = stain_normalization.fitted(settings, rows)
    again = stain_normalization.fitted(settings, pd.concat([rows, rows]).sample(frac=1, random_state=1))
    assert first == again and [len(paths) for paths in read] == [10, 10]
    assert stain_normalization.fitted(first, rows) is first


@pytest.mark.parametrize("method", METHODS)
def test_cached_features_are_those_of_the_normalised_images(tree, method):
    settings = options(tree, method)
    rows = table_of(settings).head(40)
    settings = stain_normalization.fitted(settings, rows)
    network = model.build(settings)
    features = extraction.pooled(network, rows, settings)
    batches = image_datasets.eval_dataset(rows, audit.image_folder(tree), settings)
    images = np.concatenate([images for _, images, _ in batches])
    decoded = decoding.decode([audit.image_folder(tree) / path for path in rows.path], 32)
    expected = np.stack([stain_normalization.normalise(image, settings.data) for image in decoded])
    assert (images == expected).all() and not (images == decoded).all()
    values = features.array[features.places[:, 0]]
    np.testing.assert_allclose(values, model.pooled(network).predict(images, verbose=0), rtol=1e-4, atol=1e-4)


def test_the_key_of_the_cache_has_the_target(tree):
    part = model.pooled(model.build(options(tree, "none")))
    targets = [[0.0] * 3 + [0.1] * 3, [0.0] * 3 + [0.1, 0.1, 0.2]]
    keys = {extraction.key(part, options(tree, "reinhard", f"data.stain_target={target}"), False) for target in targets}
    assert len(keys | {extraction.key(part, options(tree, "none"), False)}) == 3


@pytest.mark.parametrize("change", [
    ["data.stain=macenko", "data.stain_target=[1,2]"], ["data.stain_target=[0,0,0,1,1,1]"],
    ["data.stain=reinhard", "data.stain_target=[0,0,0,1,1,0]"], ["data.stain=reinhard", "data.stain_target=[0,0,0,1,1,11]"],
    ["data.stain=reinhard", "data.stain_target=[0,0,0,1,1,.inf]"], ["data.stain=reinhard", "data.stain_target=[0,0,0,1,1,.nan]"],
    ["data.stain=reinhard", "data.stain_target=x"], ["data.stain=reinhard", "data.stain_target=[]"],
])  # fmt: skip
def test_a_wrong_target_is_refused(change):
    with pytest.raises(InputError, match=r"stain_target.*must be auto.*got"):
        config.load_settings(None, change)


@pytest.mark.parametrize("given, resumed, note", [(True, False, True), (True, True, False), (False, False, False)])
def test_a_given_target_is_on_record_and_noted_at_the_start(tree, capsys, given, resumed, note):
    target = [f"data.stain_target={[1.0] * 6}"] if given else []
    settings = config.load_settings(None, tiny_settings(tree, "data.stain=reinhard", *target))
    record = train.prepare(settings, resumed).environment
    assert record["stain_target"] == ("given" if given else "fitted")
    assert ("note: data.stain_target is given" in capsys.readouterr().out) == note


def test_the_target_is_kept_in_the_checkpoint_and_applied_in_evaluation_and_prediction(
    tree, tmp_path, capsys, without_figures
):
    train.main(tiny_settings(tree, *EVALUATED, "train.epochs=1", "data.stain=macenko"))
    evaluate.main(["runs/tiny"])
    path = tmp_path / "runs" / "tiny" / "best_model.keras"
    network, about = checkpoint.load(path)
    settings = about["settings"]
    assert len(settings.data.stain_target) == 8
    assert config.load_settings(path.with_name("config.yaml"), of_run=True).data == settings.data
    expected = pd.read_csv(path.with_name("evaluation") / "predictions.csv").set_index("filename")
    paths = sorted(audit.image_folder(tree).rglob("*.png"))
    table = predict.predict(network, about, paths)
    table.index = [path.name for path in table.file]
    np.testing.assert_allclose(table.probability[expected.index].astype(float), expected.probability, atol=1e-5)
    plain = settings.model_copy(update={"data": settings.data.model_copy(update={"stain": "none"})})
    other = predict.predict(network, {**about, "settings": plain}, paths)
    assert np.abs(other.probability.to_numpy() - table.probability.to_numpy()).max() > 1e-3
    broken = json.loads(json.dumps(settings.model_dump()))
    for target in ("auto", [0.0] * 8, [1e9] * 8, "x"):
        broken["data"]["stain_target"] = target
        checkpoint.amend(path, settings=broken)
        with pytest.raises(InputError, match="stain_target"):
            checkpoint.load(path)
