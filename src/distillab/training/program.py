"""How the steps of some students on the same batches are executed: one by one, recorded, or compiled."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from distillab.data.batch import Batch, Raw, TrainingSource
from distillab.guidance.base import Guidance
from distillab.guidance.sharing import SharedGuidance
from distillab.models.features import ModelOutput
from distillab.runtime.capture import CannotCaptureError, Capture, tensors_in
from distillab.runtime.device import Compute
from distillab.runtime.events import Note, Observer
from distillab.training.step import Step

_SIDE_BY_SIDE = 16  # torch has 32 streams, and who is recorded on one stream shares cuBLAS's memory with others there

Front = tuple[Batch, list[ModelOutput | None]]
"""What comes before the students: the batch, and what their teachers say of it."""


class Program:
    """The steps of some students on the same batches.

    A step is one front (batch made and augmented, teachers asked) and, on its results, each student's own step. The
    students do not know of each other: each draws its dropout from the seed that it would have alone, so it goes the
    same way as alone.

    Recorded (`Compute.records`), the front is one graph and every student's step another; on a GPU the students run
    side by side, each on a stream of its own, and the front of the step that follows runs beside them.

    Attributes:
        own_seconds: Wall time of each student's own part of this epoch's steps; zeros where students run side by side.
        guiding_seconds: Wall time for which teachers were asked in this epoch; zero where steps are recorded.

    Args:
        batches: Where batches come from.
        compute: Device and precision.
        observer: Is told where steps cannot be recorded, and are run one by one.
    """

    def __init__(self, batches: TrainingSource, compute: Compute, *, observer: Observer) -> None:
        self._batches = batches
        self._device = compute.device
        self._captured = compute.records
        self._observer = observer
        self._view = torch.zeros((), dtype=torch.int64, device=compute.device)
        self._front: _RecordedFront | None = None
        self._backs: list[Capture[None]] = []  # one a step
        self._streams: list[torch.cuda.Stream] = []  # the students'
        self._front_stream: torch.cuda.Stream | None = None
        if compute.records and compute.device.type == "cuda":
            # Another priority, because streams of one priority are dealt out again after 32: it is to be nobody else's.
            self._front_stream = torch.cuda.Stream(compute.device, priority=-1)  # type: ignore[no-untyped-call]
        self._recorded_for: object = None
        self._steps: Sequence[Step] = ()
        self.own_seconds: list[float] = []
        self.guiding_seconds = 0.0

    def begin_epoch(self, steps: Sequence[Step], guidances: Sequence[Guidance | None], epoch: int) -> None:
        """Make ready for an epoch.

        Args:
            steps: Of the students that take part.
            guidances: What guides each of them.
            epoch: Its number.
        """
        self._steps = steps
        self.own_seconds = [0.0] * len(steps)
        self.guiding_seconds = 0.0
        self._guidance = SharedGuidance(guidances)
        view = self._batches.view_of(epoch)
        with self._guiding():
            self._guidance.begin_epoch(epoch, self._batches)
        self._view.fill_(view)
        if (found := (tuple(steps), self._guidance.phase)) != self._recorded_for:
            self.forget()
            self._recorded_for = found

    def with_following(self, raws: Iterable[Raw]) -> Iterator[tuple[Raw, Raw | None]]:
        """Each batch's parts with those of the batch after it, where that one can begin early.

        Elsewhere without: a loader that fills one buffer again and again would have spoilt this batch by the next.

        Args:
            raws: Of an epoch, in order.
        """
        if not self._captured:
            yield from ((raw, None) for raw in raws)
            return
        waiting: Raw | None = None
        for raw in raws:
            if waiting is not None:
                yield waiting, raw
            waiting = raw
        if waiting is not None:
            yield waiting, None

    def end_epoch(self, left_out: Iterable[Batch]) -> None:
        """Let guidance that keeps answers complete the view."""
        with self._guiding():
            self._guidance.end_epoch(left_out)

    def __call__(self, raw: Raw, seed: int, following: Raw | None = None) -> None:
        """Let every student take a step.

        Args:
            raw: What the batch is made of.
            seed: Of dropout, the same for all.
            following: What the next batch of this epoch is made of, where it is known.
        """
        if self._captured:
            try:
                self._replay(raw, seed, following)
                return
            except CannotCaptureError as error:
                self._captured = False
                self.forget()
                self._observer(Note(f"the steps cannot be captured and run eagerly: {error}"))
        batch, guides = self._ask(raw)
        for position, (step, guide) in enumerate(zip(self._steps, guides, strict=True)):
            with self._timed(position):
                self._seed(seed)
                step(batch, guide)

    def forget(self) -> None:
        """Let go of what was recorded, and have the device's queue wait for a batch that is still being made."""
        if self._front is not None:
            self._front.settle()
        self._front = None
        self._backs = []

    def _ask(self, raw: Raw) -> Front:
        batch = self._batches.make(raw, self._view)
        with self._guiding():
            return batch, self._guidance(batch)

    def _replay(self, raw: Raw, seed: int, following: Raw | None) -> None:
        if self._front is None:
            self._record(raw)
        assert self._front is not None
        if not self._front.fits(raw):
            raise CannotCaptureError("the batches are of several sizes")
        self._front.take(raw)
        if following is not None and self._front.fits(following):
            self._seed(seed)  # a replay may write down the generator's state even if it draws nothing: no other one
            self._front.begin(following)
        if self._device.type == "cuda" and len(self._steps) > 1:
            self._side_by_side(seed)
        else:
            for position, back in enumerate(self._backs):
                with self._timed(position):
                    self._seed(seed)
                    back()

    def _side_by_side(self, seed: int) -> None:
        main = torch.cuda.current_stream(self._device)
        while len(self._streams) < min(len(self._backs), _SIDE_BY_SIDE):
            self._streams.append(torch.cuda.Stream(self._device))  # type: ignore[no-untyped-call]
        for start in range(0, len(self._backs), _SIDE_BY_SIDE):
            backs = self._backs[start : start + _SIDE_BY_SIDE]
            for stream, back in zip(self._streams, backs, strict=False):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    # Graphs that read the generator's state from one place may overlap: all put the same there.
                    self._seed(seed)
                    back()
            for stream in self._streams[: len(backs)]:
                main.wait_stream(stream)

    def _record(self, raw: Raw) -> None:
        front = _RecordedFront(self._ask, raw, self._device, self._front_stream)
        batch, guides = front.taken
        self._backs = [
            Capture(
                lambda step=step, guide=guide: step(batch, guide),  # type: ignore[misc]
                device=self._device,
                state=step.state,
            )
            for step, guide in zip(self._steps, guides, strict=True)
        ]
        self._front = front

    @contextlib.contextmanager
    def _guiding(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.guiding_seconds += time.perf_counter() - started

    @contextlib.contextmanager
    def _timed(self, position: int) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.own_seconds[position] += time.perf_counter() - started

    def _seed(self, seed: int) -> None:
        # One generator, not all of torch's: that would cost more than it is worth at every step.
        if self._device.type == "cuda":
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        elif self._device.type == "mps":
            torch.mps.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)


