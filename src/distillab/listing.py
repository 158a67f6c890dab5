"""What there is to choose from: records for `distillab list`."""

from __future__ import annotations

import itertools
from typing import Any


def methods() -> list[dict[str, Any]]:
    """The plans, with the stages that each student goes through. Imports no torch."""
    from distillab.stages import PLANS

    return [
        {
            "name": plan.name,
            "aliases": list(plan.aliases),
            "stages": [
                f"{hop}: {' then '.join(stage.method for stage in stages)}"
                for hop, stages in itertools.groupby(plan.stages, lambda s: f"{s.teacher} to {s.student}")
            ],
            "summary": plan.summary,
            "source": plan.source,
        }
        for plan in PLANS.values()
    ]


def models() -> list[dict[str, Any]]:
    """The models with a name of their own, and what they cost for ten classes. Imports no torch."""
    from distillab.models.catalog import MODELS

    return [
        {
            "name": info.name,
            "role": info.role,
            "family": info.family,
            "parameters": info.parameters,
            "macs": info.macs,
            "summary": info.summary,
        }
        for info in MODELS.values()
    ]


def datasets() -> list[dict[str, Any]]:
    """The data sets with a name of their own. Imports no torch."""
    from distillab.data.catalog import DATASETS

    return [
        {
            "name": info.name,
            "classes": info.num_classes,
            "train": info.num_train,
            "test": info.num_test,
            "size": f"{info.image_size}x{info.image_size}",
            "summary": info.summary,
            "origin": info.origin,
        }
        for info in DATASETS.values()
    ]


def recipes() -> list[dict[str, Any]]:
    """The shipped recipes. Imports no torch."""
    from distillab.recipe import recipe_names, recipe_summary

    return [{"name": name, "summary": recipe_summary(name)} for name in recipe_names()]
