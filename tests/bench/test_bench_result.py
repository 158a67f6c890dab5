from __future__ import annotations

import pytest

from distillab.bench.config import Case
from distillab.bench.result import Measured, result_rows


def measured(*rates: float) -> Measured:
    return Measured(rates, steps=4, warm_up_seconds=1.5, peak_memory_bytes=7, bound=400.0, num_students=1)


def test_ratios_are_to_the_classic_path_and_their_spread_is_within_rounds():
    case = Case("cnn8-cnn16", "st", "cnn16", "cnn8")
    paths = {"classic": measured(10.0, 20.0, 12.0), "live": measured(100.0, 100.0, 96.0)}
    classic, live = result_rows(case, paths, batch_size=128)
    assert classic["ratio"] == 1.0
    assert classic["spread"] == [1.0, 1.0]
    assert live == {
        "work": "cnn8-cnn16",
        "method": "st",
        "path": "live",
        "batch_size": 128,
        "students": 1,
        "images_per_second": 100.0,
        "ratio": pytest.approx(100.0 / 12.0),
        "spread": [5.0, 10.0],
        "rounds": 3,
        "steps": 4,
        "warm_up_seconds": 1.5,
        "peak_memory_bytes": 7,
        "bound_images_per_second": 400.0,
        "share_of_bound": 0.25,
    }


def test_paths_with_different_rounds_are_not_compared():
    case = Case("cnn8", "alone", "cnn8", None)
    with pytest.raises(ValueError, match="zip"):
        result_rows(case, {"classic": measured(1.0, 2.0), "live": measured(1.0)}, batch_size=1)
