import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from distillab.errors import ConfigError, ShapeError
from distillab.evaluation.metrics import (
    accuracy_where_teacher_wrong,
    agreement,
    divergence,
    expected_calibration_error,
    negative_log_likelihood,
    noise_in_words,
    top_k_accuracy,
    wilson_interval,
)

examples = settings(derandomize=True, max_examples=25, deadline=None)


def made_up(n=200, c=10, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, generator=source) * 2, torch.randint(c, (n,), generator=source)


@examples
@given(n=st.integers(1, 60), c=st.integers(2, 12), seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_top_k_accuracy_equals_torchmetrics(n, c, seed, k):
    logits, labels = made_up(n, c, seed)
    expected = multiclass_accuracy(logits, labels, num_classes=c, top_k=min(k, c), average="micro")
    assert top_k_accuracy(logits, labels, k).item() == pytest.approx(expected.item(), abs=1e-6)


def test_top_1_of_ties_is_argmax():
    logits, labels = made_up()
    coarse = logits.round()
    expected = (coarse.argmax(dim=1) == labels).double().mean()
    assert top_k_accuracy(coarse, labels, 1) == expected


def test_a_model_that_says_the_same_of_every_class_has_chance_accuracy():
    labels = torch.arange(10)
    assert top_k_accuracy(torch.zeros(10, 10), labels, 1) == 0.1
    assert top_k_accuracy(torch.zeros(10, 10), labels, 3) == 0.3


def test_more_places_than_classes_hold_every_label():
    assert top_k_accuracy(*made_up(c=3), 5) == 1.0


def test_a_model_that_says_nothing_is_never_right():
    assert top_k_accuracy(torch.full((4, 3), math.nan), torch.tensor([0, 1, 2, 0]), 3) == 0.0


def test_top_zero_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        top_k_accuracy(*made_up(), 0)


def test_likelihood_by_hand():
    # softmax(ln 3, 0) = (3/4, 1/4): the mean of -ln(3/4) and -ln(1/4) is 0.836988.
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    assert negative_log_likelihood(logits, torch.tensor([0, 1])).item() == pytest.approx(0.836988, abs=1e-6)


def test_likelihood_equals_torchs_own():
    logits, labels = made_up()
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    torch.testing.assert_close(negative_log_likelihood(logits, labels), expected)


def test_likelihood_is_finite_where_probabilities_underflow():
    assert negative_log_likelihood(torch.tensor([[0.0, 3e4]]), torch.tensor([0])) == 3e4


@examples
@given(n=st.integers(1, 100), c=st.integers(2, 12), seed=st.integers(0, 1000), bins=st.sampled_from([1, 4, 15]))
def test_calibration_equals_torchmetrics(n, c, seed, bins):
    logits, labels = made_up(n, c, seed)
    probabilities = logits.double().softmax(dim=1)  # it would take logits that all lie in 0..1 for probabilities
    expected = multiclass_calibration_error(probabilities, labels, num_classes=c, n_bins=bins, norm="l1")
    assert expected_calibration_error(logits, labels, bins=bins).item() == pytest.approx(expected.item(), abs=1e-6)


def test_calibration_equals_the_loop_over_bins():
    logits, labels = made_up()
    rows = logits.double().softmax(dim=1).tolist()
    total = 0.0
    for m in range(1, 16):
        inside = [(max(r), r.index(max(r)) == y) for r, y in zip(rows, labels.tolist(), strict=True)]
        inside = [(conf, right) for conf, right in inside if (m - 1) / 15 < conf <= m / 15]
        if inside:
            accuracy = sum(right for _, right in inside) / len(inside)
            confidence = sum(conf for conf, _ in inside) / len(inside)
            total += len(inside) / 200 * abs(accuracy - confidence)
    assert expected_calibration_error(logits, labels).item() == pytest.approx(total, abs=1e-12)


def test_a_model_that_is_sure_and_right_is_calibrated_and_one_sure_and_wrong_is_not():
    sure = torch.tensor([[1e3, 0.0], [0.0, 1e3]])
    assert expected_calibration_error(sure, torch.tensor([0, 1])) == 0.0
    assert expected_calibration_error(sure, torch.tensor([1, 0])) == 1.0
    assert expected_calibration_error(sure, torch.tensor([0, 0])) == 0.5


def test_a_confidence_on_an_edge_belongs_to_the_part_below():
    # Halves (0, 1/2] and (1/2, 1]: one sample says 1/2 and is right, one says 3/4 and is wrong. Apart they miss by
    # 1/2 and 3/4, 0.625 on average; together they would make up for each other.
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    found = expected_calibration_error(logits, torch.tensor([0, 1]), bins=2)
    assert found.item() == pytest.approx(0.625, abs=1e-6)


def test_no_bins_are_refused():
    with pytest.raises(ConfigError, match="bins"):
        expected_calibration_error(*made_up(), bins=0)


def test_agreement_is_the_share_of_equal_choices():
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    teacher = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 9.0], [0.0, 9.0]])
    assert agreement(student, teacher) == 0.75
    assert agreement(student, 5 * student) == 1.0


