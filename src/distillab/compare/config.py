"""What a comparison may be asked for. Imports no torch."""

from __future__ import annotations

from pydantic import Field, field_validator

from distillab.settings import Section
from distillab.stages import PLANS


class ComparisonConfig(Section):
    """What is compared; how each row is trained is in the settings of a run."""

    methods: tuple[str, ...] = Field(
        tuple(PLANS), description="Plans of `distillab list methods`; all of them if not given."
    )
    seeds: int = Field(3, ge=1, le=1000, description="Seeds a row, counted from `seed`; five or more are better.")
    teacher_seeds: int = Field(
        1, ge=1, le=100, description="Repeat all of it over so many teachers, each trained from a seed of its own."
    )
    axis: tuple[str, ...] = Field(
        (), description="Settings to vary as well: distill.temperature=2,4 student=cnn12,cnn16"
    )
    tune: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Tune each row, the student alone as well, in so many trials on validation images (extra: tune).",
    )

    @field_validator("methods", "axis")
    @classmethod
    def _parted(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        """`st,mbd-soft` and `st mbd-soft` are the same; an axis holds commas of its own."""
        return tuple(part for word in words for part in ([word] if "=" in word else word.split(",")) if part)

    @field_validator("methods")
    @classmethod
    def _each_once(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods:
            raise ValueError("no method is named: name one at least, or leave it out for all of them")
        if len(set(methods)) < len(methods):
            raise ValueError(f"a method is named twice in {', '.join(methods)}: name each once")
        return methods
