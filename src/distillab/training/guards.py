"""What must be true of any distillation, held while it goes on: teachers stay as they are, learners move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from distillab.data.batch import Batch
from distillab.errors import GuardError
from distillab.training.state import tensors_of
from distillab.training.step import Learner

_NUM_SHOWN = 3
_PIECE = 1 << 18  # bounds the memory that a checksum takes beside its tensor
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes an element
_MULTIPLIER = (
    0x5851F42D4C957F2D  # odd, so that a product modulo 2^64 can be undone: nothing is lost of what came before
)


class TeacherGuard:
    """Sees that a teacher is the same to the last bit when a stage ends as when it began.

    Args:
        teacher: On its device.
        title: Of the stage, for the message.
    """

    def __init__(self, teacher: nn.Module, *, title: str) -> None:
        self._teacher = teacher
        self._title = title
        self._before = fingerprint(tensors_of(teacher))

    def check(self) -> None:
        """After the last step.

        Raises:
            GuardError: A parameter or buffer is another than before; it is named.
        """
        before, after = self._before, fingerprint(tensors_of(self._teacher))
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        if changed:
            raise GuardError(
                f"the teacher changed while it taught: {_few(changed)}",
                where=self._title,
                hint="let it share no module with the student, and change no buffer in evaluation mode",
            )


class LearnerGuard:
    """Sees that whatever learns in a stage has moved when the stage ends: the student, and the adapter if there is one.

    One parameter may well stay where it is, as the bias of a ReLU that is never on does; all of them may not.

    Args:
        learner: On its device; what the stage does not train is frozen.
        title: Of the stage, for the message.
    """

    def __init__(self, learner: Learner, *, title: str) -> None:
        self._title = title
        self._parts = {"student": _moving(learner.student), "adapter": _moving(learner.adapter)}
        self._before = {name: fingerprint(parameters) for name, parameters in self._parts.items()}

    def check(self) -> None:
        """After the last step, before other weights take the place of the last ones.

        Raises:
            GuardError: All parameters of the student, or of the adapter, are as they were.
        """
        for name, parameters in self._parts.items():
            if parameters and fingerprint(parameters) == self._before[name]:
                raise GuardError(
                    f"the {name} did not learn: none of its parameters has moved",
                    where=self._title,
                    hint="raise optimizer.learning_rate; if it is not tiny, no gradient comes through",
                )


def term_shares(values: Mapping[str, float]) -> dict[str, float]:
    """How much each term of a loss weighs in it.

    share of a term = |term| / sum of all |terms|

    Args:
        values: An epoch's numbers, of which those named "loss/<term>" count; finite.

    Returns:
        "share/<term>", each 0..1, adding up to 1. Empty for fewer than two terms, and where all are zero.
    """
    terms = {name.removeprefix("loss/"): abs(value) for name, value in values.items() if name.startswith("loss/")}
    largest = max(terms.values(), default=0.0)
    if len(terms) < 2 or not largest:
        return {}
    parts = {name: value / largest for name, value in terms.items()}  # whose sum cannot overflow
    total = sum(parts.values())
    return {f"share/{name}": part / total for name, part in parts.items()}


def describe_batch(batch: Batch) -> str:
    """Which images a batch holds, by their positions in the training set; this waits for the device.

    Args:
        batch: Of any source.

    Returns:
        Such as "images 17, 5, 300, ... (128 in all)".
    """
    count = len(batch.labels)
    images = "image" if count == 1 else "images"
    if batch.indices is None:
        return f"{count} {images} of a loader that does not tell their positions"
    return f"{images} {_few(str(index) for index in batch.indices.tolist())}"


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """A number for each tensor that is another when any bit of the tensor is; this waits for the device once.

    It is the sum of the elements' bits as integers, each times an odd random number of its position, modulo 2^64. A
    change of one element always shows; one of several stays hidden by chance, once in some 2^60 times.

    Args:
        tensors: Of any shapes, types and strides, on one device.

    Returns:
        The same names, each with 64 bits as a signed integer.
    """
    if not tensors:
        return {}
    weights = _odd_numbers(next(iter(tensors.values())).device)
    sums = torch.stack([_checksum(tensor.detach(), weights) for tensor in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))


def _checksum(tensor: Tensor, weights: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    bits = flat.view(_INTEGERS.get(flat.element_size(), torch.uint8))
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for piece in torch.split(bits, len(weights)):
        total = total * _MULTIPLIER + (piece * weights[: len(piece)]).sum()
    return total


def _odd_numbers(device: torch.device) -> Tensor:
    """[_PIECE] int64, the same on every device; nobody else's generator moves."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(1 << 62), 1 << 62, (_PIECE,), generator=generator) | 1).to(device)


def _moving(part: nn.Module | None) -> dict[str, Tensor]:
    """What learns of a part."""
    return {} if part is None else {name: p for name, p in part.named_parameters() if p.requires_grad}


def _few(names: Iterable[str]) -> str:
    """The first of some names, and how many there are."""
    known = list(names)
    first = ", ".join(known[:_NUM_SHOWN])
    return first if len(known) <= _NUM_SHOWN else f"{first}, ... ({len(known)} in all)"
