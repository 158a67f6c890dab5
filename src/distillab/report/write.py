"""From run folders to the files of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from distillab.errors import ConfigError, DistillabError, StorageError
from distillab.report.analysis import analyse
from distillab.report.collect import collect
from distillab.report.document import Document
from distillab.report.formats import as_json, as_markdown
from distillab.report.page import as_html
from distillab.report.sections import build_document
from distillab.results.rows import as_csv
from distillab.results.run_record import readable, shown_path
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import write_text

PAGE = "report.html"
"""What a report is called that nobody has named."""

_FORMATS: dict[str, Callable[[Document], str]] = {
    ".html": as_html,
    ".md": as_markdown,
    ".csv": lambda document: as_csv(document.rows),
    ".json": as_json,
}
_MARKS = {".html": b'<meta name="generator" content="distillab ', ".json": b'{\n  "generator": "distillab '}
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        document: What it says.
        files: The page, and beside it the same as Markdown, CSV and JSON.
    """

    document: Document
    files: tuple[Path, ...]


def write_report(
    runs: Iterable[Path],
    output: Path,
    *,
    title: str | None = None,
    allow_code: bool = False,
    observer: Observer = silent,
) -> Report:
    """Describe runs in one self-contained page, and in Markdown, CSV and JSON beside it.

    Models and images are looked at where they are at hand; what could not be is told in the report. Nothing is
    downloaded.

    Args:
        runs: Run folders, and folders that hold some.
        output: The page, a name in `.html`; the files of an older report are replaced, each whole or not at all.
        title: Of the page; of the data if not given.
        allow_code: Data and weight files may name code that makes them.
        observer: Is told what takes time.

    Raises:
        ConfigError: The output is no `.html`.
        StorageError: There are no runs that have come to their end, a file of that name is no report of ours, or the
            disk refuses.
        CheckpointError: A file of a run is damaged, or none of ours.
    """
    files = {output.with_suffix(suffix): form for suffix, form in _FORMATS.items()}
    _check_free(output, list(files))
    collection = collect(runs)
    analysis, left_out = None, []
    try:
        analysis = analyse(collection, allow_code=allow_code, observer=observer)
    except DistillabError as error:
        left_out.append(
            f"What takes models and images is not here: {readable(error.message)} ({readable(error.hint or '-')})."
        )
        observer(Note(left_out[0]))
    data = dict.fromkeys(run.result.data for variant in collection.variants for run in variant.runs)
    name = title or f"Distillation on {', '.join(data)}"
    document = build_document(collection, analysis, title=readable(name), left_out=left_out)
    for file, form in files.items():
        write_text(file, form(document))
    return Report(document, tuple(files))


def _check_free(output: Path, files: Iterable[Path]) -> None:
    """See that nothing is replaced but a report: beside `result.html` stands a run's `result.json`."""
    if output.suffix != ".html":
        raise ConfigError(f"a report is a .html file, not '{output.suffix}'", where="output", hint="end it in .html")
    there = [file for file in files if file.exists()]
    marked = [file for file in there if file.suffix in _MARKS]
    others = [file for file in marked if not _is_ours(file)] or (there if not marked else [])
    if others:
        raise StorageError(
            "this file is there already, and is no report", where=shown_path(others[0]), hint="give another --output"
        )


def _is_ours(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return _MARKS[file.suffix] in stream.read(_HEAD_BYTES)
    except OSError:
        return False
