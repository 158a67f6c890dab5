"""Models compiled block by block, for as long as they are trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch
import torch._dynamo
import torch._inductor.config
from torch import nn

from distillab.models.classifier import Chain
from distillab.runtime.events import Note, Observer


class Compilation:
    """Models that run as compiled code inside the block; afterwards they are as they were.

    Block by block, since blocks of one shape share their code: the whole of a deep network takes minutes to compile.
    Parameters and their names stay. On a GPU dropout keeps the random numbers that it has without compilation; our
    own `Dropout` on a CPU draws others.

    Args:
        observer: Is told of models that are left as they are.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._blocks: dict[nn.Module, list[nn.Module]] = {}
        self._told: set[nn.Module] = set()
        self._settings = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._settings.enter_context(torch._dynamo.config.patch(recompile_limit=64))
        self._settings.enter_context(torch._inductor.config.patch(fallback_random=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.keep({})
        self._settings.close()

    def keep(self, models: Mapping[nn.Module, Iterable[str]]) -> None:
        """Let these models be compiled, and no others.

        Args:
            models: With the layers that are read of each. A model of which one is read by a hook is left as it is,
                since hooks do not work inside compiled code.
        """
        hooked = {model for model, layers in models.items() if _needs_hooks(model, tuple(layers))}
        for model in [model for model in self._blocks if model not in models or model in hooked]:
            self.release(model)
        for model in models:
            if model in hooked:
                self._tell(model)
            elif model not in self._blocks:
                self._blocks[model] = [b for b in repeated_blocks(model) if b._compiled_call_impl is None]
                for block in self._blocks[model]:
                    block._compiled_call_impl = torch.compile(_call(block), dynamic=False)

    @contextlib.contextmanager
    def paused(self, model: nn.Module) -> Iterator[None]:
        """Let a model run as it did before inside: it is validated in less time than it is compiled for that."""
        compiled = {block: block._compiled_call_impl for block in self._blocks.get(model, ())}
        for block in compiled:
            block._compiled_call_impl = None
        try:
            yield
        finally:
            for block, call in compiled.items():
                block._compiled_call_impl = call

    def release(self, model: nn.Module) -> None:
        """Let a model run as it did before, if it is compiled."""
        for block in self._blocks.pop(model, ()):
            block._compiled_call_impl = None

    def _tell(self, model: nn.Module) -> None:
        if model not in self._told:
            self._told.add(model)
            self._observer(Note(f"{type(model).__name__} is not compiled: its layers are read by hooks"))


def _call(block: nn.Module) -> Callable[..., Any]:
    """What a block does when it is called, as a function of this file.

    Torch 2.11 compiles no frame of its own files, so none of `Module.compile` where a block is an
    `nn.Sequential` of torch's own layers: it would run as if it had not been compiled.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return block._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    return call


def _needs_hooks(model: nn.Module, layers: Sequence[str]) -> bool:
    """Whether `forward_features` reads any of these layers by a hook."""
    own = (*model.links, *model.branches) if isinstance(model, Chain) else ()
    return any(layer not in own for layer in layers)


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
