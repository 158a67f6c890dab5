import numpy as np
import pytest
from sklearn.datasets import load_digits

from distillab.data.digits import open_digits


@pytest.fixture(scope="module")
def data():
    return open_digits()


def test_a_fifth_of_each_digit_tests(data):
    everything = np.bincount(load_digits().target)
    assert np.bincount(data.test.labels).tolist() == np.floor(everything * 0.2 + 0.5).tolist()
    assert (np.bincount(data.train.labels) + np.bincount(data.test.labels)).tolist() == everything.tolist()
    assert data.classes == tuple("0123456789")


def test_images_are_the_enlarged_digits(data):
    # Averaging 4 x 4 blocks of a bilinear enlargement gives back a slightly blurred original.
    digits = load_digits()
    small = data.train.images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)) * (16 / 255)
    for digit in range(10):
        ours = small[data.train.labels == digit].mean(0)
        theirs = digits.images[digits.target == digit].mean(0)
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.95
    assert data.train.images.shape == (1438, 32, 32, 3)
    assert np.array_equal(data.train.images[..., 0], data.train.images[..., 2])
    assert data.train.images.max() == 255


def test_the_test_set_is_always_the_same_one(data):
    assert data.sha256 == open_digits().sha256 == "2c4959e3d4fd88e657a5dc14f63dc2c47a1c7348ae67b254cf2a2ba2f8ee9f1a"
