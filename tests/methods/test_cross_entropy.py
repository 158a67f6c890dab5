import math

import pytest
import torch

from distillab.errors import ShapeError
from distillab.methods.cross_entropy import cross_entropy_loss, label_average


def reference(logits, labels):
    """-log of the share that exp(z_y) has in the sum, sample by sample."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(z) for z in row)
        shares = label if isinstance(label, list) else [float(c == label) for c in range(len(row))]
        losses.append(-sum(share * math.log(math.exp(z) / total) for share, z in zip(shares, row, strict=True)))
    return torch.tensor(losses, dtype=torch.float64)


def scores(n=5, c=4, seed=0):
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def test_a_value_worked_by_hand():
    # softmax(ln 3, 0) = (3/4, 1/4): -ln(3/4) = 0.287682 for the first class, -ln(1/4) = 1.386294 for the second.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    losses = cross_entropy_loss(logits, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(losses, torch.tensor([0.287682, 1.386294]), atol=1e-6, rtol=0)


def test_it_equals_the_loop_for_integer_labels():
    labels = torch.tensor([0, 3, 1, 2, 0])
    torch.testing.assert_close(
        cross_entropy_loss(scores(), labels, reduction="none"), reference(scores(), labels), rtol=1e-12, atol=0
    )


def test_it_equals_the_loop_for_mixed_labels():
    labels = scores(seed=1).softmax(dim=1)
    torch.testing.assert_close(
        cross_entropy_loss(scores(), labels, reduction="none"), reference(scores(), labels), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("labels", [torch.tensor([0, 3, 1, 2, 0]), scores(seed=1).softmax(dim=1)])
def test_it_equals_torchs_own(labels):
    expected = torch.nn.CrossEntropyLoss()(scores(), labels)
    torch.testing.assert_close(cross_entropy_loss(scores(), labels), expected)


@pytest.mark.parametrize("labels", [torch.tensor([0, 3, 1, 2, 0]), scores(seed=1).softmax(dim=1)])
def test_the_gradient_is_right(labels):
    assert torch.autograd.gradcheck(lambda z: cross_entropy_loss(z, labels), scores().requires_grad_())


def test_one_hot_labels_equal_integers():
    labels = torch.tensor([0, 3, 1, 2, 0])
    one_hot = torch.nn.functional.one_hot(labels, 4).double()
    torch.testing.assert_close(cross_entropy_loss(scores(), one_hot), cross_entropy_loss(scores(), labels))


@pytest.mark.parametrize("label", [-100, -1, 4])
def test_no_label_is_ignored(label):
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropy_loss(scores(n=1), torch.tensor([label]))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match="labels are int64"):
        cross_entropy_loss(scores(), torch.zeros(4).long())


def test_labels_pick_or_average():
    values = torch.tensor([[1.0, 5.0], [2.0, 4.0]])
    assert label_average(values, torch.tensor([1, 0])).tolist() == [5.0, 2.0]
    assert label_average(values, torch.tensor([[0.5, 0.5], [0.25, 0.75]])).tolist() == [3.0, 3.5]
