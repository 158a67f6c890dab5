"""`python -m faults`: runs the campaign and prints its table; 1 where anything ended badly."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process that has threads must not fork

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from faults import costs, damages, disks, kills, races, signals
from faults.outcome import Outcome, table
from faults.trials import Trials

CAMPAIGNS = {
    "training": (kills.in_training, 100),
    "groups": (kills.in_groups, 20),
    "saves": (kills.in_saves, 300),
    "signals": (signals.stops, 40),
    "races": (races.for_a_folder, 50),
    "damages": (damages.of_checkpoints, 200),
    "disks": (disks.that_are_full, 20),
    "folders": (disks.that_go_away, 12),
    "caches": (races.for_a_cache, 10),
    "costs": (costs.of_saves, 5),
}

app = App(name="faults", help="Runs are killed, interrupted, raced for, damaged and starved of disk.")


@app.default
def campaign(
    *,
    seed: int = 0,
    only: Annotated[list[Literal[tuple(CAMPAIGNS)]] | None, Parameter(consume_multiple=True)] = None,
    share: float = 1.0,
) -> int:
    """Run the campaign.

    Args:
        seed: Of all that is random; moments of kills depend on the machine, too.
        only: These parts alone.
        share: Of the usual number of tries.
    """
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as home:
        for name, (run, tries) in CAMPAIGNS.items():
            if only and name not in only:
                continue
            started = time.monotonic()
            outcomes = run(Trials(Path(home) / name), random.Random(f"{seed} {name}"), max(1, round(share * tries)))
            outcomes[0].seconds = time.monotonic() - started
            found += outcomes
            print(*table(outcomes).splitlines()[2:], sep="\n", file=sys.stderr, flush=True)
    print(table(found))
    troubles = [trouble for outcome in found for trouble in outcome.troubles]
    for trouble in troubles:
        print(f"\n{trouble}", file=sys.stderr)
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(app())
