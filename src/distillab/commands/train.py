"""`distillab train`."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from typing import Annotated

from distillab.commands.flags import EVERY_FIELD, AllowCode, DryRun, Injected, Json, Quiet, Recipe, Resume, flags_of
from distillab.commands.outcome import show_plan, show_run, started_with
from distillab.config import TrainConfig, resolve_train
from distillab.recipe import load_recipe

TrainFlags = flags_of(TrainConfig)


def train(
    *,
    settings: Annotated[TrainFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    recipe: Recipe = None,
    allow_code: AllowCode = False,
    dry_run: DryRun = False,
    resume: Resume = None,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Train one model alone, on labels: a teacher, an assistant, or the student that distillation has to beat."""
    screen.quiet, screen.json = quiet, json
    values = load_recipe(recipe, allow_code=allow_code) if recipe else {}
    config = resolve_train(values, settings or {})
    if dry_run:
        show_plan(screen, config, allow_code)
        return
    from distillab.resume import resume_or_run
    from distillab.run import run_one

    with screen.watching() as observer:
        begin = run_one if resume is None else resume_or_run
        result = begin(config, observer=observer, command=started_with(), allow_code=allow_code)
    show_run(screen, result)
