"""Tensors of modules and optimizers as plain dictionaries, and back; nothing is changed before all of it fits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distillab.errors import CheckpointError, DistillabError


@contextlib.contextmanager
def reading_state() -> Iterator[None]:
    """What is read inside has come through a hash, but may have been written by another version.

    Raises:
        CheckpointError: Instead of what Python raises where a part is missing or of another kind.
    """
    try:
        yield
    except DistillabError:
        raise
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise _does_not_fit(f"{type(error).__name__}: {error}") from error


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, those that are not saved with weights included."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@torch.no_grad()
def load_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, what: str) -> None:
    """Copy saved values into tensors that are in use, in their own memory format and on their own device.

    Args:
        own: Filled in place.
        saved: By the same names.
        what: Whose they are, for the message.

    Raises:
        CheckpointError: Names, shapes or types differ; nothing is changed then.
    """
    check_fits(own, saved, what=what)
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def check_fits(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], *, what: str) -> None:
    """See that saved tensors have the names, shapes and types of those that are in use.

    Raises:
        CheckpointError: They have not; the first difference is named.
    """
    for name in sorted({*own, *saved}):
        if name not in own or name not in saved:
            where = "only saved" if name in saved else "not saved"
            raise _does_not_fit(f"{what}: '{name}' is {where}")
        mine, other = own[name], saved[name]
        if mine.shape != other.shape or mine.dtype != other.dtype:
            raise _does_not_fit(
                f"{what}: '{name}' was saved as {other.dtype} {list(other.shape)}, here it is "
                f"{mine.dtype} {list(mine.shape)}"
            )


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """What an optimizer remembers of each parameter, by the parameter's number."""
    return {
        str(number): {name: value for name, value in optimizer.state[parameter].items() if isinstance(value, Tensor)}
        for number, parameter in enumerate(_parameters(optimizer))
        if optimizer.state.get(parameter)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give an optimizer back what it remembered.

    Moments take the memory format of their parameters, since fused updates go through both side by side.

    Raises:
        CheckpointError: It is of other parameters.
    """
    parameters = _parameters(optimizer)
    found: dict[Tensor, dict[str, Any]] = {}
    for number, state in saved.items():
        if not number.isdigit() or int(number) >= len(parameters):
            raise _does_not_fit(f"optimizer: there is no parameter {number}")
        parameter = parameters[int(number)]
        found[parameter] = {}
        for name, value in state.items():
            if value.shape not in (parameter.shape, torch.Size()):
                raise _does_not_fit(f"optimizer: {name} of parameter {number} has shape {list(value.shape)}")
            place = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else None
            found[parameter][name] = value.to(parameter.device) if place is None else place.copy_(value).detach()
    optimizer.state.clear()
    optimizer.state.update(found)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _does_not_fit(reason: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint is of another run: {reason}",
        where="checkpoint",
        hint="use the settings that the run was started with",
    )