def test_divergence_equals_the_loop_and_is_the_teachers_from_the_student():
    student, teacher = made_up(7, 3, 0)[0], made_up(7, 3, 1)[0]
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(z) / sum(math.exp(x) for x in t) for z in t]
        q = [math.exp(z) / sum(math.exp(x) for x in s) for z in s]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 7
    assert divergence(student, teacher).item() == pytest.approx(total, rel=1e-9)
    assert divergence(teacher, student).item() != pytest.approx(total, rel=1e-3)
    assert divergence(student, student + 4.0).item() == pytest.approx(0.0, abs=1e-6)


def test_accuracy_where_the_teacher_is_wrong_counts_only_those():
    labels = torch.tensor([0, 0, 1, 1])
    teacher = torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0]), 2).float()  # wrong on the last three
    student = torch.nn.functional.one_hot(torch.tensor([1, 0, 1, 0]), 2).float()  # right on two of them
    assert accuracy_where_teacher_wrong(student, teacher, labels).item() == pytest.approx(2 / 3)


def test_accuracy_where_the_teacher_is_wrong_is_nan_if_it_never_is():
    labels = torch.tensor([0, 1])
    right = torch.nn.functional.one_hot(labels, 2).float()
    assert accuracy_where_teacher_wrong(right, right, labels).isnan()


@pytest.mark.parametrize(
    "metric", [lambda x, y: top_k_accuracy(x, y, 1), negative_log_likelihood, expected_calibration_error]
)
def test_labels_that_do_not_belong_to_the_logits_are_refused(metric):
    logits, labels = made_up()
    for wrong in (labels[:-1], labels.float(), logits.softmax(dim=1)):
        with pytest.raises(ShapeError, match="labels are"):
            metric(logits, wrong)


@pytest.mark.parametrize("metric", [agreement, divergence])
def test_a_teacher_of_other_classes_is_refused(metric):
    with pytest.raises(ShapeError, match="differ in shape"):
        metric(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_of_half_precision_are_summed_wide(dtype):
    logits, labels = made_up()
    narrow = logits.to(dtype)
    for metric in (negative_log_likelihood, expected_calibration_error):
        assert metric(narrow, labels).dtype == torch.float64
        torch.testing.assert_close(metric(narrow, labels), metric(narrow.double(), labels))


@examples
@given(n=st.integers(1, 20_000), share=st.floats(0, 1))
def test_the_interval_is_wilsons(n, share):
    from scipy.stats import binomtest

    right = round(share * n)
    expected = binomtest(right, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("accuracy", "n"), [(1.1, 10), (-0.1, 10), (0.5, 0)])
def test_an_impossible_interval_is_refused(accuracy, n):
    with pytest.raises(ConfigError, match="no interval"):
        wilson_interval(accuracy, n)


def test_the_noise_of_a_table_is_told_in_words():
    # 350 of 360: Wilson's 95 % interval is 0.9496..0.9848, half of it 1.76 points; times sqrt(2), 2.5 points.
    words = noise_in_words(350 / 360, 360)
    assert words.startswith(
        "With 360 test images one image is 0.28 points and the 95 % interval of an accuracy near 97.2 % is "
        "about ±1.8 points: a difference of two rows below about 2.5 points is noise"
    )
    assert "same ones" in words
    assert "\n" not in words


def test_a_larger_test_set_is_less_noisy():
    assert "With 10,000 test images one image is 0.01 points" in noise_in_words(0.9, 10_000)
    assert "about ±0.59 points" in noise_in_words(0.9, 10_000)
    assert "one image is 100 points" in noise_in_words(1.0, 1)
