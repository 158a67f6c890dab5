"""Work recorded once and replayed: a CUDA graph, behind an interface that a CPU can stand in for."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")

_WARM_UPS = 3  # cuDNN tries its kernels in the first, and autograd makes its buffers


class CannotCaptureError(Exception):
    """The work does something that a graph cannot hold, such as waiting for the device; it can still be run as it is.

    The message says what.
    """


class Capture(Generic[ResultT]):
    """Work without arguments, recorded once: a call replays its kernels with no Python between them.

    The work reads its inputs from tensors that stay where they are (whoever wants other inputs writes them there
    before the call), and every replay leaves its results in the same tensors. Random numbers go on from where the
    device's default generator stands at the call, as they would without a graph.

    Recording runs the work a few times to warm up; the tensors of `state` are put back to what they were, and those
    that did not exist before, such as an optimizer's moments, to zero.

    On a CPU there are no graphs: the work is run again at each call, and its results are copied to where those of
    the first run lie. So everything but the graph itself is the same there, and can be tested.

    Args:
        work: What is recorded. Its result is a tensor, or tuples, lists, mappings or dataclasses of them.
        device: Where the work runs.
        state: Tells all tensors that the work changes and that matter afterwards.

    Raises:
        CannotCaptureError: The work cannot be recorded; the state is as it was.
    """

    def __init__(
        self,
        work: Callable[[], ResultT],
        *,
        device: torch.device,
        state: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._replay: Callable[[], None]
        if device.type == "cuda":
            self._result, self._replay = _graph(work, device, state)
        else:
            self._result, self._replay = _stand_in(work, state)

    def __call__(self) -> ResultT:
        """Replay; the results are overwritten by the next call."""
        self._replay()
        return self._result


def _graph(
    work: Callable[[], ResultT], device: torch.device, state: Callable[[], Iterable[Tensor]]
) -> tuple[ResultT, Callable[[], None]]:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream), _put_back(state):
            for _ in range(_WARM_UPS):
                work()
            _rehearse(work)
    finally:
        torch.cuda.current_stream(device).wait_stream(stream)  # which puts the state back
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Other threads may go on: a user's loader pins memory in one, which a recording would otherwise forbid.
    recording = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    try:
        # Around it the stream once more: a recording that breaks off would leave it the current one.
        with _no_garbage_collection(), torch.cuda.stream(stream), recording:
            result = work()
    except RuntimeError as error:
        _recover(stream, pool)
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise CannotCaptureError(str(error).splitlines()[0]) from error
    # A recording begins by writing the generator's state where replays write theirs, on this stream, at its leisure.
    torch.cuda.current_stream(device).wait_stream(stream)
    return result, graph.replay


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """No cycles are collected inside: what a finaliser does to the device would break a recording off."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _recover(stream: torch.cuda.Stream, pool: tuple[int, int]) -> None:
    """Make the device usable after a recording that broke off.

    Torch before 2.13 goes on allocating from its pool, which nobody would free, and its generator waits for the
    recording to go on: whoever draws or records next would fail. Ending the first and recording something that works
    sets both right.
    """
    with contextlib.suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)
    works = torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local")
    with contextlib.suppress(RuntimeError), torch.cuda.stream(stream), works:
        torch.zeros(1, device=stream.device)


def _rehearse(work: Callable[[], object]) -> None:
    """Do the work once more, where waiting for the device is an error.

    In a recording it would be one too, but a recording that breaks off leaves the device's generator unusable.

    Raises:
        CannotCaptureError: It waits.
    """
    before = torch.cuda.get_sync_debug_mode()
    _set_sync_debug_mode(2)
    try:
        work()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise CannotCaptureError("it waits for the device") from error
    finally:
        _set_sync_debug_mode(before)


def _set_sync_debug_mode(mode: int) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode(mode)


def _stand_in(work: Callable[[], ResultT], state: Callable[[], Iterable[Tensor]]) -> tuple[ResultT, Callable[[], None]]:
    with _put_back(state):
        result = work()
    places = list(tensors_in(result))

    def replay() -> None:
        for place, value in zip(places, tensors_in(work()), strict=True):
            if place is not value:
                place.detach().copy_(value.detach())

    return result, replay


@contextlib.contextmanager
def _put_back(state: Callable[[], Iterable[Tensor]]) -> Iterator[None]:
    """Put state back to what it was when the block began, whatever happens in it; what is new becomes zero."""
    before = [(tensor, tensor.detach().clone()) for tensor in state()]
    try:
        yield
    finally:
        known = {id(tensor) for tensor, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in state():
                if id(tensor) not in known:
                    tensor.zero_()


def tensors_in(result: Any) -> Iterator[Tensor]:
    """All tensors of a result of recorded work, in order.

    Args:
        result: A tensor, or tuples, lists, mappings or dataclasses of them; anything else in it holds none.
    """
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from tensors_in(value)
    elif is_dataclass(result) and not isinstance(result, type):
        for field in fields(result):
            yield from tensors_in(getattr(result, field.name))
    elif isinstance(result, Sequence) and not isinstance(result, str):
        for value in result:
            yield from tensors_in(value)
