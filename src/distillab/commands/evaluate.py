"""`distillab evaluate`: what a saved model is worth."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab.commands.flags import (
    EVERY_FIELD,
    AllowCode,
    Architecture,
    BatchSize,
    Injected,
    Json,
    Quiet,
    Source,
    flags_of,
)
from distillab.commands.outcome import results_table
from distillab.config import RunConfig, merged
from distillab.recipe import load_recipe
from distillab.settings import validated

_FIELDS = ("data", "data_dir", "offline", "image_size", "device", "threads", "split")
EvaluateFlags = flags_of(RunConfig, only=_FIELDS)


def evaluate(
    source: Source,
    /,
    *,
    settings: Annotated[EvaluateFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    model: Architecture = None,
    teacher: Annotated[str | None, Parameter(help="Run folder or weight file to compare with.")] = None,
    teacher_model: Architecture = None,
    batch_size: BatchSize = 512,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Measure a saved model on the test images: by default those of the run that it comes from."""
    from distillab.inference import evaluate_file

    screen.quiet, screen.json = quiet, json
    config = validated(RunConfig, merged(settings_of_run(source, allow_code), settings or {}))
    with screen.watching() as observer:
        result = evaluate_file(
            str(source),
            config,
            teacher=teacher,
            teacher_model=teacher_model,
            model=model,
            batch_size=batch_size,
            allow_code=allow_code,
            observer=observer,
        )
    row = {"model": source.name, **result["test"], **result["cost"]}
    screen.show(result, results_table([row]), result["noise"])


def settings_of_run(source: Path, allow_code: bool) -> dict[str, Any]:
    """What the run that weights come from says of evaluation.

    Args:
        source: A run folder, or a weight file in one.
        allow_code: Let it name functions of packages.

    Returns:
        Values of `RunConfig`; none where the weights stand alone.
    """
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.toml").is_file():
        return {}
    recipe = load_recipe(str(folder), allow_code=allow_code)
    precision = {key: value for key, value in recipe.get("training", {}).items() if key == "precision"}
    return {"training": precision, **{key: value for key, value in recipe.items() if key in _FIELDS}}
