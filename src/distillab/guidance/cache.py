"""A teacher's logits, remembered, so that students who see the same batches need not ask again."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from torch import Tensor

from distillab.data.batches import Batch
from distillab.guidance.live import LiveTeacher
from distillab.models.features import ModelOutput


class LogitsMemory:
    """Logits of any number of teachers, in memory, for as long as this object lives.

    Kept by the batch, not by the image: the same batch gives the live teacher's numbers bit for bit, and a batch's
    content is a function of seed, epoch and number.
    """

    def __init__(self) -> None:
        self._logits: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        return len(self._logits)

    def recall(self, key: Hashable, ask: Callable[[], Tensor]) -> Tensor:
        """Logits [N, C]: remembered, or asked for now and remembered from then on.

        Args:
            key: Names all that the answer depends on.
            ask: Gives the answer.
        """
        if key not in self._logits:
            self._logits[key] = ask()
        return self._logits[key]


class RememberedTeacher:
    """A teacher that answers from memory what it has been asked before.

    Args:
        live: Answers what is new.
        memory: Shared by every run that may see the same batches.
        signature: Names all that a batch's content and the answer depend on: teacher, data, augmentation, seed,
            batch size, precision. Another signature never meets this one's answers.
    """

    def __init__(self, live: LiveTeacher, memory: LogitsMemory, signature: str) -> None:
        self.live = live
        self.memory = memory
        self.signature = signature

    def __call__(self, batch: Batch, step: int) -> ModelOutput:
        """Constants: logits [N, C] of batch number `step` of the view."""

        def ask() -> Tensor:
            logits = self.live(batch, step).logits
            assert logits is not None
            return logits

        return ModelOutput(self.memory.recall((self.signature, batch.view, step), ask))
