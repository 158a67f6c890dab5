"""What a student does with one batch: forward, terms, backward, update. Nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillab.data.batch import Batch
from distillab.methods.base import Method
from distillab.models.features import ModelOutput, forward_features
from distillab.runtime.device import Compute
from distillab.training.averaging import MovingAverage
from distillab.training.optimizer import clip_gradients, set_learning_rate
from distillab.training.state import load_tensors


class Learner(nn.Module):
    """All that learns in a stage: the student, and the adapter of its guided layer if the method has one.

    Args:
        student: The model that is trained.
        layer: Name of the guided layer; None: logits only.
        adapter: Maps the guided layer's feature to the teacher's; None: as it is.
        stop: The student runs, and learns, only up to the guided layer.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        layer: str | None = None,
        adapter: nn.Module | None = None,
        stop: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.adapter = adapter
        self.layer = layer
        self.stop = stop

    def forward(self, images: Tensor) -> ModelOutput:
        """Logits [N, C] (none where it stops before them) and the adapted feature, under the layer's name."""
        if self.layer is None:
            return forward_features(self.student, images)
        output = forward_features(self.student, images, [self.layer], stop=self.stop)
        if self.adapter is None:
            return output
        return ModelOutput(output.logits, {self.layer: self.adapter(output.features[self.layer])})


class Tally:
    """Sums over the steps since the last reading, kept on the device and read in one go.

    Also the latch of bad numbers: which term, or the gradient, was the first to be NaN or infinite, and at which step.
    Everything is written in place, so that a recorded step goes on writing to the same tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.names: tuple[str, ...] = ()
        self.found_inf = torch.zeros((), device=device)
        self._num_samples = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device)
        self._sums: Tensor | None = None  # [number of terms], known with the first step
        self._bad_steps: Tensor | None = None  # [number of terms + 1], counted from 1; 0 is none
        self._scored = False

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        tensors = (self.found_inf, self._num_samples, self._correct, self._sums, self._bad_steps)
        return [tensor for tensor in tensors if tensor is not None]

    def saved(self) -> dict[str, Any]:
        """What must be known to go on adding, for a checkpoint."""
        sums = {} if self._sums is None else {"sums": self._sums, "bad_steps": self._bad_steps}
        counts = {"found_inf": self.found_inf, "num_samples": self._num_samples, "correct": self._correct}
        return {"names": list(self.names), "scored": self._scored, "tensors": {**counts, **sums}}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on where another one was.

        Raises:
            CheckpointError: It counted something else.
        """
        self.names = tuple(saved["names"])
        self._scored = saved["scored"]
        if self.names:
            self._sums = torch.zeros(len(self.names), device=self.found_inf.device)
            self._bad_steps = torch.zeros(len(self.names) + 1, device=self.found_inf.device)
        load_tensors(self.saved()["tensors"], saved["tensors"], what="sums of the losses")

    def reset(self) -> None:
        """Start anew; the latch stays."""
        for tensor in (self._num_samples, self._correct, self._sums):
            if tensor is not None:
                tensor.zero_()

    @torch.no_grad()
    def add(
        self, terms: dict[str, Tensor], gradient_norm: Tensor, logits: Tensor | None, labels: Tensor, step: Tensor
    ) -> None:
        """Take in a step's terms (each [N] or []) and its gradient's norm ([]), and count right answers.

        Args:
            terms: By name; the same ones at every step.
            gradient_norm: [] of all that learns.
            logits: [N, C], or None where the student stops before them.
            labels: [N] or [N, C].
            step: [] number of the step within its stage, from 0.
        """
        size = labels.shape[0]
        means = torch.stack([term.detach().float().mean() for term in terms.values()])  # [number of terms]
        if self._sums is None or self._bad_steps is None:
            self.names = tuple(terms)
            self._sums = torch.zeros_like(means)
            self._bad_steps = torch.zeros(len(means) + 1, device=means.device)
        bad = ~torch.isfinite(torch.cat([means, gradient_norm[None]]))
        self._bad_steps.copy_(torch.where(bad & (self._bad_steps == 0), step + 1, self._bad_steps))
        self.found_inf.copy_(torch.maximum(self.found_inf, bad.any()))
        self._sums.add_(means, alpha=size)
        self._num_samples += size
        if logits is not None:
            truth = labels if labels.ndim == 1 else labels.argmax(dim=1)
            self._correct += (logits.argmax(dim=1) == truth).sum()
            self._scored = True

    def read(self) -> dict[str, float]:
        """Means since the last reset; this waits for the device.

        Returns:
            "loss", one "loss/<term>" a term, and "train_top1" where there were logits. Empty before any step.
        """
        if self._sums is None:
            return {}
        *sums, correct, size = torch.cat([self._sums, self._correct[None], self._num_samples[None]]).tolist()
        if not size:
            return {}
        parts = [total / size for total in sums]
        values = {"loss": sum(parts), **{f"loss/{n}": v for n, v in zip(self.names, parts, strict=True)}}
        if self._scored:
            values["train_top1"] = correct / size
        return values

    def first_bad(self) -> tuple[str, int] | None:
        """What was the first to be NaN or infinite ("the loss term 'labels'", "the gradient"), and at which step.

        This waits for the device.
        """
        if self._bad_steps is None or self.found_inf.item() == 0:
            return None
        names = [*(f"the loss term '{name}'" for name in self.names), "the gradient"]
        steps = zip(names, self._bad_steps.tolist(), strict=True)
        return min(((name, int(step) - 1) for name, step in steps if step), key=lambda pair: pair[1])


