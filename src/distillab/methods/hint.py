"""Hints: the front part of the student learns to predict what a middle layer of the teacher says."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from distillab.adapters import build_regressor, match_size
from distillab.errors import ShapeError
from distillab.methods.base import Method, TuningRange
from distillab.models.features import ModelOutput, is_rectified
from distillab.settings import Section
from distillab.tensors import Reduction, describe, reduce_samples, widen


def hint_loss(student_feature: Tensor, teacher_feature: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Mean squared distance of the student's regressed feature from the teacher's.

    L = mean over the elements of a sample of (r(F_s) - F_t)^2

    Source: Romero et al. 2015, arXiv:1412.6550, section 2.2. The paper sums over elements and halves; the
    mean keeps the size of the loss, and so the learning rate, apart from the size of the layer.

    Args:
        student_feature: [N, D, H, W] or [N, D], any float type, already mapped to the teacher's space by a
            regressor r; computed in float32 or wider.
        teacher_feature: The same shape; constants, no gradient flows to them.
        reduction: "mean" over N, or "none".

    Returns:
        [] or [N], squared units of the teacher's feature, >= 0.

    Raises:
        ShapeError: The two are not floats of one shape with at least one element a sample.
        ConfigError: Unknown reduction (also a ValueError).
    """
    floats = student_feature.is_floating_point() and teacher_feature.is_floating_point()
    same = student_feature.shape == teacher_feature.shape
    if not (floats and same) or student_feature.ndim < 2 or student_feature.numel() == 0:
        raise ShapeError(
            f"student_feature is {describe(student_feature)}, teacher_feature {describe(teacher_feature)}, "
            "not floats of one shape [N, D, ...]",
            where="student_feature, teacher_feature",
            hint="distillab.adapters maps one to the other: build_regressor, then match_size",
        )
    difference = widen(student_feature) - widen(teacher_feature.detach())
    return reduce_samples(difference.square().flatten(1).mean(dim=1), reduction)


class HintConfig(Section):
    """Settings of hint training."""

    hint_layer: str | None = Field(
        None, description="Teacher's layer that gives the hint; the model's own, its middle, if not given."
    )
    guided_layer: str | None = Field(
        None, description="Student's layer that learns from it; the model's own, its middle, if not given."
    )
    hint_weight: Annotated[float, TuningRange(0.1, 10.0, log=True)] = Field(
        1.0, gt=0.0, allow_inf_nan=False, description="What the squared distance is multiplied by."
    )


class Hint(Method[HintConfig]):
    """Stage 1 of FitNets: only the student up to its guided layer, and the regressor, learn; no labels.

    The regressor is FitNets' convolution with BatchNorm; it ends in a ReLU only where the teacher's hint is
    never negative, since a ReLU cannot reach negative targets. Maps of two sizes are compared at the
    smaller.
    """

    name = "hint"
    summary = "The student's front part predicts a middle layer of the teacher (stage 1 of FitNets)."
    source = "Romero et al. 2015, arXiv:1412.6550"
    Config = HintConfig

    def layers(self) -> tuple[str | None, str | None]:
        """The hint layer of the teacher and the guided layer of the student."""
        return self.config.hint_layer, self.config.guided_layer

    def stops_at_layer(self) -> bool:
        """True: what lies behind the guided layer neither runs nor learns."""
        return True

    def adapter(self, student_feature: Tensor, teacher_feature: Tensor) -> nn.Module:
        """The regressor from the student's feature to the teacher's, made to fit these examples."""
        return build_regressor(student_feature, teacher_feature, rectified=is_rectified(teacher_feature))

    def terms(
        self, student: ModelOutput, teacher: ModelOutput | None, labels: Tensor, progress: Tensor
    ) -> dict[str, Tensor]:
        """One term, "hint"."""
        guided, hint = match_size(_feature_of(student, "student"), _feature_of(teacher, "teacher"))
        return {"hint": self.config.hint_weight * hint_loss(guided, hint, reduction="none")}


def _feature_of(output: ModelOutput | None, role: str) -> Tensor:
    """The one feature that a model was asked for, wide enough to be averaged."""
    features = [] if output is None else list(output.features.values())
    if len(features) != 1:
        raise ShapeError(
            f"a hint needs one layer of the {role}, got {len(features)}",
            where=role,
            hint="run both models with the layers that the method names",
        )
    return widen(features[0])


METHOD = Hint
