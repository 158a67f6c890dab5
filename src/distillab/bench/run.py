"""The whole of `distillab bench`: every comparison, its paths in turns, and what came of it."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from distillab.bench.bounds import bound, inference_needs, measure_rates, training_needs
from distillab.bench.classic import ClassicLoop
from distillab.bench.classic_side import ClassicProcess, classic_loop
from distillab.bench.config import BenchConfig, Case, planned_cases
from distillab.bench.measure import Loop, WarmUp, make_schedule, take_turns, warm_up
from distillab.bench.ours import OurLoop
from distillab.bench.result import CACHED, CLASSIC, LIVE, Measured, result_rows
from distillab.bench.trace import check_trace_path, count_launches, write_trace
from distillab.bench.workload import IMAGE_SIZE, build, open_images
from distillab.data.dataset import Dataset
from distillab.models.catalog import MODELS
from distillab.runtime.device import Compute, choose_compute, choose_execution, computing, usable_cores
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.reproducibility import isolated_generators
from distillab.runtime.run_dir import environment

_USUAL_STEPS = 30 * 390  # thirty epochs of CIFAR-10
_LONGEST_EPOCH = 390
_SHORTEST_EPOCH = 2
_FILL_SECONDS = 10.0
_TRIAL_SECONDS = 2.0
_PREPARING_SHARE = 0.05  # of all the time there is, for either at most
_MOST_TRIAL_STEPS = 50

_WarmClassic = WarmUp[ClassicLoop] | WarmUp[ClassicProcess]


def run_bench(config: BenchConfig, *, observer: Observer = silent) -> dict[str, Any]:
    """Compare the classic loop with our own paths.

    Args:
        config: What to compare, and how long.
        observer: Is told of each comparison.

    Returns:
        Ready for JSON: versions and device (as in a run's `env.json`), "batch_size", "students", "precision" and
        "execution" of our paths, "data", "classic_workers" (0 or 2, whichever was faster), "rates" (of the device),
        "rows" (see `result_rows`) and "seconds".

    Raises:
        ConfigError: A name is unknown, or settings do not fit together.
        DataError: The images cannot be used.
        StorageError: The trace cannot be written.
    """
    started = time.perf_counter()
    cases = planned_cases(config)
    if config.profile is not None:
        check_trace_path(config.profile)
    compute = choose_compute(config.device, config.precision)
    compute = replace(compute, execution=choose_execution(config.execution, compute.device, _USUAL_STEPS))
    with computing(compute, config.threads), isolated_generators(compute.device):
        bench = _Bench(config, compute, open_images(config, observer), observer)
        if config.profile is not None:
            bench.trace(cases[0], config.profile)
        by_cost = sorted(cases, key=_macs)
        bench.choose_workers(by_cost[0])
        found = {}
        for number, case in enumerate(reversed(by_cost)):  # first those that cannot be cut short
            left = config.seconds - (time.perf_counter() - started)
            found[case] = bench.compare(case, seconds=left / (len(cases) - number))
        return {
            **environment(compute.device, torch.get_num_threads()),
            "batch_size": config.batch_size,
            "students": config.students,
            "precision": bench.precision,
            "execution": compute.execution,
            "data": bench.dataset.name,
            "classic_workers": bench.num_workers,
            "rates": bench.rates.as_dict(),
            "rows": [row for case in cases for row in found[case]],
            "seconds": time.perf_counter() - started,
        }


def _macs(case: Case) -> int:
    """Multiply-accumulates of an image's way through all models of a comparison."""
    return sum(MODELS[spec].macs for spec in (case.student, case.teacher) if spec is not None)


class _Bench:
    """What all comparisons share.

    Attributes:
        dataset: Images.
        precision: Of our paths.
        rates: Of the device.
        num_workers: That load images for the classic loop.
    """

    def __init__(self, config: BenchConfig, compute: Compute, dataset: Dataset, observer: Observer) -> None:
        self.dataset = dataset
        self.num_workers = 0
        self._config = config
        self._compute = compute
        self._device = compute.device
        self._observer = observer
        self._dtype = compute.autocast_dtype or torch.float32
        self.precision = str(self._dtype).removeprefix("torch.")
        self.rates = measure_rates(self._device, {torch.float32, self._dtype})
        self._longest_epoch = min(_LONGEST_EPOCH, len(dataset.train) // config.batch_size)

    def trace(self, case: Case, path: Path) -> None:
        """Write a trace of our own steps, with the teacher run at each of them if there is one."""
        with contextlib.closing(self._ours(case, cached=False, steps_per_epoch=self._longest_epoch)) as loop:
            write_trace(loop, path, self._device)
        self._observer(Note(f"trace of our steps, {case.work}, {case.method}: {path}"))

    def choose_workers(self, case: Case) -> None:
        """Give the classic loop as many workers as it is faster with: none or two."""
        if usable_cores() > 1:
            with contextlib.ExitStack() as stack:
                self.num_workers = self._faster_workers(self._classic(case, stack))
        self._observer(Note(f"the classic loop is given {self.num_workers} data workers"))

    def _faster_workers(self, warm: _WarmClassic) -> int:
        """None where a step is so long that making the images hardly counts."""
        steps = min(_MOST_TRIAL_STEPS, int(self._at_most(_TRIAL_SECONDS) / warm.step_seconds))
        if not steps:
            return 0
        seconds = {}
        for num_workers in (0, 2):
            warm.loop.num_workers = num_workers
            seconds[num_workers] = warm.loop.seconds(steps, run_in=True)
        return min(seconds, key=seconds.__getitem__)

    def compare(self, case: Case, *, seconds: float) -> list[dict[str, Any]]:
        """Time all paths of a comparison in turns.

        Args:
            case: What is compared.
            seconds: About how long, warm-ups included.
        """
        started = time.perf_counter()
        self._observer(Note(f"{case.work}, {case.method}: warming up"))
        with contextlib.ExitStack() as stack:
            warm = self._warm_up(case, stack)
            rounds, turns = make_schedule(
                {path: found.step_seconds for path, found in warm.items()},
                rounds=self._config.rounds,
                seconds=seconds - (time.perf_counter() - started),
            )
            loops = {path: found.loop for path, found in warm.items()}
            images_a_step = {path: self._num_students(path) * self._config.batch_size for path in loops}
            rates = take_turns(loops, turns, rounds=rounds, images_a_step=images_a_step)
            bounds = {path: self._bound(case, path, loop) for path, loop in loops.items()}
        measured = {
            path: Measured(
                rates=rates[path],
                steps=turns[path].steps,
                warm_up_seconds=found.seconds,
                peak_memory_bytes=found.peak_memory_bytes,
                bound=bounds[path],
                num_students=self._num_students(path),
            )
            for path, found in warm.items()
        }
        rows = result_rows(case, measured, batch_size=self._config.batch_size)
        rates_in_words = ", ".join(f"{row['path']} {row['images_per_second']:,.0f}" for row in rows)
        self._observer(Note(f"{case.work}, {case.method}: {rates_in_words} images/s"))
        return rows

    def _warm_up(self, case: Case, stack: contextlib.ExitStack) -> dict[str, WarmUp[Loop]]:
        """All paths of a comparison, ready to be timed; the stack closes them."""
        warm: dict[str, WarmUp[Loop]] = {CLASSIC: self._classic(case, stack)}
        wanted = int(self._at_most(_FILL_SECONDS) / warm[CLASSIC].step_seconds)
        steps_per_epoch = min(self._longest_epoch, max(_SHORTEST_EPOCH, wanted))

        def ours(path: str) -> Loop:
            loop = self._ours(case, cached=path == CACHED, steps_per_epoch=steps_per_epoch)
            return stack.enter_context(contextlib.closing(loop))

        for path in (LIVE,) if case.teacher is None else (LIVE, CACHED):
            warm[path] = warm_up(lambda path=path: ours(path), self._device)  # type: ignore[misc]
        return warm

    def _at_most(self, seconds: float) -> float:
        return min(seconds, _PREPARING_SHARE * self._config.seconds)

    def _classic(self, case: Case, stack: contextlib.ExitStack) -> _WarmClassic:
        """The classic loop, ready to be timed; the stack ends its process."""
        if self._device.type == "cpu":
            process = ClassicProcess(self._config, case, threads=torch.get_num_threads(), num_workers=self.num_workers)
            return stack.enter_context(contextlib.closing(process)).warm_up()
        return warm_up(
            lambda: classic_loop(
                case,
                self.dataset,
                batch_size=self._config.batch_size,
                num_workers=self.num_workers,
                device=self._device,
            ),
            self._device,
        )

    def _ours(self, case: Case, *, cached: bool, steps_per_epoch: int) -> OurLoop:
        return OurLoop(
            case,
            self.dataset,
            self._compute,
            cached=cached,
            batch_size=self._config.batch_size,
            steps_per_epoch=steps_per_epoch,
            num_students=self._num_students(LIVE),
        )

    def _num_students(self, path: str) -> int:
        return 1 if path == CLASSIC else self._config.students

    def _bound(self, case: Case, path: str, loop: Loop) -> float:
        """What the device could do at best with a path's work, in the path's precision.

        The classic loop's work is held to be what it has to do: the teacher's backward pass is no part of it.
        """
        needs = training_needs(build(case.student, self.dataset), IMAGE_SIZE)
        if case.teacher is not None and path != CACHED:
            asked = inference_needs(build(case.teacher, self.dataset), IMAGE_SIZE)
            needs += asked.shared_by(self._num_students(path))
        return bound(
            needs,
            self.rates,
            dtype=torch.float32 if path == CLASSIC else self._dtype,
            batch_size=self._config.batch_size * self._num_students(path),
            launches=count_launches(loop, self._device),
        )
