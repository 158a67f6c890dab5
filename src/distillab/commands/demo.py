"""`distillab demo`: everything once, on handwritten digits."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from distillab.commands.flags import Injected, Json, Quiet, Whole
from distillab.commands.outcome import results_table
from distillab.commands.report import end_with_report


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
