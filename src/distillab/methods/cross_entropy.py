"""Learning from the labels alone: what a teacher trains with, and the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distillab.methods.base import Method, logits_of
from distillab.models.features import ModelOutput
from distillab.settings import Section
from distillab.tensors import Reduction, check_labels, check_logits, reduce_samples, widen


def label_average(values: Tensor, labels: Tensor) -> Tensor:
    """The right class's value of one value a class, or their average where labels are mixed.

    m_n = v_n[y_n] for integer labels, sum_c y_nc v_nc for probabilities.

    Args:
        values: [N, C], any unit.
        labels: [N] integers in 0..C-1 (torch raises an IndexError on the CPU for others), or [N, C]
            probabilities.

    Returns:
        [N], the unit of `values`.
    """
    if labels.is_floating_point():
        return (values * labels.to(values.dtype)).sum(dim=1)
    return values.gather(1, labels.long().unsqueeze(1)).squeeze(1)


def cross_entropy_loss(logits: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Surprise of the model at the labels.

    L = -sum_c y_c log softmax(z)_c, which is -log softmax(z)_y for an integer label y

    No label is ignored, unlike torch's own -100: a label outside 0..C-1 is a fault of the data.

    Args:
        logits: [N, C] raw scores, any float type; computed in float32 or wider.
        labels: [N] integers in 0..C-1, or [N, C] probabilities (mixup, label smoothing); rows sum to 1.
        reduction: "mean" over N, or "none".

    Returns:
        [] or [N], nats, >= 0.

    Raises:
        ShapeError: Logits are not [N, C] floats, or the labels do not belong to them.
        ConfigError: Unknown reduction (also a ValueError).
    """
    check_logits(logits=logits)
    check_labels(labels, logits, mixed=True)
    return reduce_samples(-label_average(F.log_softmax(widen(logits), dim=1), labels), reduction)


class CrossEntropyConfig(Section):
    """Learning from labels alone has no settings of its own."""


class CrossEntropy(Method[CrossEntropyConfig]):
    """The student alone: the labels and nothing else."""

    name = "cross_entropy"
    summary = "Labels only: teachers are trained so, and students alone, for comparison."
    source = "the baseline; no paper"
    Config = CrossEntropyConfig
    needs_teacher = False

    def terms(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor, progress: Tensor
    ) -> dict[str, Tensor]:
        """One term, "labels": the cross-entropy."""
        return {"labels": cross_entropy_loss(logits_of(student, "student"), labels, reduction="none")}


METHOD = CrossEntropy
