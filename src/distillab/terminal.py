"""What a person sees: results on stdout, progress and notes on stderr. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.text import Text

from distillab.errors import DistillabError, Interrupted, StorageError
from distillab.runtime.events import (
    EpochEnded,
    Event,
    Note,
    Observer,
    RunStarted,
    StageEnded,
    StageStarted,
    StepsDone,
    describe_values,
    in_words,
)
from distillab.tables import Table, amount

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LONGEST_UNBROKEN = 12  # letters: names of methods and verdicts stay whole on a narrow terminal


class Screen:
    """The two streams of a command, and how much it says on them.

    Escape sequences are written to a terminal only: never to a pipe, with `NO_COLOR` or with `TERM=dumb`.

    Attributes:
        out: Takes results.
        err: Takes progress, notes and errors.
        quiet: Say nothing but results.
        json: Results are one JSON object.
        run_dir: The folder of the run, or of the runs, that is going on, once there is one.
    """

    def __init__(self) -> None:
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)
        self.quiet = False
        self.json = False
        self.run_dir: Path | None = None
        self._resume: str | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Observer]:
        """Give the observer that shows a run: a progress bar on a terminal, else one line an epoch.

        Yields:
            The observer, which remembers the run's folder as well. It says the same note once.
        """
        with contextlib.ExitStack() as stack:
            show: Observer
            if self.quiet:
                show = _say_nothing
            elif self.err.is_terminal:
                show = stack.enter_context(_bars(self.err))
            else:
                show = _Lines(self.err)

            said: set[str] = set()

            def observe(event: Event) -> None:
                if isinstance(event, Note):
                    if event.text in said:  # each of many runs has the same to say of the same images
                        return
                    said.add(event.text)
                if isinstance(event, RunStarted) and self.run_dir is None:  # those that follow are parts of it
                    self.run_dir, self._resume = event.run_dir, event.resume
                show(event)

            yield observe

    def show(self, result: Mapping[str, Any], *parts: Table | str) -> None:
        """Show a result: the object itself with `--json`, else its tables and sentences."""
        if self.json:
            self.out.out(json.dumps(result, indent=2, default=str, allow_nan=False), highlight=False)
            return
        above: Table | str = ""
        for part in parts:
            if isinstance(part, Table) and self.out.is_terminal:
                self._draw(part)
            else:
                self.write(f"\n{part}" if isinstance(part, Table) and isinstance(above, Table) else str(part))
            above = part

    def write(self, text: str) -> None:
        """Write text of our own making to stdout as it stands."""
        self.out.out(printable(text), highlight=False)

    def tell(self, text: str) -> None:
        """Say on stderr what is no result: a plan, before it is carried out."""
        self.err.out(printable(text), highlight=False)

    def complain(self, error: DistillabError) -> None:
        """Say on stderr what went wrong, in three lines at most."""
        self.err.out(error_lines(error), highlight=False)
        if isinstance(error, StorageError):
            self._say_how_to_go_on()

    def say_stopped(self) -> None:
        """Say on stderr that a signal has ended the command at once, and how its run goes on."""
        self.err.out("interrupted", highlight=False)
        self._say_how_to_go_on()

    def _say_how_to_go_on(self) -> None:
        if self._resume is not None:
            self.err.out(f"  then:  {printable(self._resume)}", highlight=False)

    def _draw(self, table: Table) -> None:
        from rich import box
        from rich.table import Table as Drawing

        drawing = Drawing(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
        for position, column in enumerate(table.columns):
            longest = max((len(row[position]) for row in table.rows), default=0)
            drawing.add_column(
                Text(column.title),
                justify="right" if column.numeric else "left",
                no_wrap=column.numeric or longest <= _LONGEST_UNBROKEN,
                overflow="fold",
            )
        for row in table.rows:
            drawing.add_row(*(Text(printable(cell)) for cell in row))
        self.out.print(drawing)


def error_lines(error: DistillabError) -> str:
    """An error as it is shown: what, where, and what to do; one line each."""
    what = "" if isinstance(error, Interrupted) else "error: "
    parts = ((what, error.message), ("  where: ", error.where), ("  try:   ", error.hint))
    return "\n".join(label + one_line(text) for label, text in parts if text)


def printable(text: str) -> str:
    """The text with control characters spelt out, so that a file's name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The lines of a text in one, control characters spelt out."""
    return printable("; ".join(line.strip() for line in text.splitlines() if line.strip()))


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # as any other stream does: `__main__` decides what follows


def _console(stream: TextIO) -> Console:
    styled = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "", "dumb")
    return _Console(
        file=stream, force_terminal=styled, color_system="auto" if styled else None, soft_wrap=False, emoji=False
    )


def _say_nothing(event: Event) -> None:
    """Show nothing."""


class _Lines:
    """An observer that writes one plain line an epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        text = in_words(event)
        if text is not None:
            self._console.out(printable(text), highlight=False)


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Observer]:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[epoch]}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,  # a result must reach stdout, whatever is drawn meanwhile
    )
    with progress:
        yield _Bars(progress)


class _Bars:
    """An observer that draws one bar for each stage that is going on; what is done scrolls up as a line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[str, _Bar] = {}  # by title of the stage

    def __call__(self, event: Event) -> None:
        match event:
            case Note(text=text):
                self._print(text)
            case StageStarted():
                self._begin(event)
            case StepsDone():
                self._advance(event)
            case EpochEnded():
                self._end_epoch(event)
            case StageEnded():
                self._end(event)

    def _begin(self, stage: StageStarted) -> None:
        task = self._progress.add_task(
            printable(stage.title),
            total=stage.epochs * stage.steps_per_epoch,
            epoch=f"epoch 1/{stage.epochs}",
            numbers="",
        )
        self._bars[stage.title] = _Bar(task, stage.steps_per_epoch)

    def _advance(self, event: StepsDone) -> None:
        bar = self._bars[event.title]
        for name, value in (("loss", event.loss), ("train_top1", event.train_top1)):
            if value is not None:
                bar.values[name] = value
        self._progress.update(
            bar.task, completed=event.step, total=event.total_steps, numbers=describe_values(bar.values)
        )

    def _end_epoch(self, event: EpochEnded) -> None:
        bar = self._bars[event.title]
        shown = ("loss", "train_top1", "validation_top1")
        bar.values = {name: event.values[name] for name in shown if name in event.values}
        self._progress.update(
            bar.task,
            completed=event.epoch * bar.steps_per_epoch,
            epoch=f"epoch {min(event.epoch + 1, event.epochs)}/{event.epochs}",
            numbers=describe_values(bar.values),
        )

    def _end(self, event: StageEnded) -> None:
        bar = self._bars.pop(event.title)
        self._progress.remove_task(bar.task)
        self._print(f"{event.title}: {amount(event.epochs, 'epoch')}  {describe_values(bar.values)}")

    def _print(self, text: str) -> None:
        self._progress.console.print(Text(printable(text)), highlight=False, soft_wrap=True)


@dataclass
class _Bar:
    task: TaskID
    steps_per_epoch: int
    values: dict[str, float] = field(default_factory=dict)
