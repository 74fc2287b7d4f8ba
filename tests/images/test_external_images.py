import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from images import audit, decoding, external_images
from safety.errors import InputError


def saved(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def colors(height=6, width=4):
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_folders_are_searched_with_their_subfolders_in_order(tmp_path):
    for name in ("b/same.png", "a/same.png", "b/deep/x.JPG", "a/y.tiff", "a/z.bmp", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = [path.relative_to(tmp_path).as_posix() for path in external_images.find([str(tmp_path)])]
    assert paths == ["a/same.png", "a/y.tiff", "a/z.bmp", "b/deep/x.JPG", "b/same.png"]
    # A file that is named is taken whatever its suffix, and no file is taken twice.
    names = [tmp_path / "a" / "notes.txt", tmp_path / "b" / "same.png", tmp_path / "b"]
    assert [path.name for path in external_images.find(list(map(str, names)))] == ["notes.txt", "same.png", "x.JPG"]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert external_images.read(tmp_path / "a.png", 32)[1] == "is no regular file"


def test_a_missing_path_and_a_folder_without_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no file or folder .*nowhere"):
        external_images.find([str(tmp_path), str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="no PNG, JPEG, TIFF or BMP in"):
        external_images.find([str(tmp_path)])


def test_a_jpeg_of_very_many_scans_is_refused_and_a_progressive_one_read(tmp_path):
    path = saved(tmp_path / "a.jpg", colors(64, 64), progressive=True, comment=b"\xff\xda" * 100)
    content = path.read_bytes()
    assert external_images.read_rgb(path).shape == (64, 64, 3)
    scan = content[content.rindex(b"\xff\xda") : -2]
    path.write_bytes(content[:-2] + scan * 60 + content[-2:])
    with pytest.raises(InputError, match="allowed are 50 scans of a JPEG, got 70"):
        external_images.read_rgb(path)


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", np.zeros((60, 60, 3), np.uint8))
    monkeypatch.setattr(external_images, "MAX_PIXELS", 3599)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="60 x 60"):
        external_images.read_rgb(path)


def test_a_png_is_read_as_training_reads_it(tree):
    path = sorted(audit.image_folder(tree).rglob("*.png"))[0]
    image, error = external_images.read(path, 24)
    np.testing.assert_array_equal(image, decoding.read(str(path), 24))
    assert error == ""


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_formats_without_loss_give_their_pixels(tmp_path, suffix):
    np.testing.assert_array_equal(external_images.read_rgb(saved(tmp_path / f"a.{suffix}", colors())), colors())


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = colors()[..., 0]
    read = external_images.read_rgb(saved(tmp_path / "a.png", grey))
    assert all((read[..., channel] == grey).all() for channel in range(3))


def test_palettes_and_one_bit_are_read(tmp_path):
    Image.fromarray(colors()).quantize(4).save(tmp_path / "p.png")
    Image.fromarray(colors()).convert("1").save(tmp_path / "1.tiff")
    np.testing.assert_array_equal(
        external_images.read_rgb(tmp_path / "p.png"), Image.open(tmp_path / "p.png").convert("RGB")
    )
    assert set(np.unique(external_images.read_rgb(tmp_path / "1.tiff"))) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    grey = np.array([[0, 255, 257, 32896, 65535]], np.uint16)
    read = external_images.read_rgb(saved(tmp_path / f"a.{suffix}", grey))
    assert read[0].tolist() == [[0] * 3, [1] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_sixteen_bits_of_colour_are_read(tmp_path):
    color = np.array([[[0, 257, 65535], [32896, 65280, 512]]], np.uint16)
    (tmp_path / "a.png").write_bytes(tf.io.encode_png(color).numpy())
    assert external_images.read_rgb(tmp_path / "a.png")[0].tolist() == [[0, 1, 255], [128, 255, 2]]


def test_what_is_transparent_is_laid_on_white(tmp_path):
    pixels = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    assert external_images.read_rgb(saved(tmp_path / "a.png", pixels))[0].tolist() == [
        [10, 20, 30],
        [255] * 3,
        [204] * 3,
    ]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_the_orientation_of_the_camera_is_honoured(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    read = external_images.read_rgb(saved(tmp_path / f"a.{suffix}", colors(), exif=exif))
    np.testing.assert_array_equal(read, np.rot90(colors(), -1))


def test_of_several_pages_the_first_is_taken(tmp_path):
    pages = [Image.fromarray(page) for page in (colors(), 255 - colors())]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(external_images.read_rgb(tmp_path / "a.tiff"), colors())
