"""`distillab report`, and the report that other verbs end with."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from distillab.commands.flags import AllowCode, Injected, Json, Quiet
from distillab.errors import DistillabError
from distillab.terminal import Screen

_MOST_REASONS = 3


def report(
    runs: Annotated[list[Path], Parameter(help="Run folders, comparisons, and folders that hold some.")],
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(help="The page, ending in .html; report.html in the folder that holds the runs if not given."),
    ] = None,
    title: Annotated[str | None, Parameter(help="Title of the page; names the data if not given.")] = None,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Describe runs in one page that needs nothing else, and in Markdown, CSV and JSON beside it."""
    from distillab.report.write import PAGE, write_report

    screen.quiet, screen.json = quiet, json
    page = output or _common_folder(runs) / PAGE
    with screen.watching() as observer:
        written = write_report(runs, page, title=title, allow_code=allow_code, observer=observer)
    document = written.document
    result = {
        "headline": document.headline,
        "rows": document.rows,
        "left_out": document.left_out,
        "files": [str(file) for file in written.files],
    }
    screen.show(result, document.headline, f"report: {page}", *_left_out(document.left_out))


def end_with_report(screen: Screen, result: dict[str, Any], *, allow_code: bool = False) -> tuple[dict[str, Any], str]:
    """Put a report into the folder of runs that were carried out together.

    What they have come to is on disk by then, and is shown whatever becomes of the report.

    Args:
        screen: Is told of progress.
        result: Of the runs; its "output" is their folder.
        allow_code: Settings and weight files may name code that is run.

    Returns:
        The result with the page as "report" (None where there is none), and a sentence on it.
    """
    from distillab.report.write import PAGE, write_report

    folder = Path(result["output"])
    try:
        with screen.watching() as observer:
            written = write_report([folder], folder / PAGE, allow_code=allow_code, observer=observer)
    except DistillabError as error:
        reason = f"{error.message} ({error.where})"
    except Exception as error:  # a bug in what only describes must not cost the table of hours
        reason = f"{type(error).__name__}: {error} (this is a bug)"
    else:
        page = str(written.files[0])
        return {**result, "report": page}, "\n".join([f"report: {page}", *_left_out(written.document.left_out)])
    told = f"there is no report: {reason}; once more: distillab report {folder}"
    if screen.json:
        screen.tell(told)
    return {**result, "report": None}, told


def _left_out(reasons: Sequence[str]) -> list[str]:
    """What a report does not show, and why; the page has all of it."""
    told = [f"  left out of it: {reason}" for reason in reasons[:_MOST_REASONS]]
    more = len(reasons) - len(told)
    return [*told, f"  and {more} more, told at its end"] if more else told


def _common_folder(runs: Sequence[Path]) -> Path:
    """The folder itself where one is given, else the one that holds all."""
    return runs[0] if len(runs) == 1 else Path(os.path.relpath(os.path.commonpath([run.resolve() for run in runs])))
