"""`distillab train` and `distillab distill`."""

# cyclopts reads annotations as they stand, closures included: so there is no `from __future__ import annotations` here.
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from distillab.commands.flags import COMMAND, EVERY_FIELD, AllowCode, Injected, Json, Quiet, Recipe, flags_of
from distillab.config import DistillConfig, TrainConfig, load_recipe, resolve_distill, resolve_train
from distillab.report.table import Table, plan_tables, results_table, run_rows
from distillab.settings import validated
from distillab.stages import find_plan, plan_options
from distillab.terminal import Screen

DryRun = Annotated[
    bool, Parameter(negative="", show_default=False, group=COMMAND, help="Build everything, show the plan, train nothing.")
]
TrainFlags = flags_of(TrainConfig)
HELP_WORDS = frozenset(("--help", "-h"))


def train(
    *,
    settings: Annotated[TrainFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    recipe: Recipe = None,
    allow_code: AllowCode = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Train one model alone, on labels: a teacher, an assistant, or the student that distillation has to beat."""
    screen.quiet, screen.json = quiet, json
    values = load_recipe(recipe, allow_code=allow_code) if recipe else {}
    config = resolve_train(values, settings or {})
    if dry_run:
        _show_plan(screen, config, allow_code)
        return
    from distillab.run import run_train

    with screen.watching() as observer:
        result = run_train(config, observer=observer, command=_command(), allow_code=allow_code)
    show_run(screen, result.summary)


def distill_command(flags: Any) -> Callable[..., None]:
    """The verb `distill` with the flags of one method, or of none in particular."""

    def distill(
        *,
        settings: Annotated[flags | None, EVERY_FIELD] = None,
        recipe: Recipe = None,
        allow_code: AllowCode = False,
        dry_run: DryRun = False,
        quiet: Quiet = False,
        json: Json = False,
        screen: Injected,
    ) -> None:
        """Distil a teacher into a student, by any method; a teacher that is only named is trained first."""
        screen.quiet, screen.json = quiet, json
        values = load_recipe(recipe, allow_code=allow_code) if recipe else {}
        config = resolve_distill(values, settings or {})
        if dry_run:
            _show_plan(screen, config, allow_code)
            return
        from distillab.run import run_distill

        with screen.watching() as observer:
            result = run_distill(config, observer=observer, command=_command(), allow_code=allow_code)
        show_run(screen, result.summary)

    return distill


distill = distill_command(flags_of(DistillConfig))
"""The verb with the flags of no method in particular: what completion knows."""


def distill_flags(words: Sequence[str]) -> Any:
    """Flags of `distill`, the method's own among them: those of `--method`, else of the recipe's method.

    Help without `--method` shows `--distill` as a whole, since a method's settings are found in its file, which
    imports torch.

    Args:
        words: Of the command line, after the verb.

    Raises:
        ConfigError: No such method or recipe.
    """
    chosen: dict[str, Any] = {}
    probe = App(help_flags=(), version_flags=(), exit_on_error=False, print_error=False, verbose=False)

    @probe.default
    def choose(*, method: str | None = None, recipe: str | None = None) -> None:
        chosen.update(method=method, recipe=recipe)

    command, bound, *_ = probe.parse_known_args(list(words))
    command(*bound.args, **bound.kwargs)
    if chosen["method"] is None and not HELP_WORDS.isdisjoint(words):
        return flags_of(DistillConfig)
    # Whether its code may run is decided when the recipe is used; here only the method's name is of interest.
    values = load_recipe(chosen["recipe"], allow_code=True) if chosen["recipe"] else {}
    named = {key: values[key] for key in ("method", "stages") if key in values}
    if chosen["method"]:
        named["method"] = chosen["method"]
    config = validated(DistillConfig, named)
    plan = find_plan(config.method, config.stages)
    return flags_of(DistillConfig, replaced={"distill": plan_options(plan)})


def show_run(screen: Screen, summary: Mapping[str, Any]) -> None:
    """Show what a run has come to."""
    parts: list[Table | str] = [results_table(run_rows(summary)), summary["noise"]]
    result = dict(summary)
    if screen.run_dir is not None:
        result["run_dir"] = str(screen.run_dir)
        parts.append(f"run folder: {screen.run_dir}")
    screen.show(result, *parts)


def _show_plan(screen: Screen, config: TrainConfig | DistillConfig, allow_code: bool) -> None:
    from distillab.run import preview

    plan = preview(config, allow_code=allow_code)
    screen.show(plan, *plan_tables(plan))


def _command() -> list[str]:
    """The words that a run was started with, for its record."""
    return ["distillab", *sys.argv[1:]]
