"""A comparison's files: what was asked for, what came of it."""

from __future__ import annotations

from pathlib import Path

REQUEST = "comparison.json"
RESULT = "results.json"
RESULT_FORMAT = 1


def is_comparison(folder: Path) -> bool:
    """Whether a folder is that of a comparison."""
    return (folder / REQUEST).is_file()
