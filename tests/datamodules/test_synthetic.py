import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.sources.synthetic import CLASSES, draw

Drawn = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def sample() -> Drawn:
    return draw(0, 0, 4000)


def centroid_accuracy(features: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The share of the second half that lies nearest to the mean of its own class in the first half."""
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == label].mean(axis=0) for label in range(len(CLASSES))])
    distances = (means**2).sum(axis=1) - 2 * features[half:] @ means.T  # less what all the means have in common
    return float((distances.argmin(axis=1) == labels[half:]).mean())


def contrasts(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return each pixel's distance from the colour of the image's border, in which the shape stands out."""
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)
    contrast: NDArray[np.float64] = np.abs(images - np.median(border, axis=1)[:, None, None]).sum(axis=3)
    contrast /= contrast.std(axis=(1, 2), keepdims=True)
    return contrast


def test_images_are_rgb_bytes_and_labels_are_places_in_classes(sample: Drawn) -> None:
    images, labels = sample
    assert images.shape == (4000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert labels.shape == (4000,)
    assert labels.dtype == np.int64
    assert set(labels.tolist()) == set(range(10))
    assert len(set(CLASSES)) == 10
    assert images.min() == 0
    assert images.max() == 255
    assert 90 < images.mean() < 165
    assert images.std(axis=(1, 2)).max(axis=1).min() > 5  # none is blank


@pytest.mark.parametrize(("first", "count"), [(0, 50), (50, 50), (499, 2), (733, 1), (250, 1000), (1000, 500), (5, 0)])
def test_an_image_is_the_same_however_the_sequence_is_cut(sample: Drawn, first: int, count: int) -> None:
    images, labels = draw(0, first, count)
    np.testing.assert_array_equal(images, sample[0][first : first + count])
    np.testing.assert_array_equal(labels, sample[1][first : first + count])


def test_no_image_comes_twice_and_another_seed_draws_others(sample: Drawn) -> None:
    images, labels = draw(1, 0, 1000)
    assert len({image.tobytes() for image in (*sample[0], *images)}) == len(sample[0]) + len(images)
    assert (labels[:500] != sample[1][:500]).any()


def test_classes_are_balanced_and_in_random_order(sample: Drawn) -> None:
    _, labels = sample
    first = np.bincount(labels[:1000], minlength=10)
    assert first.min() >= 60
    assert first.max() <= 140
    assert np.ptp(np.bincount(labels)) <= 40
    assert 0.05 < np.mean(labels[1:] == labels[:-1]) < 0.15


def test_pixels_alone_do_not_give_the_class_away(sample: Drawn) -> None:
    images, labels = sample
    assert centroid_accuracy(images.reshape(len(images), -1) / 255, labels) < 0.15


def test_colour_does_not_give_the_class_away(sample: Drawn) -> None:
    images, labels = sample
    pixels = images.reshape(len(images), -1, 3) / 255
    colour = np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)
    assert centroid_accuracy(colour, labels) < 0.15


def test_shape_does_give_the_class_away(sample: Drawn) -> None:
    images, labels = sample
    assert centroid_accuracy(contrasts(images).reshape(len(images), -1), labels) > 0.4


def test_a_mirror_image_looks_like_its_class(sample: Drawn) -> None:
    images, labels = sample
    shapes = contrasts(images)
    for label in range(len(CLASSES)):
        mean = shapes[labels == label].mean(axis=0)
        assert np.corrcoef(mean.ravel(), mean[:, ::-1].ravel())[0, 1] > 0.97, CLASSES[label]
