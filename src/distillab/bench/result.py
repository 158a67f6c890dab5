"""What a comparison has come to, one row a path."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distillab.bench.config import Case

CLASSIC = "classic"
"""The path that the others are held against."""

LIVE, CACHED = "live", "cached"
"""Our paths: the teacher, if there is one, is run at every step; its logits are read."""


@dataclass(frozen=True)
class Measured:
    """What was measured of one path.

    Attributes:
        rates: Images a second, one number a round.
        steps: Timed in each round.
        warm_up_seconds: Until its steps were as they are later.
        peak_memory_bytes: That it added to what was there; None where that is not known.
        bound: Images a second that the device could do at best.
        num_students: That learn side by side; images are counted once for each.
    """

    rates: Sequence[float]
    steps: int
    warm_up_seconds: float
    peak_memory_bytes: int | None
    bound: float
    num_students: int


def result_rows(case: Case, measured: Mapping[str, Measured], *, batch_size: int) -> list[dict[str, Any]]:
    """The paths of a comparison beside the classic one.

    Args:
        case: What was compared.
        measured: By path, `CLASSIC` among them; equally many rounds each.
        batch_size: Images a step.

    Returns:
        One record a path: "work", "method", "path", "batch_size", "students", "images_per_second" (median over
        rounds), "ratio" (to the classic path's), "spread" ([lowest, highest] ratio within one round), "rounds",
        "steps", "warm_up_seconds", "peak_memory_bytes", "bound_images_per_second" and "share_of_bound" (0..1).
    """
    classic = measured[CLASSIC].rates
    rows = []
    for path, found in measured.items():
        rate = statistics.median(found.rates)
        ratios = [own / other for own, other in zip(found.rates, classic, strict=True)]
        rows.append(
            {
                "work": case.work,
                "method": case.method,
                "path": path,
                "batch_size": batch_size,
                "students": found.num_students,
                "images_per_second": rate,
                "ratio": rate / statistics.median(classic),
                "spread": [min(ratios), max(ratios)],
                "rounds": len(found.rates),
                "steps": found.steps,
                "warm_up_seconds": found.warm_up_seconds,
                "peak_memory_bytes": found.peak_memory_bytes,
                "bound_images_per_second": found.bound,
                "share_of_bound": rate / found.bound,
            }
        )
    return rows
