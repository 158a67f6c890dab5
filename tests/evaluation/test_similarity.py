from __future__ import annotations

import numpy as np
import pytest
import torch

import tiny
from distillab.errors import ShapeError
from distillab.evaluation.similarity import linear_cka, main_layers, pooled, principal_plane
from distillab.models.catalog import build_model
from distillab.models.classifier import NormalizedModel


def features(num: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 3.0


def cka_of_the_paper(first: torch.Tensor, second: torch.Tensor) -> float:
    """Kornblith 2019, section 3, with features and not with products of samples."""
    x, y = (one.numpy() - one.numpy().mean(axis=0) for one in (first, second))
    aligned = np.linalg.norm(y.T @ x) ** 2
    return float(aligned / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@pytest.mark.parametrize(("k", "l"), [(3, 5), (50, 7), (2, 2)])
def test_cka_is_that_of_the_paper(k: int, l: int) -> None:  # noqa: E741 - the axes' names
    first, second = features(20, k, 0), features(20, l, 1)
    second[:, 0] += first[:, 0]
    assert linear_cka(first, second) == pytest.approx(cka_of_the_paper(first, second), rel=1e-9)
    assert linear_cka(first, second) == pytest.approx(linear_cka(second, first))


def test_turning_scaling_and_shifting_leave_cka_at_one_and_other_maps_do_not() -> None:
    first = features(30, 6, 0)
    turn = torch.linalg.qr(features(6, 6, 1))[0]
    assert linear_cka(first, 0.01 * first @ turn - 7.0) == pytest.approx(1.0)
    assert linear_cka(first, first @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1, 1], dtype=torch.float64))) < 0.99


def test_cka_worked_by_hand() -> None:
    # Centred: x = (-1, 0, 1), y = (1, -2, 1); x y = 0, so nothing of the one is in the other.
    x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [-1.0], [2.0]])
    assert linear_cka(x, y) == pytest.approx(0.0)
    # With z = (-1, 1, 0): x z = 1, and |x|^2 = |z|^2 = 2, so CKA = 1^2 / (2 * 2).
    assert linear_cka(x, torch.tensor([[-1.0], [1.0], [0.0]])) == pytest.approx(0.25)


@pytest.mark.parametrize("num", [3, 10, 49, 1000])
def test_a_constant_feature_is_like_nothing(num: int) -> None:
    constant = torch.full((num, 3), 0.1, dtype=torch.float64)  # whose mean is not always 0.1
    assert linear_cka(constant, features(num, 3, 0)) == 0.0
    plane, share = principal_plane(constant)
    assert share == 0.0
    assert not plane.any()


def test_cka_of_other_samples_is_refused() -> None:
    with pytest.raises(ShapeError, match="N, K"):
        linear_cka(features(4, 2, 0), features(5, 2, 0))


def test_the_plane_is_that_of_the_two_largest_eigenvectors_of_the_covariance() -> None:
    data = features(40, 5, 0) @ torch.diag(torch.tensor([1.0, 4.0, 0.5, 2.0, 0.1], dtype=torch.float64))
    plane, share = principal_plane(data)
    x = data.numpy() - data.numpy().mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    for axis in (0, 1):
        expected = x @ vectors[:, -1 - axis]
        expected *= np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(plane[:, axis].numpy(), expected, atol=1e-9)
    assert share == pytest.approx(values[-2:].sum() / values.sum())


def test_one_feature_lies_on_a_line() -> None:
    plane, share = principal_plane(torch.tensor([[1.0], [2.0], [6.0]]))
    np.testing.assert_allclose(plane.numpy(), [[-2.0, 0.0], [-1.0, 0.0], [3.0, 0.0]], atol=1e-9)
    assert share == pytest.approx(1.0)


def test_the_main_layers_go_from_the_image_to_the_logits() -> None:
    assert main_layers(build_model("cnn16", 10)) == ("layer1", "layer2", "layer3", "layer4", "mlp")
    assert main_layers(NormalizedModel(tiny.build(3), 3, image_size=16)) == ("first", "second", "third", "head")


class Blocks(torch.nn.Module):
    """A block of features and a head, as many models are made; one layer has no weights, one runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU(), torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
        )
        self.head = torch.nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.features(images)
        return self.head(self.features[3](maps).mean(dim=(2, 3)))


def test_a_block_of_features_is_looked_into_for_layers_that_have_weights_and_run_once() -> None:
    model = NormalizedModel(Blocks(), 2, image_size=16)
    assert main_layers(model) == ("features.0", "features.2", "head")


def test_of_many_layers_eight_are_taken_the_first_and_the_last_among_them() -> None:
    inner = torch.nn.Sequential(*(torch.nn.Conv2d(3, 3, 1) for _ in range(20)), torch.nn.Flatten())
    layers = main_layers(NormalizedModel(inner, 3 * 16 * 16, image_size=16))
    assert len(layers) == 8
    assert (layers[0], layers[-1]) == ("0", "19")


def test_features_become_vectors_of_bounded_length() -> None:
    maps = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    assert pooled(maps).shape == (2, 3 * 4 * 4)
    assert pooled(maps)[0, 0] == maps[0, 0, :2, :2].mean()
    assert pooled(torch.ones(2, 3, 2, 8)).shape == (2, 3 * 2 * 4)
    assert torch.equal(pooled(torch.stack([torch.zeros(2, 5), torch.ones(2, 5)], dim=1)), torch.full((2, 5), 0.5))
    assert pooled(torch.ones(2, 5, dtype=torch.bfloat16)).dtype == torch.float32
