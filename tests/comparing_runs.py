"""What runs leave in their folders, made comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_OF_THE_PROCESS = ("timing.jsonl", "log.txt", "env.json", "command.txt")


def left_by(folder: Path) -> dict[str, Any]:
    """All files of a run, or of runs in one folder, by name: content, less what no two runs share.

    That is: when, where and how it was started, and how long it took. Of checkpoints it counts only that nothing else
    lies beside them.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if "checkpoints" in name.parts:
            if path.parent.name == "checkpoints" and not path.name.startswith("checkpoint-"):
                found[str(name)] = "left behind"
        elif path.is_file():
            found[str(name)] = "" if path.name in _OF_THE_PROCESS else path.read_bytes()
    for name in found:
        if name.endswith("result.json"):
            found[name] = _without_times(json.loads(found[name]))
    return found


def differing(one: Path, other: Path) -> list[str]:
    """Names of the files in which two run folders differ, be it that only one of them has it."""
    first, second = left_by(one), left_by(other)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key != "timing"}
    return value
