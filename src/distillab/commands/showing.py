"""`distillab list`, `distillab demo` and `distillab doctor`: what there is, what it does, and where it runs."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab import listing
from distillab.commands.flags import Injected, Json, Quiet, Whole
from distillab.commands.report import end_with_report
from distillab.report.table import records_table, results_table
from distillab.terminal import Screen


def list_methods(*, json: Json = False, screen: Injected) -> None:
    """The methods: which stages each has, in which order, and where it comes from."""
    _show("methods", listing.methods(), ("name", "stages", "summary", "source"), screen, json)


def list_models(*, json: Json = False, screen: Injected) -> None:
    """The models: their classic roles, trainable parameters and multiply-adds (for ten classes)."""
    _show("models", listing.models(), ("name", "role", "family", "parameters", "macs", "summary"), screen, json)


def list_datasets(*, json: Json = False, screen: Injected) -> None:
    """The data sets that have a name; any folder of images does as well."""
    columns = ("name", "classes", "train", "test", "size", "summary", "origin")
    _show("datasets", listing.datasets(), columns, screen, json)


def list_recipes(*, json: Json = False, screen: Injected) -> None:
    """The shipped recipes, for `--recipe`."""
    _show("recipes", listing.recipes(), ("name", "summary"), screen, json)


def _show(kind: str, records: list[dict[str, Any]], columns: Sequence[str], screen: Screen, json: bool) -> None:
    screen.json = json
    screen.show({kind: records}, records_table(records, columns))


def demo(
    *,
    output: Annotated[Path | None, Parameter(help="Folder for the run folders; made under runs/ if not given.")] = None,
    seed: Annotated[Whole, Parameter(help="Seed of everything.")] = 0,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Train a teacher on handwritten digits, then a student alone and by all methods, and compare them."""
    from distillab.demo import run_demo

    screen.quiet, screen.json = quiet, json
    with screen.watching() as observer:
        result = run_demo(output=output, seed=seed, device=device, observer=observer)
    result, report = end_with_report(screen, result)
    screen.show(
        result,
        results_table(result["rows"]),
        result["noise"],
        f"run folders: {result['output']}  ({result['seconds']:.0f} s in all)",
        report,
    )


def doctor(*, json: Json = False, screen: Injected) -> None:
    """What this machine has and what is fast on it, as Markdown to paste into an issue; takes a few seconds."""
    from distillab.doctor import as_markdown, diagnose

    screen.json = json
    report = diagnose()
    screen.show(report, as_markdown(report))
