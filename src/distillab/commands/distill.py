"""`distillab distill`."""

# cyclopts reads annotations as they stand, closures included: so there is no `from __future__ import annotations` here.
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import App, CycloptsError

from distillab.commands.flags import EVERY_FIELD, AllowCode, DryRun, Injected, Json, Quiet, Recipe, Resume, flags_of
from distillab.commands.outcome import show_plan, show_run, started_with
from distillab.config import DistillConfig, resolve_distill
from distillab.recipe import load_recipe
from distillab.settings import validated
from distillab.stages import find_plan, plan_options

HELP_WORDS = frozenset(("--help", "-h"))


def distill_command(flags: Any) -> Callable[..., None]:
    """The verb `distill` with the flags of one method, or of none in particular."""

    def distill(
        *,
        settings: Annotated[flags | None, EVERY_FIELD] = None,
        recipe: Recipe = None,
        allow_code: AllowCode = False,
        dry_run: DryRun = False,
        resume: Resume = None,
        quiet: Quiet = False,
        json: Json = False,
        screen: Injected,
    ) -> None:
        """Distil a teacher into a student, by any method; a teacher that is only named is trained first."""
        screen.quiet, screen.json = quiet, json
        values = load_recipe(recipe, allow_code=allow_code) if recipe else {}
        config = resolve_distill(values, settings or {})
        if dry_run:
            show_plan(screen, config, allow_code)
            return
        from distillab.resume import resume_or_run
        from distillab.run import run_one

        with screen.watching() as observer:
            begin = run_one if resume is None else resume_or_run
            result = begin(config, observer=observer, command=started_with(), allow_code=allow_code)
        show_run(screen, result)

    return distill


GeneralFlags = flags_of(DistillConfig)
"""Flags without those of a method."""

distill = distill_command(GeneralFlags)
"""What completion knows of the verb."""


def distill_flags(words: Sequence[str]) -> Any:
    """Flags of `distill`, the method's own among them: those of `--method`, else of the recipe's method.

    Help without `--method` shows `--distill` as a whole, since a method's settings are found in its file, which
    imports torch.

    Args:
        words: Of the command line, after the verb.

    Raises:
        ConfigError: No such method or recipe.
    """
    if not HELP_WORDS.isdisjoint(words) and not any(word.partition("=")[0] == "--method" for word in words):
        return GeneralFlags
    chosen: dict[str, Any] = {}
    probe = App(help_flags=(), version_flags=(), exit_on_error=False, print_error=False, verbose=False)

    @probe.default
    def choose(*, method: str | None = None, recipe: str | None = None) -> None:
        chosen.update(method=method, recipe=recipe)

    try:
        command, bound, *_ = probe.parse_known_args(list(words))
    except CycloptsError:
        return GeneralFlags  # with these the same complaint comes again, by its proper name
    command(*bound.args, **bound.kwargs)
    # Whether its code may run is decided when the recipe is used; here only the method's name is of interest.
    values = load_recipe(chosen["recipe"], allow_code=True) if chosen["recipe"] else {}
    named: dict[str, Any] = {key: values[key] for key in ("method", "stages") if key in values}
    if chosen["method"]:
        named["method"] = chosen["method"]
    config = validated(DistillConfig, named)
    plan = find_plan(config.method, config.stages)
    return flags_of(DistillConfig, replaced={"distill": plan_options(plan)})
