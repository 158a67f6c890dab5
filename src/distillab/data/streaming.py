"""Where a set's pixels lie: all on the device, or on the host, from where they come batch by batch, ahead of use."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillab.data.batch import Raw
from distillab.errors import DataError

RowsOf = Callable[[Tensor], Tensor]
"""Positions of a batch [N] -> the rows of the array that it is made of [N or more]."""

_BATCHES_AHEAD = 4
_THREADS = 4
_T = TypeVar("_T")


class ResidentImages:
    """Images that lie on the device.

    Attributes:
        stored_size: Side of the images, in pixels.
        home: Where `fetch` takes positions.

    Args:
        images: [M, H, H, 3] uint8; see `on_device`.
        device: Where to.

    Raises:
        DataError: They do not fit there.
    """

    def __init__(self, images: NDArray[np.uint8] | Tensor, device: torch.device) -> None:
        self._images = on_device(images, device)
        self.stored_size = self._images.shape[1]
        self.home = device

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, positions: Iterable[Tensor], rows_of: RowsOf, device: torch.device) -> Iterator[Raw]:
        """(positions,) of each batch: its pixels are there."""
        return ((some,) for some in positions)

    def pixels(self, raw: Raw, rows: Tensor) -> Tensor:
        """[N, H, H, 3] uint8, the images in these rows."""
        return self._images.index_select(0, rows)


class StreamedImages:
    """Images that stay on the host, memory-mapped say; the pixels of each batch are sent to the device ahead of use.

    Threads gather the rows of the next batches into pinned buffers (of a CPU: plain ones), which are copied beside
    the computation of the batch before. The device waits only if gathering is slower than its steps. Only the
    thread that asks for batches calls CUDA, so it may capture graphs between two of them.

    Attributes:
        stored_size: Side of the images, in pixels.
        home: Where `fetch` takes positions.

    Args:
        images: [M, H, H, 3] uint8; nothing of it is read before a batch needs it.
    """

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self._images = images
        self.stored_size: int = images.shape[1]
        self.home = torch.device("cpu")
        self._copies: torch.cuda.Stream | None = None  # one for all passes: memory belongs to the stream it was made on

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, positions: Iterable[Tensor], rows_of: RowsOf, device: torch.device) -> Iterator[Raw]:
        """(positions, pixels) of each batch on the device. Threads end with the iterator, wherever it is left.

        Args:
            positions: [N] int64 on the CPU, one tensor a batch.
            rows_of: Names the rows of each, on the CPU.
            device: Where to.
        """
        is_cuda = device.type == "cuda"
        pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="distillab-images")

        def gathering(some: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
            rows = rows_of(some)
            buffer = torch.empty((len(rows), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=is_cuda)
            return some, pool.submit(self._gather, rows, buffer).result

        try:
            ahead = _ahead(map(gathering, positions), _BATCHES_AHEAD)
            gathered = ((some, pixels()) for some, pixels in ahead)
            if is_cuda:
                if self._copies is None:
                    # Of another priority than the students', so that it is never one of theirs.
                    self._copies = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
                yield from _sent(gathered, device, self._copies)
            else:
                yield from (_moved(raw, device) for raw in gathered)
        finally:
            pool.shutdown(cancel_futures=True)

    def pixels(self, raw: Raw, rows: Tensor) -> Tensor:
        """[N, H, H, 3] uint8, the images in these rows: those that travelled with the batch."""
        return raw[1]

    def _gather(self, rows: Tensor, buffer: Tensor) -> Tensor:
        # "clip", because the default mode would gather into a buffer of its own first. NumPy copies whole rows
        # without the interpreter's lock, and leaves torch's threads to the steps.
        np.take(self._images, rows.numpy(), axis=0, out=buffer.numpy(), mode="clip")
        return buffer


def on_device(array: NDArray[np.generic] | Tensor, device: torch.device) -> Tensor:
    """An array as a contiguous tensor on a device; on a CPU it shares the array's memory.

    Args:
        array: Images or labels; a tensor that is there already is returned as it is.
        device: Where to.

    Raises:
        DataError: The device's memory is too small for it.
    """
    if isinstance(array, Tensor):
        tensor = array
    else:
        with warnings.catch_warnings():
            # Nothing writes to images or labels, so an array that may not be written can be shared.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(np.ascontiguousarray(array))
    try:
        return tensor.to(device).contiguous()
    except torch.OutOfMemoryError as error:
        raise DataError(
            f"{tensor.nbytes / 2**30:.1f} GiB of images do not fit on the device",
            where=str(device),
            hint="choose smaller images or fewer of them (split.train_limit), or --device cpu",
        ) from error


def fits_on_device(nbytes: int, device: torch.device, limit_gib: float | None = None) -> bool:
    """Whether images should lie on the device, or be streamed to it.

    On a CUDA device they may take half of the memory that is free, so that the other half is left to models. A CPU
    reads a memory-mapped array where it is: there they always lie on the device, unless the limit is lower.

    Args:
        nbytes: Size of all images that the run reads.
        device: Where the run computes.
        limit_gib: Lowers the limit, in GiB; None for none.
    """
    if limit_gib is not None and nbytes > limit_gib * 2**30:
        return False
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= free // 2


def _sent(gathered: Iterable[Raw], device: torch.device, copies: torch.cuda.Stream) -> Iterator[Raw]:
    """Batches on a CUDA device, each copied while the device is busy with the one before."""

    def send(raw: Raw) -> tuple[Raw, torch.cuda.Event]:
        with torch.cuda.stream(copies):
            # torch's allocator keeps a pinned buffer until the copies out of it are done.
            return _moved(tuple(part.pin_memory() for part in raw), device), copies.record_event()

    used: deque[torch.cuda.Event] = deque()
    for raw, is_there in _ahead(map(send, gathered), 1):
        steps = torch.cuda.current_stream(device)
        steps.wait_event(is_there)
        for part in raw:
            part.record_stream(steps)  # not to be used again before the steps that read it are over
        yield raw
        # A host that launches steps faster than they run would fill the device with batches: it stays a few ahead.
        used.append(steps.record_event())
        if len(used) > _BATCHES_AHEAD:
            used.popleft().synchronize()


def _moved(raw: Raw, device: torch.device) -> Raw:
    return tuple(part.to(device, non_blocking=device.type == "cuda") for part in raw)


def _ahead(items: Iterable[_T], number: int) -> Iterator[_T]:
    """The items as they come, each taken from its source when the one `number` places before it is given."""
    waiting: deque[_T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > number:
            yield waiting.popleft()
    yield from waiting
