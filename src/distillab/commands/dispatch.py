"""From words to a command that runs, or to an error that says what is wrong with them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Group, UnknownOptionError, UnusedCliTokensError

from distillab import __version__
from distillab.errors import ConfigError
from distillab.terminal import Screen


def new_app(screen: Screen, **settings: Any) -> App:
    """An app that shows help on the screen and raises what it has to complain about."""
    return App(
        version=f"distillab {__version__}",
        version_format="plaintext",
        help_format="plaintext",
        group_parameters=Group("Run", sort_key=2),
        console=screen.out,
        error_console=screen.err,
        exit_on_error=False,
        print_error=False,
        verbose=False,
        suppress_keyboard_interrupt=False,
        **settings,
    )


def dispatch(app: App, words: Sequence[str], screen: Screen) -> None:
    """Run the command that the words name, on this screen.

    Raises:
        ConfigError: The words are not a command and its flags.
        DistillabError: What the command raises.
    """
    try:
        command, bound, injected = app.parse_args(list(words))
        # Off since the program began: see `__main__`. What start-up made stays to the end, so it is never looked at
        # again, not on the way out either.
        gc.freeze()
        gc.enable()
        extra = {"screen": screen} if "screen" in injected else {}
        command(*bound.args, **bound.kwargs, **extra)
    except CycloptsError as error:
        raise _usage_error(error, app.name[0]) from error


def _usage_error(error: CycloptsError, program: str) -> ConfigError:
    manual = f"`{' '.join([program, *(error.command_chain or ())])} --help` shows what there is"
    if isinstance(error, UnusedCliTokensError):
        return ConfigError(f"unexpected: {' '.join(error.unused_tokens or ())}", hint=manual)
    message, asked, suggestion = str(error).partition(" Did you mean ")
    message, known, commands = message.partition(" Available commands: ")
    if isinstance(error, UnknownOptionError):
        message = message.replace("option:", "option")
    hint = f"did you mean {suggestion}" if asked else f"known: {commands}" if known else manual
    return ConfigError((message[:1].lower() + message[1:]).rstrip("."), hint=hint)
