"""`distillab resume`."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from distillab.commands.compare import show_comparison
from distillab.commands.flags import COMMAND, AllowCode, Injected, Json, Quiet
from distillab.commands.outcome import show_runs, started_with


def resume(
    run: Annotated[
        Path, Parameter(help="The folder of a run, of runs that were started together, or of a comparison.")
    ],
    /,
    *,
    force: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            group=COMMAND,
            help="Go on even if the run would come out otherwise: settings, data, threads or device are others.",
        ),
    ] = False,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Let a run go on from its last checkpoint, as if nothing had stopped it."""
    from distillab.compare.run import resume_comparison
    from distillab.results.comparison import is_comparison
    from distillab.resume import resume as go_on

    screen.quiet, screen.json = quiet, json
    if is_comparison(run):
        with screen.watching() as observer:
            result = resume_comparison(
                run, observer=observer, command=started_with(), allow_code=allow_code, force=force
            )
        show_comparison(screen, result, allow_code=allow_code)
        return
    with screen.watching() as observer:
        outcomes = go_on(run, observer=observer, command=started_with(), allow_code=allow_code, force=force)
    show_runs(screen, outcomes)
