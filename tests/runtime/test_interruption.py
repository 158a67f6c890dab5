import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from distillab.runtime.interruption import Interruption, resume_command

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class Stop(BaseException):
    """What a handler outside does."""


@pytest.fixture(autouse=True)
def outside():
    """Handlers of somebody else, put back after the test."""

    def stop(number, frame):
        raise Stop(number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    yield stop
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_heard_and_stops_nothing(number):
    interruption = Interruption()
    assert interruption.asked is None
    with interruption.heard():
        signal.raise_signal(number)
        assert interruption.asked is number


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_the_second_signal_does_what_it_would_do_outside(first, second):
    interruption = Interruption()
    with interruption.heard():
        signal.raise_signal(first)
        with pytest.raises(Stop) as caught:
            signal.raise_signal(second)
    assert caught.value.args == (second,)
    assert interruption.asked is first


def test_the_second_signal_kills_where_nobody_else_handles_it():
    code = (
        "import signal; from distillab.runtime.interruption import Interruption\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "with Interruption().heard():\n"
        "    signal.raise_signal(signal.SIGTERM); print('heard', flush=True)\n"
        "    signal.raise_signal(signal.SIGTERM); print('never', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "heard\n")


def test_a_signal_that_is_ignored_outside_is_ignored_the_second_time():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption().heard():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back_however_it_ends(outside):
    with pytest.raises(ZeroDivisionError), Interruption().heard():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == [outside, outside]
    with pytest.raises(Stop):
        signal.raise_signal(signal.SIGINT)


def test_in_another_thread_nothing_changes(outside):
    seen = []

    def work():
        with Interruption().heard():
            seen.append([signal.getsignal(number) for number in SIGNALS])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[outside, outside]]


def test_a_wish_is_remembered_from_block_to_block():
    interruption = Interruption()
    with interruption.heard():
        os.kill(os.getpid(), signal.SIGTERM)
    with interruption.heard():
        assert interruption.asked is signal.SIGTERM


@pytest.mark.parametrize("home", ["runs/a", "my runs/it's $HOME; rm -rf"])
def test_the_command_that_goes_on_can_be_pasted_into_a_shell(home):
    assert shlex.split(resume_command(Path(home), allow_code=False)) == ["distillab", "resume", home]
    words = shlex.split(resume_command(Path(home), allow_code=True))
    assert words == ["distillab", "resume", home, "--allow-code"]
