"""`distillab bench`."""

# cyclopts reads annotations as they stand: so there is no `from __future__ import annotations` here.
from collections.abc import Mapping
from typing import Annotated, Any

from distillab.bench.config import BenchConfig
from distillab.commands.flags import EVERY_FIELD, Injected, Json, Quiet, flags_of
from distillab.settings import validated
from distillab.tables import Column, Table, number, percent
from distillab.terminal import Screen

BenchFlags = flags_of(BenchConfig)

_COLUMNS = (
    Column("work"),
    Column("method"),
    Column("path"),
    Column("images/s", numeric=True),
    Column("ratio", numeric=True),
    Column("low-high", numeric=True),
    Column("warm-up s", numeric=True),
    Column("memory MB", numeric=True),
    Column("of bound %", numeric=True),
)


def bench(
    *,
    settings: Annotated[BenchFlags | None, EVERY_FIELD] = None,  # type: ignore[valid-type]
    quiet: Quiet = False,
    json: Json = False,
    screen: Injected,
) -> None:
    """Time the classic training loop and our own paths in turns, and hold them against what the device could do."""
    screen.quiet, screen.json = quiet, json
    config = validated(BenchConfig, settings or {})
    from distillab.bench.run import run_bench

    with screen.watching() as observer:
        result = run_bench(config, observer=observer)
    show(screen, result)


def show(screen: Screen, result: Mapping[str, Any]) -> None:
    """Show what a benchmark has come to."""
    together = f", {result['students']} students side by side" if result["students"] > 1 else ""
    screen.show(
        result,
        Table(_COLUMNS, tuple(_cells(row) for row in result["rows"])),
        f"batch {result['batch_size']} on {result['device_name']}, {result['threads']} threads; "
        f"torch {result['versions']['torch']}; ours in {result['precision']}, {result['execution']}{together}; "
        f"the classic loop in float32 with {result['classic_workers']} data workers; "
        f"{result['seconds']:.0f} s in all",
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row["spread"]
    memory = row["peak_memory_bytes"]
    return (
        row["work"],
        row["method"],
        row["path"],
        f"{row['images_per_second']:,.{0 if row['images_per_second'] >= 100 else 1}f}",
        number(row["ratio"], 2),
        f"{low:.2f}-{high:.2f}",
        number(row["warm_up_seconds"], 1),
        number(None if memory is None else memory / 1e6, 0),
        percent(row["share_of_bound"]),
    )
