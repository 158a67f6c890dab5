"""One training step: forwards, terms, backward and update. Nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distillab.data.batches import Batch
from distillab.guidance.live import Guidance
from distillab.methods.base import Method
from distillab.models.features import ModelOutput, forward_features
from distillab.runtime.device import Compute
from distillab.training.averaging import MovingAverage
from distillab.training.optimizer import clip_gradients


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
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.found_inf = torch.zeros((), device=device)
        self.reset()

    def reset(self) -> None:
        """Start anew; the latch stays."""
        self.sums: Tensor | None = None
        self.num_samples = 0
        self.correct = torch.zeros((), device=self.device)
        self.scored = False

    @torch.no_grad()
    def add(
        self, terms: dict[str, Tensor], gradient_norm: Tensor, logits: Tensor | None, labels: Tensor, step: int
    ) -> None:
        """Take in a step's terms (each [N] or []) and its gradient's norm ([]), and count right answers."""
        size = labels.shape[0]
        means = torch.stack([term.detach().float().mean() for term in terms.values()])  # [number of terms]
        if not self.names:
            self.names = tuple(terms)
            self.bad_steps = torch.full((len(terms) + 1,), -1, device=self.device)
        bad = ~torch.isfinite(torch.cat([means, gradient_norm[None]]))
        self.bad_steps = torch.where(bad & (self.bad_steps < 0), step, self.bad_steps)
        self.found_inf.copy_(torch.maximum(self.found_inf, bad.any()))
        self.sums = means * size if self.sums is None else self.sums + means * size
        self.num_samples += size
        if logits is not None:
            truth = labels if labels.ndim == 1 else labels.argmax(dim=1)
            self.correct += (logits.argmax(dim=1) == truth).sum()
            self.scored = True

    def read(self) -> dict[str, float]:
        """Means since the last reset; this waits for the device.

        Returns:
            "loss", one "loss/<term>" a term, and "train_top1" where there were logits. Empty before any step.
        """
        if self.sums is None:
            return {}
        *parts, correct = (torch.cat([self.sums, self.correct[None]]) / self.num_samples).tolist()
        values = {"loss": sum(parts), **{f"loss/{n}": v for n, v in zip(self.names, parts, strict=True)}}
        if self.scored:
            values["train_top1"] = correct
        return values

    def first_bad(self) -> tuple[str, int] | None:
        """What was the first to be NaN or infinite ("the loss term 'labels'", "the gradient"), and at which step.

        This waits for the device.
        """
        if not self.names or self.found_inf.item() == 0:
            return None
        names = [*(f"the loss term '{name}'" for name in self.names), "the gradient"]
        steps = zip(names, self.bad_steps.tolist(), strict=True)
        return min(((name, step) for name, step in steps if step >= 0), key=lambda pair: pair[1])


class Step:
    """One step of training, eager.

    Args:
        learner: What learns.
        method: What it minimises.
        guidance: What guides it; None for a method without a teacher.
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
        guidance: Guidance | None,
        optimizer: torch.optim.Optimizer,
        gradient_clip: float | None,
        average: MovingAverage | None,
        compute: Compute,
    ) -> None:
        self.learner = learner
        self.method = method
        self.guidance = guidance
        self.optimizer = optimizer
        self.gradient_clip = gradient_clip
        self.average = average
        self.compute = compute
        self.tally = Tally(compute.device)
        # The fused update is skipped on the device while this is 1, so a bad batch never reaches the weights.
        optimizer.found_inf = self.tally.found_inf  # type: ignore[attr-defined]

    def __call__(self, batch: Batch, *, number: int, step: int, progress: Tensor) -> None:
        """Learn from one batch.

        Args:
            batch: Images and labels, on the device.
            number: Of the batch within its epoch.
            step: Of the stage, for the message if numbers go bad.
            progress: [] share of the stage that is done, 0..1, on the device.
        """
        guide = self.guidance(batch, number) if self.guidance else None
        with self.compute.autocast():
            output = self.learner(batch.images)
        terms = self.method.terms(output, guide, batch.labels, progress)
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = clip_gradients(trainable(self.learner), self.gradient_clip)
        self.tally.add(terms, norm, output.logits, batch.labels, step)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.learner.student)


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
