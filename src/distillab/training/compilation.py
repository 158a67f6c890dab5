"""Models compiled block by block, for as long as they are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

from distillab.models.classifier import Chain
from distillab.runtime.events import Note, Observer


@contextlib.contextmanager
def compiled(model: nn.Module, *, taps: bool, observer: Observer) -> Iterator[None]:
    """Run a model's repeated blocks as compiled code inside; afterwards it is as it was.

    Block by block, since blocks of one shape share their code: the whole of a deep network takes minutes to compile.
    Dropout keeps the random numbers that it has without compilation.

    Args:
        model: Compiled in place; parameters and their names stay.
        taps: Layers of the model are read by hooks, if it is none of ours: then it is left as it is, since hooks do
            not work inside compiled code.
        observer: Is told if so.
    """
    if taps and not isinstance(model, Chain):
        observer(Note(f"{type(model).__name__} is not compiled: its layers are read by hooks"))
        yield
        return
    blocks = [block for block in repeated_blocks(model) if block._compiled_call_impl is None]
    with (
        torch._dynamo.config.patch(recompile_limit=64),
        torch._inductor.config.patch(fallback_random=True),
    ):
        for block in blocks:
            block.compile(dynamic=False)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The outermost blocks of a model that follow each other in a sequence of two or more of one class.

    Returns:
        The blocks, in order; the model itself where there are none.
    """
    return _blocks(model) or [model]


def _blocks(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    are_one_class = len({type(child) for child in children}) == 1
    if isinstance(module, nn.Sequential | nn.ModuleList) and len(children) > 1 and are_one_class:
        return [child for child in children if next(child.children(), None) is not None]
    return [block for child in children for block in _blocks(child)]
