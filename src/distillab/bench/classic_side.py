"""Where the classic loop runs: on a CPU in a process of its own, as the scripts do that it stands for.

In ours it would come out too fast: what our paths leave behind in the C library's heap serves its tensors too, and
spares it the fresh pages that a script has to wait for at every step (docs/decisions/0007-cpu-path.md).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from distillab.bench.classic import ClassicImages, ClassicLoop, with_stock_pieces
from distillab.bench.config import BenchConfig, Case
from distillab.bench.measure import WarmUp, warm_up
from distillab.bench.workload import IMAGE_SIZE, build, open_images
from distillab.data.dataset import Dataset
from distillab.errors import DistillabError
from distillab.runtime.events import silent


def classic_loop(
    case: Case, dataset: Dataset, *, batch_size: int, num_workers: int, device: torch.device
) -> ClassicLoop:
    """The classic loop of a comparison, as it starts.

    Args:
        case: What is compared.
        dataset: Images.
        batch_size: Images a step.
        num_workers: Processes that load images.
        device: Where it computes.
    """
    student, teacher = (
        None if spec is None else with_stock_pieces(build(spec, dataset)).to(device)
        for spec in (case.student, case.teacher)
    )
    assert student is not None
    train = dataset.train
    return ClassicLoop(
        student,
        teacher,
        method=case.method,
        images=ClassicImages(train.images, train.labels, mean=dataset.mean, std=dataset.std, image_size=IMAGE_SIZE),
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
    )


@dataclass(frozen=True)
class _Job:
    """What the process is told at its start; images and weights it makes itself, from names and seeds."""

    config: BenchConfig
    case: Case
    threads: int
    num_workers: int


@dataclass(frozen=True)
class _Turn:
    """What it is asked for later."""

    steps: int
    run_in: bool
    num_workers: int


class ClassicProcess:
    """The classic loop on the CPU, in a fresh process that sleeps while nobody asks; while it works, the caller does.

    The process has the caller's environment, folder and number of threads, imports torch anew, and opens the same
    images and builds the same models. It ends when it is closed, when it has failed, or, at the end of its turn, when
    the caller's process is gone.

    Attributes:
        num_workers: As `ClassicLoop` has it.

    Args:
        config: Names the images and the size of a batch.
        case: What is compared.
        threads: CPU threads.
        num_workers: To start with.
    """

    warm_up_steps = ClassicLoop.warm_up_steps

    def __init__(self, config: BenchConfig, case: Case, *, threads: int, num_workers: int) -> None:
        self.num_workers = num_workers
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        with theirs:  # closed here, so that its end is noticed
            # No daemon: those may not have data workers.
            job = _Job(config, case, threads, num_workers)
            self._process = spawn.Process(target=_serve, args=(theirs, job), daemon=False)
            self._process.start()

    def warm_up(self) -> WarmUp[ClassicProcess]:
        """Wait for the loop's warm-up (`measure.warm_up`), which the process begins with; once.

        Returns:
            Seconds and memory of the loop itself: without the process's start, the import of torch and the images.

        Raises:
            DistillabError: The process has ended by itself; or what was raised in it, as it was.
        """
        seconds, step_seconds, peak_memory_bytes = self._answer()
        return WarmUp(self, seconds, step_seconds, peak_memory_bytes)

    def seconds(self, steps: int, *, run_in: bool) -> float:
        """Wall time of so many steps, by the clock of their process.

        Args:
            steps: At least 1.
            run_in: See `measure.Loop`.

        Raises:
            DistillabError: The process has ended by itself; or what was raised in it, as it was.
        """
        with contextlib.suppress(BrokenPipeError):  # the answer, or none, tells why
            self._connection.send(_Turn(steps, run_in, self.num_workers))
        return float(self._answer())

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise DistillabError(
                f"the process of the classic loop ended by itself, with exit code {self._process.exitcode}",
                hint="-9 is how Linux ends a process when memory runs out: take a smaller batch_size",
            ) from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(connection: Connection, job: _Job) -> None:
    """All that the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller too, who ends this process
    multiprocessing.set_start_method(None, force=True)  # data workers start as usual: spawned ones import torch anew
    with contextlib.suppress(BrokenPipeError):  # nobody waits for the answer any more
        try:
            for answer in _answers(job, _turns(connection)):
                connection.send(answer)
        except Exception as error:
            error.add_note("In the process of the classic loop:\n" + "".join(traceback.format_exception(error)))
            connection.send(error)


def _turns(connection: Connection) -> Iterator[_Turn]:
    """What is asked, until the caller is gone."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            yield connection.recv()


def _answers(job: _Job, turns: Iterator[_Turn]) -> Iterator[Any]:
    """What the warm-up took, then the seconds of every turn."""
    torch.set_num_threads(job.threads)
    device = torch.device("cpu")
    dataset = open_images(job.config, silent)

    def make() -> ClassicLoop:
        return classic_loop(
            job.case, dataset, batch_size=job.config.batch_size, num_workers=job.num_workers, device=device
        )

    warm = warm_up(make, device)
    yield warm.seconds, warm.step_seconds, warm.peak_memory_bytes
    for turn in turns:
        warm.loop.num_workers = turn.num_workers
        yield warm.loop.seconds(turn.steps, run_in=turn.run_in)
