"""Merit-based distillation: how much a sample's teacher is listened to depends on how right it is there."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from distillab.errors import ConfigError, nearest
from distillab.methods.base import Method, TuningRange, logits_of
from distillab.methods.cross_entropy import cross_entropy_loss, label_average
from distillab.methods.soft_target import soft_target_loss
from distillab.models.features import ModelOutput
from distillab.settings import Section
from distillab.tensors import Reduction, check_labels, check_logits, check_temperature, reduce_samples, widen

Variant = Literal["delta", "hard", "soft"]
DEFAULT_DELTA = 0.1


def merit_weights(
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    variant: Variant,
    temperature: float = 1.0,
    delta: float = DEFAULT_DELTA,
) -> Tensor:
    """Share of each sample's loss that goes to the teacher: its merit there.

    delta: a = 0.5 + delta where the teacher's argmax is the label, else 0.5 - delta
    hard:  a = 0.5 where the teacher's argmax is the label, else 0
    soft:  a = softmax(teacher / T)_y, the teacher's probability of the label

    With labels as probabilities, a is the average over them: a = sum_c y_c a_c. Where the teacher's largest
    logits tie, the first of these classes is its argmax.

    Source: Morikawa 2023, CNN Model Compression by Merit-based Distillation. Mixed labels are not in the
    paper.

    Args:
        teacher_logits: [N, C] raw scores; constants, no gradient flows to them.
        labels: [N] integers in 0..C-1, or [N, C] probabilities; rows sum to 1.
        variant: "delta", "hard" or "soft".
        temperature: T > 0, no unit; only "soft" reads it.
        delta: 0..0.5, no unit; only "delta" reads it.

    Returns:
        [N], 0..1, float32 or wider.

    Raises:
        ShapeError: Logits are not [N, C] floats, or the labels do not belong to them.
        ConfigError: Unknown variant, temperature not positive and finite, or delta outside 0..0.5 (also a
            ValueError).
    """
    check_logits(teacher_logits=teacher_logits)
    check_labels(labels, teacher_logits, mixed=True)
    check_temperature(temperature)
    if not 0.0 <= delta <= 0.5:
        raise ConfigError(f"delta {delta} is not in 0..0.5", where="delta", hint="0.1 is usual")
    logits = widen(teacher_logits.detach())
    if variant == "soft":
        return label_average(F.softmax(logits / temperature, dim=1), labels)
    classes = torch.arange(logits.shape[1], device=logits.device)
    chosen = (logits.argmax(dim=1, keepdim=True) == classes).to(logits.dtype)  # [N, C]
    right = label_average(chosen, labels)  # [N], 1 where the teacher is right, 0 where wrong, between if mixed
    if variant == "delta":
        return 0.5 + delta * (2.0 * right - 1.0)
    if variant == "hard":
        return 0.5 * right
    raise ConfigError(f"unknown variant '{variant}'", where="variant", hint=nearest(str(variant), get_args(Variant)))


def merit_based_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    variant: Variant,
    temperature: float = 1.0,
    delta: float = DEFAULT_DELTA,
    reduction: Reduction = "mean",
) -> Tensor:
    """Labels and soft targets, weighed sample by sample by the teacher's merit.

    L = (1 - a) * CE(student, y) + a * T^2 * KL( softmax(teacher / T) || softmax(student / T) )

    with a from `merit_weights`: the teacher counts for more where it is right.

    Source: Morikawa 2023, CNN Model Compression by Merit-based Distillation.

    Args:
        student_logits: [N, C] raw scores, any float type; computed in float32 or wider.
        teacher_logits: [N, C] raw scores; constants, no gradient flows to them.
        labels: [N] integers in 0..C-1, or [N, C] probabilities; rows sum to 1.
        variant: "delta", "hard" or "soft".
        temperature: T > 0, no unit; of the divergence, and of the merit of "soft".
        delta: 0..0.5, no unit; only "delta" reads it.
        reduction: "mean" over N, or "none".

    Returns:
        [] or [N], nats, >= 0.

    Raises:
        ShapeError: The two are not both floats [N, C] with the same N and C, or the labels do not belong to
            them.
        ConfigError: Unknown variant or reduction, temperature not positive and finite, delta outside 0..0.5
            (also a ValueError).
    """
    by_labels, by_teacher = _merit_based_parts(
        student_logits, teacher_logits, labels, variant=variant, temperature=temperature, delta=delta
    )
    return reduce_samples(by_labels + by_teacher, reduction)


def _merit_based_parts(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    variant: Variant,
    temperature: float,
    delta: float,
) -> tuple[Tensor, Tensor]:
    """The part of the labels and the part of the teacher, [N] each; together they are the loss."""
    imitation = soft_target_loss(student_logits, teacher_logits, temperature=temperature, reduction="none")
    weights = merit_weights(teacher_logits, labels, variant=variant, temperature=temperature, delta=delta)
    surprise = cross_entropy_loss(student_logits, labels, reduction="none")
    return (1.0 - weights) * surprise, weights * imitation


class MeritBasedConfig(Section):
    """Settings of merit-based distillation."""

    variant: Variant = Field(
        "delta",
        description="The teacher's share where it is right or wrong: 0.5 + delta or 0.5 - delta (delta), 0.5 or "
        "0 (hard), its probability of the label (soft).",
    )
    temperature: Annotated[float, TuningRange(0.5, 8.0, log=True)] = Field(
        1.0, gt=0.0, allow_inf_nan=False, description="Softens both distributions, and the merit of `soft`."
    )
    delta: Annotated[float | None, TuningRange(0.0, 0.5)] = Field(
        None,
        ge=0.0,
        le=0.5,
        description=f"variant delta only: how far merit departs from a half; {DEFAULT_DELTA} if not given.",
    )

    @model_validator(mode="after")
    def _delta_must_count(self) -> Self:
        if self.delta is not None and self.variant != "delta":
            raise ValueError(f"delta has no effect with variant '{self.variant}': leave it out, or use variant 'delta'")
        return self


class MeritBased(Method[MeritBasedConfig]):
    """Labels where the teacher is wrong, the teacher where it is right."""

    name = "merit_based"
    summary = "Weighs labels and teacher sample by sample, by how right the teacher is."
    source = "Morikawa 2023, CNN Model Compression by Merit-based Distillation"
    Config = MeritBasedConfig

    def terms(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor, progress: Tensor
    ) -> dict[str, Tensor]:
        """The terms "merit_labels", (1 - a) * CE, and "merit_soft_targets", a * T^2 * KL."""
        config = self.config
        by_labels, by_teacher = _merit_based_parts(
            logits_of(student, "student"),
            logits_of(teacher, "teacher"),
            labels,
            variant=config.variant,
            temperature=config.temperature,
            delta=DEFAULT_DELTA if config.delta is None else config.delta,
        )
        return {"merit_labels": by_labels, "merit_soft_targets": by_teacher}


METHOD = MeritBased
