"""The program: runs a command and turns what happens into an exit code. `python -m distillab` works too."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from distillab.errors import DistillabError

if TYPE_CHECKING:
    from distillab.terminal import Screen

Program = Callable[[Sequence[str], "Screen"], None]

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_TERMINATED = 143
_INSTALLED = ("site-packages", "dist-packages", "torchinductor_")  # the last is what torch.compile has written


def main(words: Sequence[str] | None = None, program: Program | None = None) -> int:
    """Run a command line to its end.

    Args:
        words: Those after the program's name; the process's own if None.
        program: What gives them a meaning; the command `distillab` if None.

    Returns:
        0 done; 1 a bug, ours or in code that was named, its traceback kept in a file; an error's own code (see
        `errors.py`); 130 Ctrl-C; 141 the reader of stdout went away; 143 SIGTERM.
    """
    # Start-up makes many objects and next to no garbage; to look for it takes a tenth of `--help`'s time. `dispatch`
    # switches the collector on again when a command starts. Hence the imports here, and not above.
    gc.disable()
    try:
        from distillab import cli
        from distillab.terminal import Screen

        signal.signal(signal.SIGTERM, _terminate)
        for stream in (sys.stdout, sys.stderr):  # names of files may hold what the terminal's encoding has not
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        return _exit_code(program or cli.run, list(sys.argv[1:] if words is None else words), Screen())
    finally:
        gc.enable()


def _exit_code(program: Program, words: Sequence[str], screen: Screen) -> int:
    """Run a program; what ends it is told to the user and turned into a number."""
    try:
        program(words, screen)
        sys.stdout.flush()
    except DistillabError as error:
        screen.complain(error)
        return error.exit_code
    except (KeyboardInterrupt, _Terminated) as stop:
        screen.say_stopped()
        return _TERMINATED if isinstance(stop, _Terminated) else _INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; what it would complain about is no news.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except OSError as error:  # what nobody has put into words yet
        from distillab.runtime.files import storage_error

        refusal = storage_error(error, Path(error.filename or "."))
        screen.complain(refusal)
        return refusal.exit_code
    except Exception as error:
        from distillab.terminal import one_line

        place = _keep_traceback(screen.run_dir)
        what = f"{type(error).__name__}: {one_line(str(error))}"
        if theirs := _outside_frame(error):
            print(f"error: {what}\n  where: {one_line(theirs)}", file=sys.stderr)
            print(f"  try:   mend that code, which is not distillab's; the whole traceback: {place}", file=sys.stderr)
        else:
            print(f"internal error: {what} (this is a bug)\n  where: {place}", file=sys.stderr)
        return DistillabError.exit_code
    return 0


class _Terminated(BaseException):
    """SIGTERM, where nobody hears it otherwise."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _outside_frame(error: BaseException) -> str | None:
    """Where code that neither is ours nor was installed raised an error, or called what did, as "file:line"; None
    where we did. A model or data set of somebody's own lies there.
    """
    import sysconfig

    library = sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(Path(__file__).parent):
            return None
        if path.is_relative_to(library) or any(part.startswith(_INSTALLED) for part in path.parts):
            continue
        if os.path.isfile(path):  # noqa: PTH113 - a name that cannot be one raises nothing here
            return f"{path}:{frame.lineno}"
    return None


def _keep_traceback(run_dir: Path | None) -> Path:
    """Write the traceback of the error at hand to the run's folder, else to a temporary file."""
    text = traceback.format_exc()
    if run_dir is not None:
        path = run_dir / "traceback.txt"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            pass  # the folder may be what is broken: a temporary file will do
        else:
            return path
    with tempfile.NamedTemporaryFile("w", prefix="distillab-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(text)
    return Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
