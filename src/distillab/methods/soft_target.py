"""Knowledge distillation as it began: the student imitates the teacher's softened class distribution."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from distillab.methods.base import Method, TuningRange, logits_of
from distillab.methods.cross_entropy import cross_entropy_loss
from distillab.models.features import ModelOutput
from distillab.settings import Section
from distillab.tensors import Reduction, check_logits, check_temperature, reduce_samples, widen


def soft_target_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float, reduction: Reduction = "mean"
) -> Tensor:
    """Divergence of the student's softened class distribution from the teacher's.

    L = T^2 * KL( softmax(teacher / T) || softmax(student / T) )

    Source: Hinton, Vinyals, Dean 2015, arXiv:1503.02531, section 2. The paper minimises the cross-entropy
    of the two, which has the same gradient and differs by the teacher's entropy; T^2 keeps the gradient's
    size as T grows.

    Args:
        student_logits: [N, C] raw scores, any float type; computed in float32 or wider.
        teacher_logits: [N, C] raw scores; constants, no gradient flows to them.
        temperature: T > 0, no unit.
        reduction: "mean" over N, or "none".

    Returns:
        [] or [N], nats times T^2, >= 0; zero, but for rounding, exactly where the rows differ by a constant
        only.

    Raises:
        ShapeError: The two are not both floats [N, C] with the same N and C.
        ConfigError: Temperature is not positive and finite, or unknown reduction (also a ValueError).
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    check_temperature(temperature)
    log_student = F.log_softmax(widen(student_logits) / temperature, dim=1)  # [N, C]
    log_teacher = F.log_softmax(widen(teacher_logits.detach()) / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)  # [N]
    return reduce_samples(divergence * temperature**2, reduction)


class SoftTargetConfig(Section):
    """Settings of soft-target distillation."""

    temperature: Annotated[float, TuningRange(1.0, 16.0, log=True)] = Field(
        4.0, gt=0.0, allow_inf_nan=False, description="Softens both distributions; 1 leaves them as they are."
    )
    label_weight: Annotated[float, TuningRange(0.01, 1.0, log=True)] = Field(
        0.1, ge=0.0, allow_inf_nan=False, description="Weight of the labels' cross-entropy; 0 leaves it out."
    )
    distill_weight: Annotated[float, TuningRange(0.1, 2.0, log=True)] = Field(
        0.9, ge=0.0, allow_inf_nan=False, description="Weight of the teacher's soft targets."
    )
    distill_weight_start: float | None = Field(
        None,
        ge=0.0,
        allow_inf_nan=False,
        description="If given, the weight goes from it to distill_weight, evenly over the stage.",
    )

    @model_validator(mode="after")
    def _teacher_must_count(self) -> Self:
        if not self.distill_weight and not self.distill_weight_start:
            raise ValueError(
                "distill_weight 0 leaves the teacher out: give it a weight, or use the method cross_entropy"
            )
        return self


class SoftTarget(Method[SoftTargetConfig]):
    """Labels and soft targets: label_weight * CE + distill_weight * T^2 * KL.

    FitNets' second stage weighs the soft targets by a lambda that falls linearly from 4 to 1 (Romero et al.
    2015, arXiv:1412.6550): `label_weight=1, distill_weight_start=4, distill_weight=1`. With p the share of
    the stage that is done, w(p) = start + p * (distill_weight - start). The paper's soft term lacks T^2,
    ours has it.
    """

    name = "soft_target"
    summary = "The student imitates the teacher's softened class probabilities."
    source = "Hinton, Vinyals, Dean 2015, arXiv:1503.02531"
    Config = SoftTargetConfig

    def terms(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor, progress: Tensor
    ) -> dict[str, Tensor]:
        """The terms "soft_targets", and "labels" unless their weight is 0."""
        config = self.config
        logits = logits_of(student, "student")
        terms = {}
        if config.label_weight:
            terms["labels"] = config.label_weight * cross_entropy_loss(logits, labels, reduction="none")
        divergence = soft_target_loss(
            logits, logits_of(teacher, "teacher"), temperature=config.temperature, reduction="none"
        )
        terms["soft_targets"] = self._distill_weight(progress) * divergence
        return terms

    def _distill_weight(self, progress: Tensor) -> Tensor | float:
        start, end = self.config.distill_weight_start, self.config.distill_weight
        return end if start is None else start + progress * (end - start)


METHOD = SoftTarget
