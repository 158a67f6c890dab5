"""What validation says of a stage: the best weights so far, and when it is enough."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import nn

from distillab.evaluation.evaluate import Evaluator
from distillab.training.stage import Best


class Watch:
    """Looks at the validation images after each epoch: keeps the best weights, and knows when to stop.

    Attributes:
        patience: See below; None where nothing is looked at.
        best: The epoch with the lowest loss so far.

    Args:
        evaluator: Of the model; None: there are no such images.
        model: That is judged.
        as_used: Inside of it the model is as it would be used.
        patience: Epochs without improvement after which it is enough.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        model: nn.Module,
        as_used: Callable[[], AbstractContextManager[None]],
        *,
        patience: int | None,
    ) -> None:
        self.patience = None if evaluator is None else patience
        self.best: Best | None = None
        self._evaluator = evaluator
        self._model = model
        self._as_used = as_used

    def look(self, epoch: int) -> dict[str, float]:
        """Measure the model after an epoch.

        Args:
            epoch: How many are done.

        Returns:
            "validation_top1", 0..1, and "validation_loss", nats; nothing without validation images.
        """
        if self._evaluator is None:
            return {}
        with self._as_used():
            found = self._evaluator()
            if self.best is None or found.nll < self.best.validation.nll:
                self.best = Best(epoch, found, copy.deepcopy(self._model.state_dict()))
        return {"validation_top1": found.top1, "validation_loss": found.nll}

    def patience_is_over(self, epoch: int) -> bool:
        """Whether the last improvement lies too many epochs back.

        Args:
            epoch: How many are done.
        """
        return self.patience is not None and self.best is not None and epoch - self.best.epoch >= self.patience
