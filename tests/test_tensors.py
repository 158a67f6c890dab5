import pytest
import torch

from distillab.errors import ConfigError, ShapeError
from distillab.tensors import (
    check_labels,
    check_logits,
    check_temperature,
    describe,
    reduce_samples,
    widen,
)


@pytest.mark.parametrize(
    "logits",
    [torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, 3).long()],
    ids=describe,
)
def test_what_is_not_a_row_of_scores_a_sample_is_refused_by_name(logits):
    with pytest.raises(ShapeError, match="teacher_logits are"):
        check_logits(student_logits=torch.zeros(2, 3), teacher_logits=logits)


@pytest.mark.parametrize("other", [(2, 4), (3, 3)])
def test_logits_of_two_shapes_are_refused_with_both_shapes(other):
    with pytest.raises(ShapeError) as caught:
        check_logits(student_logits=torch.zeros(2, 3), teacher_logits=torch.zeros(other))
    assert "[2, 3]" in str(caught.value)
    assert str(list(other)) in str(caught.value)


def test_types_may_differ_where_shapes_agree():
    check_logits(student_logits=torch.zeros(2, 3).half(), teacher_logits=torch.zeros(2, 3).double())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_labels_of_any_width_fit(dtype):
    for mixed in (True, False):
        check_labels(torch.zeros(2, dtype=dtype), torch.zeros(2, 3), mixed=mixed)


def test_probabilities_fit_only_where_labels_may_be_mixed():
    probabilities = torch.full((2, 3), 1 / 3)
    check_labels(probabilities, torch.zeros(2, 3), mixed=True)
    with pytest.raises(ShapeError, match=r"not \[2\] integers"):
        check_labels(probabilities, torch.zeros(2, 3), mixed=False)


@pytest.mark.parametrize(
    "labels",
    [
        torch.zeros(3).long(),
        torch.zeros(2, 1).long(),
        torch.zeros(2, 3).long(),
        torch.zeros(2),
        torch.zeros(2, 4),
        torch.zeros(2, dtype=torch.bool),
    ],
    ids=describe,
)
def test_labels_of_another_shape_or_type_are_refused(labels):
    with pytest.raises(ShapeError, match=r"\[2\] integers or \[2, 3\] probabilities"):
        check_labels(labels, torch.zeros(2, 3), mixed=True)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature):
    with pytest.raises(ValueError, match="not positive and finite"):
        check_temperature(temperature)


def test_half_types_are_widened_and_wide_types_kept():
    widened = [widen(torch.ones(1, dtype=dtype)).dtype for dtype in (torch.float16, torch.bfloat16)]
    assert widened == [torch.float32, torch.float32]
    assert widen(torch.ones(1)).dtype == torch.float32
    assert widen(torch.ones(1).double()).dtype == torch.float64


def test_a_reduction_is_the_mean_or_none():
    losses = torch.tensor([1.0, 3.0])
    assert reduce_samples(losses, "mean") == 2.0
    assert reduce_samples(losses, "none") is losses
    with pytest.raises(ConfigError, match="unknown reduction 'sum'"):
        reduce_samples(losses, "sum")
