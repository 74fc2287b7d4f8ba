"""Imported features take the place of images: each vector stays with its file name, whatever the order of the file."""

import numpy as np
import pytest
from imported_features import VALUES, names_of, settings_for, write_features

import config
import data
import model
from features import source
from safety.errors import InputError


def network_of(settings, width=6):
    return model.build(settings, width=width)


@pytest.fixture
def settings(tmp_path):
    return settings_for(tmp_path)


@pytest.fixture
def table(settings):
    return data.read_table(settings.data).drop_duplicates("filename").reset_index(drop=True)


def test_each_row_gets_the_features_of_its_file_name(settings, table):
    rows = table.sample(frac=1, random_state=0)
    found = source.of(settings).pooled(network_of(settings), rows)
    names = names_of()
    for place, row in zip(found.places[:, 0], rows.itertuples()):
        np.testing.assert_array_equal(found.array[place], VALUES[names.index(row.filename)])
    assert found.labels.tolist() == rows.label_int.tolist()


def test_shuffled_rows_in_the_file_change_nothing(settings, table, tmp_path):
    first = source.of(settings)
    expected, pixels = first.pooled(network_of(settings), table), first.with_pixels(table).pixels
    order = np.random.RandomState(1).permutation(len(VALUES))
    write_features(tmp_path / "features.npz", np.array(names_of())[order], VALUES[order])
    again = source.of(settings)
    found = again.pooled(network_of(settings), table)
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_array_equal(found.places, expected.places)
    assert again.with_pixels(table).pixels.tolist() == pixels.tolist()


def test_names_with_folders_or_without_png_are_those_of_the_images(settings, table, tmp_path):
    expected = source.of(settings).names
    names = [f"a/b\\{name[:-4]}" if number % 2 else f"benign/{name}" for number, name in enumerate(names_of())]
    write_features(tmp_path / "features.npz", names)
    assert source.of(settings).names.equals(expected)
    write_features(tmp_path / "features.npz", ["x/" + names_of()[1], *names_of()[1:]])
    with pytest.raises(InputError, match="an image must be there once, got SOB_.* in several folders"):
        source.of(settings)


def test_images_without_features_are_left_out_and_counted(settings, table, tmp_path, capsys):
    write_features(tmp_path / "features.npz", names_of()[:-3], VALUES[:-3])
    rows = source.of(settings).rows(data.read_table(settings.data))
    assert set(rows.filename) == set(names_of()[:-3]) and len(rows) == 5 * (len(VALUES) - 3)
    assert capsys.readouterr().out.endswith(
        f"features.npz: features of {len(VALUES) - 3} images; the other 3 are left out\n"
    )
    with pytest.raises(InputError, match=f"features.npz must have features of {names_of()[-3]}, got none"):
        source.of(settings).with_pixels(table)


def test_a_name_that_folds_csv_does_not_know_is_refused(settings, tmp_path):
    write_features(tmp_path / "features.npz", ["SOB_B_A-14-9-40-001.png", "SOB_B_A-14-9-40-002.png", *names_of()[2:]])
    with pytest.raises(
        InputError, match=r"must have file names of .*Folds.csv alone, got 'SOB_B_A-14-9-40-001.png' and 1 others"
    ):
        source.of(settings).rows(data.read_table(settings.data))


def test_equal_features_count_as_equal_images(settings, table, tmp_path):
    values = VALUES.copy()
    values[1] = values[0]
    write_features(tmp_path / "features.npz", names_of(), values)
    pixels = source.of(settings).with_pixels(table).set_index("filename").pixels
    twins = pixels[names_of()[:2]]
    assert twins.nunique() == 1 and pixels.nunique() == len(pixels) - 1


def test_another_width_than_that_of_the_head_is_refused(settings, table):
    with pytest.raises(InputError, match="features.npz: an image must have 5 features, got 6"):
        source.of(settings).pooled(network_of(settings, width=5), table)


def test_there_are_no_turns_of_an_image(settings, table):
    with pytest.raises(
        InputError, match="--views: needed are images, since .*features.npz has one view of each, got 8"
    ):
        source.of(settings).pooled(network_of(settings), table, turned=8)


@pytest.mark.parametrize(
    "change, message",
    [
        ("augment.flip=true", "model.base=file opens no image: augment must be off, got "),
        ("train.features=end_to_end", "model.base=file opens no image: train.features must be cached, got end_to_end"),
        ("data.stain=macenko", "model.base=file opens no image: data.stain must be none, got macenko"),
        ("data.folds=tree", "model.base=file opens no image: data.folds must be a Folds.csv, got tree"),
        ("data.test_views=8", "model.base=file opens no image: data.test_views must be 1, got 8"),
        (
            "model.weights=imagenet",
            "model.weights must be the path of a file with the features",
        ),
        ("model.trainable_from=conv5_block1", "model.trainable_from: allowed with base file: none, got 'conv5_block1'"),
    ],
)
def test_what_needs_pixels_is_refused_with_the_settings(change, message):
    with pytest.raises(InputError, match=message):
        config.load_settings(None, ["model.base=file", "model.weights=features.npz", change])


def test_the_network_is_the_head_alone_and_its_preprocessing_the_identity(settings):
    network = network_of(settings)
    np.testing.assert_array_equal(model.pooled(network).predict(VALUES, verbose=0), VALUES)
    assert model.width(network) == 6 and [layer.name for layer in network.layers][1:] == [
        "pooling", "standardize", "head",
    ]  # fmt: skip
    with pytest.raises(InputError, match="model.base: this command opens images, which is not possible with file"):
        model.build(settings)