class _RecordedFront:
    """A recorded front that can be a step ahead: what students read is a copy, and stays while the next one is made.

    Attributes:
        taken: What students read.

    Args:
        ask: The front.
        raw: What a batch is made of; this one is made at once.
        device: Where it runs.
        stream: Where it runs ahead; None on a CPU.
    """

    def __init__(
        self, ask: Callable[[Raw], Front], raw: Raw, device: torch.device, stream: torch.cuda.Stream | None
    ) -> None:
        self._raw = tuple(tensor.clone() for tensor in raw)
        self._stream = stream
        self._device = device
        self._make = Capture(lambda: ask(self._raw), device=device)
        made = self._make()
        self._under_way: Raw | None = raw
        copies = {id(source): (source, source.detach().clone()) for source in tensors_in(made)}
        self._sources, self._targets = (list(tensors) for tensors in zip(*copies.values(), strict=True))
        self.taken = copy.deepcopy(made, {key: target for key, (_, target) in copies.items()})

    def fits(self, raw: Raw) -> bool:
        """Whether a batch has the size of the one that was recorded."""
        return [place.shape for place in self._raw] == [value.shape for value in raw]

    def begin(self, raw: Raw) -> None:
        """Start to make the next batch; what was taken stays as it is."""
        self.settle()
        for place, value in zip(self._raw, raw, strict=True):
            place.copy_(value, non_blocking=True)
        if self._stream is None:
            self._make()
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                self._make()
        self._under_way = raw

    def take(self, raw: Raw) -> None:
        """Take the batch that is made of this, which may have begun."""
        if self._under_way is not raw:
            self.begin(raw)
        self.settle()
        torch._foreach_copy_(self._targets, self._sources)

    def settle(self) -> None:
        """Let what is queued from now on wait for a batch that is being made."""
        if self._under_way is not None and self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        self._under_way = None
