"""`distillab verify`."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from distillab.commands.flags import AllowCode, Injected, Json, Quiet
from distillab.errors import CheckpointError
from distillab.tables import records_table


def verify(
    run: Annotated[Path, Parameter(help="The folder of a run, or of runs that were started together.")],
    /,
    *,
    allow_code: AllowCode = False,
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Check a run's files, test its weights again, and replay an epoch of its log from a checkpoint."""
    from distillab.verify import verify as look_at

    screen.quiet, screen.json = quiet, json
    with screen.watching() as observer:
        verification = look_at(run, observer=observer, allow_code=allow_code)
    shown = verification.as_dict()
    parts = [records_table(shown["findings"], ("what", "found", "verdict"))]
    if shown["environment"]:
        parts.append(records_table(shown["environment"], ("what", "run", "here")))
    faults, count = verification.faults, len(verification.findings)
    unseen = sum(finding.verdict == "not looked at" for finding in verification.findings)
    told = f"{len(faults)} of {count} differ" if faults else "nothing differs"
    screen.show(shown, *parts, told + (f"; {unseen} of {count} not looked at" if unseen else ""))
    if faults:
        raise CheckpointError(
            f"{faults[0].what}: {faults[0].found}",
            where=str(run),
            hint="copy the run again from where it was made, or put back what was changed since",
        )
