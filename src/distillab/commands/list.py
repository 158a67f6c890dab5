"""`distillab list`: what there is to choose from. Imports no torch."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
import itertools
from collections.abc import Iterable
from typing import Any

from distillab.commands.flags import Injected, Json
from distillab.tables import records_table
from distillab.terminal import Screen


def list_methods(*, json: Json = False, screen: Injected) -> None:
    """The methods: which stages each has, in which order, and where it comes from."""
    from distillab.stages import PLANS

    records = [
        {
            "name": plan.name,
            "stages": [
                f"{hop}: {' then '.join(stage.method for stage in stages)}"
                for hop, stages in itertools.groupby(plan.stages, lambda s: f"{s.teacher} to {s.student}")
            ],
            "summary": plan.summary,
            "source": plan.source,
            "aliases": list(plan.aliases),
        }
        for plan in PLANS.values()
    ]
    _show("methods", records, screen, json, left_out=("aliases",))


def list_models(*, json: Json = False, screen: Injected) -> None:
    """The models: their classic roles, trainable parameters and multiply-adds (for ten classes)."""
    from distillab.models.catalog import MODELS

    records = [
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
    _show("models", records, screen, json)


def list_datasets(*, json: Json = False, screen: Injected) -> None:
    """The data sets that have a name; any folder of images does as well."""
    from distillab.data.catalog import DATASETS

    records = [
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
    _show("datasets", records, screen, json)


def list_recipes(*, json: Json = False, screen: Injected) -> None:
    """The shipped recipes, for `--recipe`."""
    from distillab.recipe import recipe_names, recipe_summary

    _show("recipes", [{"name": name, "summary": recipe_summary(name)} for name in recipe_names()], screen, json)


def _show(
    kind: str, records: list[dict[str, Any]], screen: Screen, json: bool, *, left_out: Iterable[str] = ()
) -> None:
    screen.json = json
    screen.show({kind: records}, records_table(records, [name for name in records[0] if name not in left_out]))
