"""Where the runs of a report lie: in run folders, in folders of them, and in comparisons, which name their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from distillab.errors import DistillabError, StorageError
from distillab.results.comparison import RESULT, RESULT_FORMAT, is_comparison
from distillab.results.run_record import damaged, parsed, shown_path, unreadable
from distillab.runtime.run_dir import read_group
from distillab.tables import amount

_DEEPEST_FOLDER = 4
_OF_ONE_RUN = "config.toml"


class ComparedRow(BaseModel):
    """What `results.json` of a comparison says of a row; what else stands there is counted again."""

    model_config = ConfigDict(frozen=True)

    table: str
    method: str
    run_dirs: tuple[str, ...]
    num_teachers: int = Field(ge=1)
    tuned: dict[str, float] | None = None
    trials: int = 0


class _Comparison(BaseModel):
    model_config = ConfigDict(frozen=True)

    rows: tuple[ComparedRow, ...]


@dataclass(frozen=True)
class Folders:
    """What was found.

    Attributes:
        runs: Run folders that are in no row of a comparison.
        comparisons: Folder of each comparison that has come to its end, and its rows.
        left_out: What is not in the report, and why, a sentence each.
    """

    runs: tuple[Path, ...]
    comparisons: tuple[tuple[Path, tuple[ComparedRow, ...]], ...]
    left_out: tuple[str, ...]


def find_runs(paths: Iterable[Path]) -> Folders:
    """Look for runs.

    Args:
        paths: Run folders, and folders that hold some, up to four levels down.

    Raises:
        StorageError: A path has no run folder, or a folder cannot be read.
        CheckpointError: What a comparison says of its rows is damaged, or leads out of its folder.
    """
    runs: dict[Path, None] = {}
    rows: dict[Path, tuple[ComparedRow, ...]] = {}
    left_out: list[str] = []
    for path in paths:
        found = dict.fromkeys(folder.resolve() for folder in _below(path, _DEEPEST_FOLDER))
        for comparison in [folder for folder in found if is_comparison(folder)]:
            if (comparison / RESULT).is_file():
                rows[comparison] = _rows(comparison)
            else:
                left_out.append(
                    f"{shown_path(comparison)} is a comparison that has not come to its end: its runs are put together "
                    "by their settings."
                )
        mine = [folder for folder in found if not is_comparison(folder)]
        if not mine:
            there = "this is a file, no folder" if path.exists() else "there is no such folder"
            raise StorageError(
                "there is no run folder in this folder" if path.is_dir() else there,
                where=shown_path(path),
                hint="give run folders, which hold a config.toml, or a folder that holds them",
            )
        runs |= dict.fromkeys(mine)
    in_rows = {folder / name for folder, own in rows.items() for row in own for name in row.run_dirs}
    superseded = [folder for folder in runs if folder not in in_rows and _is_superseded(folder, rows)]
    if superseded:
        left_out.append(
            f"{amount(len(superseded), 'run')} in the folder of a comparison, but in none of its "
            "rows: left by another request."
        )
    loose = tuple(folder for folder in runs if folder not in in_rows and folder not in superseded)
    return Folders(loose, tuple(rows.items()), tuple(left_out))


def _is_superseded(folder: Path, comparisons: Iterable[Path]) -> bool:
    """Whether a student's run lies in a comparison that has come to its end; its teachers are in no row either."""
    return folder.name != "teacher" and any(folder.is_relative_to(comparison) for comparison in comparisons)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Run folders and comparisons, at the folder or below it."""
    if (folder / _OF_ONE_RUN).is_file():
        yield folder
    elif depth and folder.is_dir():
        if is_comparison(folder):
            yield folder
        try:
            inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
        except OSError as error:
            raise unreadable(folder, error) from error
        with suppress(DistillabError):  # runs that were carried out together stand as they were asked for
            asked = read_group(folder) or []
            inner.sort(key=lambda entry: asked.index(entry) if entry in asked else len(asked))
        for entry in inner:
            yield from _below(entry, depth - 1)


def _rows(comparison: Path) -> tuple[ComparedRow, ...]:
    path = comparison / RESULT
    rows = parsed(_Comparison, path, newest=RESULT_FORMAT).rows
    for name in (name for row in rows for name in row.run_dirs):
        if not (comparison / name).resolve().is_relative_to(comparison):
            raise damaged(path, "run_dirs: a run lies outside of the comparison's folder")
    return rows
