"""The classic loop in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distillab.bench.classic_side import ClassicProcess
from distillab.bench.config import BenchConfig, Case
from distillab.errors import ConfigError, DistillabError

CASE = Case("tiny:build_wide-tiny:build", "st", "tiny:build", "tiny:build_wide")
CONFIG = BenchConfig(data="tiny:dataset", batch_size=16)

linux = pytest.mark.skipif(sys.platform != "linux", reason="what a process does is read from /proc")


@pytest.fixture(scope="module")
def process() -> Iterator[ClassicProcess]:
    running = ClassicProcess(CONFIG, CASE, threads=1, num_workers=0)
    yield running
    running.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def cpu_ticks(pid: int) -> int:
    """Hundredths of a second that a process has computed."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


@linux
def test_a_process_takes_turns_and_sleeps_between_them(process):
    warm = process.warm_up()
    assert warm.loop is process
    assert 0 < warm.step_seconds < warm.seconds
    assert warm.peak_memory_bytes is not None
    pid = process._process.pid
    assert pid != os.getpid()
    assert process.seconds(2, run_in=True) > 0
    process.num_workers = 2
    started = time.perf_counter()
    assert process.seconds(6, run_in=False) > 0  # an epoch has four batches
    assert time.perf_counter() - started < 10  # workers are forked here as in a script, and import nothing
    before = cpu_ticks(pid)
    time.sleep(0.5)
    assert cpu_ticks(pid) - before <= 5
    assert not Path(f"/proc/{pid}/task/{pid}/children").read_text()  # data workers come and go with a turn
    # It ends in between, as when memory runs out.
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(DistillabError, match="exit code -9"):
            process.seconds(1, run_in=False)
    process.close()
    assert not is_alive(pid)


def test_an_error_in_the_process_is_the_callers():
    running = ClassicProcess(BenchConfig(data="tiny:dataset", batch_size=73), CASE, threads=1, num_workers=0)
    with pytest.raises(ConfigError, match="more than the 72") as caught:
        running.warm_up()
    assert (caught.value.where, caught.value.hint) == ("batch_size", "take 72 or less")
    assert "open_images" in caught.value.__notes__[0]
    running.close()


@linux
def test_a_process_ends_with_its_caller():
    program = """
import os, signal
from distillab.bench.classic_side import ClassicProcess
from distillab.bench.config import BenchConfig, Case
running = ClassicProcess(
    BenchConfig(data="tiny:dataset", batch_size=16), Case("tiny", "alone", "tiny:build", None), threads=1, num_workers=0
)
running.warm_up()
print(running._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    # It shares stdout with its caller: to read to the end is to wait for both.
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert not is_alive(int(done.stdout))
    assert done.stderr == ""
