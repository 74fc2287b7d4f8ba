import numpy as np
import pytest
import tensorflow as tf

import config
from images import colour

MATRIX = [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]


def augment(**changes):
    return config.load_settings(None, [f"augment.{key}={value}" for key, value in changes.items()]).augment


def vary(images, draws, **changes):
    return colour.vary(tf.constant(images), augment(**changes), tf.constant(np.asarray(draws, np.float32))).numpy()


@pytest.fixture(scope="module")
def images():
    """Every combination of 16 levels, among them 0 and 255, and noise."""
    levels = np.linspace(0, 255, 16).round()
    grid = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(64, 64, 3)
    return np.stack([grid, np.random.RandomState(0).randint(0, 256, grid.shape)]).astype(np.float32)


def random_draws(count, seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, (count, colour.DRAWS))


def test_without_amounts_nothing_changes(images):
    assert vary(images, random_draws(2)).tobytes() == images.tobytes()


def test_zero_strength_is_the_identity_to_a_grey_level(images):
    for changes in ({"stain": 0.5}, {"contrast": 0.9}, {"brightness": 0.5}, {"stain": 1e-6, "contrast": 1e-6}):
        draws = np.zeros((2, colour.DRAWS)) if "stain" not in changes or changes["stain"] > 0.1 else random_draws(2)
        assert np.abs(vary(images, draws, **changes) - images).max() < 1


def test_the_stain_of_a_pixel_is_changed_as_the_paper_describes(images):
    draws, amount = random_draws(2), 0.2
    changed = vary(images, draws, stain=amount)
    for image, result, drawn in zip(images, changed, draws):
        for row, column in [(0, 0), (5, 40), (63, 63), (30, 2)]:
            density = -np.log((image[row, column] + 1) / 256)
            stains = np.linalg.solve(np.transpose(MATRIX), density)
            stains = stains * (1 + amount * drawn[:3]) + amount * drawn[3:6]
            expected = 256 * np.exp(-sum(stain * np.array(row) for stain, row in zip(stains, MATRIX))) - 1
            np.testing.assert_allclose(result[row, column], np.clip(expected, 0, 255), atol=0.02)


def test_the_mean_density_of_each_stain_stays_in_its_range():
    # Levels that no draw takes to 0 or 255, where the range ends.
    images = np.repeat(np.random.RandomState(1).randint(60, 160, (1, 32, 32, 3)), 200, axis=0).astype(np.float32)
    amount = 0.1
    changed = vary(images, random_draws(200), stain=amount)
    assert changed.min() > 0 and changed.max() < 255
    before, after = (
        (-np.log((pixels + 1) / 256) @ np.linalg.inv(MATRIX)).mean(axis=(1, 2)) for pixels in (images, changed)
    )
    assert (np.abs(after - before) <= amount * (np.abs(before) + 1) + 1e-3).all()
    # The range is used, and each stain is drawn for itself.
    assert (np.abs(after - before).max(axis=0) > 0.6 * amount * (np.abs(before[0]) + 1)).all()
    assert np.abs(np.corrcoef((after - before).T) - np.eye(3)).max() < 0.3


def test_black_and_white_are_safe(images):
    black, white = np.zeros((50, 8, 8, 3), np.float32), np.full((50, 8, 8, 3), 255, np.float32)
    for extreme in (black, white):
        changed = vary(extreme, random_draws(50), stain=0.5, contrast=0.9, brightness=0.5)
        assert np.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= 255


def test_contrast_and_brightness_have_the_amounts_that_they_say():
    images = np.random.RandomState(2).randint(110, 140, (2, 16, 16, 3)).astype(np.float32)
    draws = np.zeros((2, colour.DRAWS))
    draws[:, 6] = [1, -1]
    deviation = vary(images, draws, contrast=0.5).std(axis=(1, 2, 3)) / images.std(axis=(1, 2, 3))
    np.testing.assert_allclose(deviation, [1.5, 1 / 1.5], rtol=1e-4)
    np.testing.assert_allclose(
        vary(images, draws, contrast=0.5).mean(axis=(1, 2, 3)), images.mean(axis=(1, 2, 3)), rtol=1e-5
    )
    draws[:, 7] = [1, -0.5]
    np.testing.assert_allclose(
        vary(images, draws, brightness=0.1) - images, np.full(images.shape, 25.5) * [[[[1]]], [[[-0.5]]]], atol=1e-4
    )