class Step:
    """What one student does with a batch: forward, terms, backward, update.

    It has no arguments that change from step to step but tensors, so that it can be recorded: see `Capture`.

    Attributes:
        tally: Losses and right answers so far.

    Args:
        learner: What learns.
        method: What it minimises.
        optimizer: Updates the learner's trainable parameters.
        gradient_clip: Largest norm of the gradient, or None.
        average: Moving average that follows the student, or None.
        compute: Precision and device.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        method: Method[Any],
        optimizer: torch.optim.Optimizer,
        gradient_clip: float | None,
        average: MovingAverage | None,
        compute: Compute,
    ) -> None:
        self.learner = learner
        self.optimizer = optimizer
        self.tally = Tally(compute.device)
        self._method = method
        self._gradient_clip = gradient_clip
        self._average = average
        self._compute = compute
        self._progress = torch.zeros((), device=compute.device)
        self._number = torch.zeros((), device=compute.device)
        # The fused update is skipped on the device while this is 1, so a bad batch never reaches the weights.
        optimizer.found_inf = self.tally.found_inf  # type: ignore[attr-defined]

    def set_clock(self, number: int, total: int, learning_rate: float) -> None:
        """Say which step comes next; nothing waits for the device.

        Args:
            number: Of the step within its stage, from 0.
            total: Steps of the stage.
            learning_rate: Of this step.
        """
        self._number.fill_(number)
        self._progress.fill_(number / total)
        set_learning_rate(self.optimizer, learning_rate)

    def state(self) -> list[Tensor]:
        """All tensors that a step changes and that matter afterwards."""
        moments = [
            value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
        averages = self._average.state() if self._average else []
        return [*self.learner.parameters(), *self.learner.buffers(), *moments, *averages, *self.tally.state()]

    def __call__(self, batch: Batch, guide: ModelOutput | None) -> None:
        """Learn from one batch.

        Args:
            batch: Images and labels, on the device.
            guide: What the teacher says of it; None for a method without one.
        """
        with self._compute.autocast():
            output = self.learner(batch.images)
        terms = self._method.terms(output, guide, batch.labels, self._progress)
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(trainable(self.learner), self._gradient_clip)
        self.tally.add(terms, norm, output.logits, batch.labels, self._number)
        self.optimizer.step()
        if self._average is not None:
            self._average.update(self.learner.student)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that learn."""
    return [p for p in module.parameters() if p.requires_grad]


def freeze_beyond(learner: Learner, images: Tensor) -> Sequence[nn.Parameter]:
    """Freeze the student's parameters that a stage which stops early does not reach.

    Args:
        learner: Its student runs only up to the guided layer.
        images: [N, 3, H, W], any few; only the graph matters.

    Returns:
        Those that were frozen, for the caller to thaw after the stage.
    """
    output = learner(images)
    assert learner.layer is not None
    parameters = trainable(learner.student)
    reached = torch.autograd.grad(output.features[learner.layer].sum(), parameters, allow_unused=True)
    beyond = [p for p, gradient in zip(parameters, reached, strict=True) if gradient is None]
    for parameter in beyond:
        parameter.requires_grad_(False)
    return beyond
