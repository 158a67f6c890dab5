from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

import shell
from distillab.__main__ import Program
from distillab.commands.dispatch import dispatch, new_app
from distillab.errors import ConfigError
from distillab.terminal import Screen


def app_seeing(seen: list[bool]) -> Program:
    """A program of one command, which notes whether garbage is collected before it, and in it."""

    def program(words: Sequence[str], screen: Screen) -> None:
        def work(*, times: int = 1) -> None:
            seen.append(gc.isenabled())

        app = new_app(screen, name="program")
        app.command(work, name="work")
        seen.append(gc.isenabled())
        dispatch(app, words, screen)

    return program


def test_garbage_is_collected_while_a_command_runs_and_not_before(command: shell.Command) -> None:
    seen: list[bool] = []
    assert command("work", program=app_seeing(seen)).code == 0
    assert seen == [False, True]
    assert gc.isenabled()


def test_garbage_is_collected_after_wrong_words(command: shell.Command) -> None:
    seen: list[bool] = []
    assert command("work", "--times", "many", program=app_seeing(seen)).code == ConfigError.exit_code
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("error", [ConfigError("no"), ZeroDivisionError(), KeyboardInterrupt()])
def test_garbage_is_collected_after_a_program_that_breaks_off(command: shell.Command, error: BaseException) -> None:
    def program(words: Sequence[str], screen: Screen) -> None:
        raise error

    assert command(program=program).code > 0
    assert gc.isenabled()
