"""Settings of data: splits and augmentation. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillab.settings import Section

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SplitConfig(Section):
    """Which images train, validate and test."""

    validation_fraction: Fraction = Field(
        0.1, description="Share of the training images that is held out, class by class, to choose by."
    )
    test_fraction: Fraction = Field(
        0.2, description="Share held out for the test where a folder has no test images of its own."
    )
    seed: int = Field(0, ge=0, description="Seed of the split; apart from the run's, so that seeds share one split.")
    train_limit: int | None = Field(
        None, ge=1, description="Use only so many training images, the same share of every class."
    )


class AugmentConfig(Section):
    """Random changes of training images: teacher and student see the same ones."""

    crop_padding: int = Field(
        0, ge=0, description="Zero-pad by so many pixels and crop back at a random place; 0 is off."
    )
    horizontal_flip: bool = Field(False, description="Mirror every second image, at random.")
    cutout: int = Field(0, ge=0, description="Side of a square that is blanked, in pixels; 0 is off.")
    mixup: float = Field(
        0.0, ge=0.0, le=10.0, description="Mixup: alpha of the Beta(alpha, alpha) it mixes by; 0 is off."
    )
    cutmix: float = Field(
        0.0, ge=0.0, le=10.0, description="CutMix: alpha of the Beta(alpha, alpha) it cuts by; 0 is off."
    )

    @property
    def is_on(self) -> bool:
        """Whether anything is changed: else every view of an image is the same."""
        return any(self.model_dump().values())  # every change is off at zero
