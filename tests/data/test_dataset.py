import dataclasses

import numpy as np
import pytest

from distillab.data.dataset import Dataset, ImageSet
from distillab.data.statistics import channel_statistics, content_sha256
from distillab.errors import DataError


def image_set(number=6, *, side=4, seed=0, classes=3):
    images = np.random.default_rng(seed).integers(0, 256, (number, side, side, 3), dtype=np.uint8)
    return ImageSet(images, np.arange(number) % classes)


def dataset(train=image_set(), test=image_set(3, seed=1), classes=("a", "b", "c")):  # noqa: B008 (frozen)
    return Dataset.from_arrays("toy", classes, train, test)


def test_a_data_set_knows_its_classes_size_and_statistics():
    data = dataset()
    assert (data.num_classes, data.image_size, len(data.train), len(data.test)) == (3, 4, 6, 3)
    pixels = data.train.images.astype(np.float64) / 255
    assert data.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-14)
    assert data.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-14)


def test_statistics_are_exact_over_many_blocks(monkeypatch):
    images = image_set(50).images
    monkeypatch.setattr("distillab.data.statistics._BLOCK_BYTES", 100)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean((0, 1, 2)), abs=1e-14)
    assert std == pytest.approx((images / 255).std((0, 1, 2)), abs=1e-14)


def test_a_channel_that_never_changes_can_still_be_divided_by():
    assert channel_statistics(np.full((2, 2, 2, 3), 51, dtype=np.uint8)) == ((0.2,) * 3, (1 / 255,) * 3)


def test_the_hash_sees_images_labels_parts_and_class_names():
    train, test = image_set(), image_set(3, seed=1)
    other_labels = ImageSet(train.images, train.labels[::-1].copy())
    other_pixel = ImageSet(train.images.copy(), train.labels)
    other_pixel.images[5, 3, 3, 2] ^= 1
    hashes = {
        content_sha256(("a", "b", "c"), train, test),
        content_sha256(("a", "b", "d"), train, test),
        content_sha256(("a", "b", "c"), other_labels, test),
        content_sha256(("a", "b", "c"), other_pixel, test),
        content_sha256(("a", "b", "c"), test, train),
    }
    assert len(hashes) == 5
    assert dataset(train, test).sha256 in hashes


def test_the_hash_is_that_of_the_content_however_it_lies_in_memory():
    train, test = image_set(), image_set(3, seed=1)
    turned = ImageSet(np.asfortranarray(train.images), train.labels)
    assert content_sha256(("a",), turned, test) == content_sha256(("a",), train, test)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, np.int64), "float64"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64), r"\[2, 3, 4, 4\]"),
        (np.zeros((2, 4, 5, 3), np.uint8), np.zeros(2, np.int64), "square"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32), "int32"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, np.int64), "2 images"),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(images, labels, words):
    with pytest.raises(DataError, match=words):
        ImageSet(images, labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("a",)}, "two classes"),
        ({"classes": ("a", "b")}, "from 0 to 2"),
        ({"test": image_set(3, side=8)}, "4 pixels wide, test images 8"),
        ({"test": ImageSet(np.zeros((0, 4, 4, 3), np.uint8), np.zeros(0, np.int64))}, "no images"),
    ],
)
def test_parts_that_do_not_make_a_data_set_are_refused(changes, words):
    with pytest.raises(DataError, match=words):
        dataset(**changes)


def test_a_data_set_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset().name = "other"
