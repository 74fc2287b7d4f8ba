import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from images import audit, turns


def eight(image):
    return turns.turn(tf.constant(np.repeat(image[None], 8, axis=0)), np.arange(8)).numpy()


@pytest.fixture
def image():
    return np.random.RandomState(0).randint(0, 256, (7, 7, 3)).astype(np.uint8)


def test_the_eight_turns_are_the_quarter_turns_of_the_image_and_of_its_mirror_image(image):
    expected = {np.rot90(side, count).tobytes() for side in (image, image[:, ::-1]) for count in range(4)}
    assert len(expected) == 8 and {each.tobytes() for each in eight(image)} == expected
    assert (eight(image)[0] == image).all()


def test_each_turn_has_an_inverse_that_gives_the_original_bytes(image):
    # A transposed image is mirrored along the other axis.
    inverses = [0, 1, 2, 3, 4, 6, 5, 7]
    back = turns.turn(tf.constant(eight(image)), inverses).numpy()
    assert all(each.tobytes() == image.tobytes() for each in back)


def test_a_real_image_gives_eight_images_of_the_same_pixels(real_sample):
    path = next(audit.image_folder(real_sample).rglob("*.png"))
    image = np.asarray(Image.open(path).convert("RGB"))[:400, :400]
    turned = eight(image)
    assert len({each.tobytes() for each in turned}) == 8
    pixels = np.sort(image.reshape(-1, 3).view("u1,u1,u1"), axis=0)
    assert all(
        (np.sort(np.ascontiguousarray(each).reshape(-1, 3).view("u1,u1,u1"), axis=0) == pixels).all() for each in turned
    )


def test_each_image_of_a_batch_has_a_turn_of_its_own(image):
    images = np.stack([image, image + 1, image + 2])
    turned = turns.turn(tf.constant(images), [5, 0, 3]).numpy()
    assert all((turned[place] == eight(images[place])[number]).all() for place, number in enumerate([5, 0, 3]))


def test_draws_choose_all_turns_equally_often_and_no_other():
    draws = np.random.RandomState(0).uniform(-1, 1, 8000).astype(np.float32)
    counts = np.bincount(turns.drawn(tf.constant(np.append(draws, [-1, 1]).astype(np.float32))), minlength=8)
    assert len(counts) == 8 and counts.min() > 850 and counts.max() < 1150
