"""How good a classifier is: pure functions of logits and labels, in float64; and how sure that is."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from distillab.errors import ConfigError
from distillab.tensors import check_labels, check_logits

_Z = NormalDist().inv_cdf(0.975)  # 95 % of a normal distribution lies within so many deviations


def top_k_accuracy(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Share of samples whose label is among the k classes with the largest logits.

    Of equal logits the first class counts as larger, as in argmax, so a model that says the same of every
    class gains nothing by it. A logit that is NaN counts against the model.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.
        k: >= 1; more than C is the same as C.

    Returns:
        [] float64, 0..1.

    Raises:
        ShapeError: Logits and labels do not belong together.
        ConfigError: k is less than 1 (also a ValueError).
    """
    _check(logits, labels)
    if k < 1:
        raise ConfigError(f"top-{k} accuracy needs a k of at least 1", where="k")
    label = labels.long().unsqueeze(1)  # [N, 1]
    own = logits.gather(1, label)
    classes = torch.arange(logits.shape[1], device=logits.device)
    keeps_up = (own > logits) | ((own == logits) & (label <= classes))  # [N, C], true at the label itself
    rank = (~keeps_up).sum(dim=1)
    return (rank < k).double().mean()


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean surprise at the labels: -log softmax(z)_y.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.

    Returns:
        [] float64, nats, >= 0.

    Raises:
        ShapeError: Logits and labels do not belong together.
    """
    _check(logits, labels)
    return -_log_probabilities(logits).gather(1, labels.long().unsqueeze(1)).mean()


def expected_calibration_error(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Tensor:
    """How far confidence and accuracy lie apart.

    ECE = sum_m (n_m / N) * |accuracy_m - confidence_m| over `bins` equal parts of 0..1, part m being
    ((m - 1) / bins, m / bins]

    Source: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, section 2. torchmetrics' l1 norm is the
    same, but for confidences that lie on an edge to the last bit.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.
        bins: >= 1.

    Returns:
        [] float64, 0..1.

    Raises:
        ShapeError: Logits and labels do not belong together.
        ConfigError: No bins (also a ValueError).
    """
    _check(logits, labels)
    if bins < 1:
        raise ConfigError(f"calibration in {bins} bins cannot be measured", where="bins", hint="15 is usual")
    confidence, choice = _log_probabilities(logits).exp().max(dim=1)  # [N]
    gap = confidence - (choice == labels).double()
    part = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    # A product with the membership matrix is deterministic on every device, a scattered sum is not.
    membership = F.one_hot(part, bins).double()  # [N, bins]
    return (gap @ membership).abs().sum() / len(gap)


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Share of samples for which student and teacher choose the same class.

    Args:
        student_logits: [N, C] raw scores.
        teacher_logits: [N, C] raw scores.

    Returns:
        [] float64, 0..1.

    Raises:
        ShapeError: The two are not both [N, C] with the same N and C.
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    return (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean()


def divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean divergence of the student's class distribution from the teacher's, as they are (temperature 1).

    KL( softmax(teacher) || softmax(student) )

    Args:
        student_logits: [N, C] raw scores.
        teacher_logits: [N, C] raw scores.

    Returns:
        [] float64, nats, >= 0.

    Raises:
        ShapeError: The two are not both [N, C] with the same N and C.
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    log_student, log_teacher = _log_probabilities(student_logits), _log_probabilities(teacher_logits)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def accuracy_where_teacher_wrong(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Top-1 of the student on the samples that the teacher gets wrong: what it does not owe to the teacher.

    Args:
        student_logits: [N, C] raw scores.
        teacher_logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.

    Returns:
        [] float64, 0..1; NaN where the teacher makes no mistake.

    Raises:
        ShapeError: Logits and labels do not belong together.
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_labels(labels, student_logits, mixed=False)
    wrong = teacher_logits.argmax(dim=1) != labels
    right = student_logits.argmax(dim=1) == labels
    return (right & wrong).sum().double() / wrong.sum()


def wilson_interval(accuracy: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval for the accuracy on all images of the kind, given that on n of them.

    Source: Wilson 1927, Journal of the American Statistical Association 22, 209-212.

    Args:
        accuracy: Share of the n images that was right, 0..1.
        n: Number of test images, >= 1.

    Returns:
        (low, high), each 0..1.

    Raises:
        ConfigError: A value is outside its range (also a ValueError).
    """
    if n < 1 or not 0.0 <= accuracy <= 1.0:
        raise ConfigError(
            f"no interval for an accuracy of {accuracy} on {n} images",
            where="accuracy, n",
            hint="accuracy 0..1, at least one image",
        )
    # Written out, as every run ends with it: scipy.stats takes most of a second to import.
    share, weight = round(accuracy * n) / n, _Z**2 / n
    centre = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def noise_in_words(accuracy: float, n: int) -> str:
    """How large the noise of a test set of this size is, for the foot of a table.

    The interval is Wilson's at 95 %, half of its width. For the difference of two rows it is taken times
    sqrt(2), as if their errors fell on independent images. Rows of one table share their images, and often
    their errors, so the true noise of a difference is usually smaller; the spread over seeds is not in it.

    Args:
        accuracy: A typical accuracy of the table, 0..1.
        n: Number of test images, >= 1.

    Returns:
        One sentence.

    Raises:
        ConfigError: A value is outside its range (also a ValueError).
    """
    low, high = wilson_interval(accuracy, n)
    half = (high - low) / 2
    noise = math.sqrt(2) * half
    return (
        f"With {n:,} test images one image is {_points(1 / n)} points and the 95 % interval of an accuracy "
        f"near {100 * accuracy:.1f} % is about ±{_points(half)} points: a difference of two rows below about "
        f"{_points(noise)} points is noise (as if they erred on independent images; on the same "
        "ones it is usually a little less, and the spread over seeds comes on top)."
    )


def _points(share: float) -> str:
    """Percentage points to two digits, without an exponent."""
    return f"{float(f'{100 * share:.2g}'):g}"


def _check(logits: Tensor, labels: Tensor) -> None:
    check_logits(logits=logits)
    check_labels(labels, logits, mixed=False)


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits.double(), dim=1)
