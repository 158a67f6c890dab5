"""Weights and statistics that are better than the last step's: moving average, re-estimated BatchNorm."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from distillab.data.batch import TrainingSource
from distillab.data.batches import TrainingBatches
from distillab.models.classifier import evaluation_mode
from distillab.runtime.device import Compute
from distillab.training.config import Regime
from distillab.training.state import tensors_of

STATISTICS_IMAGES = 4096
"""Images at most that BatchNorm statistics are re-estimated on, rounded up to whole batches."""

_SHARE_BETWEEN_EPOCHS = 0.1  # of the images, which costs a thirtieth of an epoch by its operations
_FEWEST_BETWEEN_EPOCHS, _MOST_BETWEEN_EPOCHS = 128, 1024


class MovingAverage:
    """Exponential moving average of a model's weights, and of its BatchNorm statistics along with them.

    average <- decay * average + (1 - decay) * weights, with a decay that starts at 1/2 and rises to `decay`, so that
    the first, random weights are soon forgotten.

    Args:
        model: What is averaged.
        decay: 0 < decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.num_updates = torch.zeros((), device=next(model.parameters()).device)

    def state(self) -> list[Tensor]:
        """All tensors that an update changes."""
        return [*self.model.parameters(), *self.model.buffers(), self.num_updates]

    def saved(self) -> dict[str, Tensor]:
        """The same by name, for a checkpoint."""
        return {**tensors_of(self.model), "num_updates": self.num_updates}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.num_updates += 1
        decay = ((1 + self.num_updates) / (3 + self.num_updates)).clamp(max=self.decay)
        own = [*self.model.parameters(), *self.model.buffers()]
        latest = [*model.parameters(), *model.buffers()]
        pairs = list(zip(own, latest, strict=True))
        averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        differences = torch._foreach_sub([b for _, b in averaged], [a for a, _ in averaged])
        torch._foreach_mul_(differences, 1.0 - decay)
        torch._foreach_add_([a for a, _ in averaged], differences)
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # BatchNorm counts its batches
        if counts:
            torch._foreach_copy_([a for a, _ in counts], [b for _, b in counts])


_Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def has_batchnorm(model: nn.Module) -> bool:
    """Whether there are statistics to re-estimate."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[_Norm]:
    return [module for module in model.modules() if isinstance(module, _Norm) and module.track_running_stats]


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, images: Iterable[Tensor], compute: Compute) -> None:
    """Re-estimate BatchNorm statistics with dropout off, as the model will be used.

    BatchNorm after Dropout sees other variances in training than in evaluation, and a short run's moving statistics
    lag behind its weights; both go away when the statistics are taken anew from training images.

    Args:
        model: Changed in its statistics only; its training mode is left as it was.
        images: Batches [N, 3, H, W] of any sizes, shuffled and augmented as in training: statistics are the mean over
            batches, weighted by their images.
        compute: Precision to run in.
    """
    norms = _norms(model)
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluation_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            num_seen = 0
            for batch in images:
                if len(batch) == 1 and num_seen:
                    continue  # one image has no variance where a map has shrunk to one pixel
                num_seen += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / num_seen
                with compute.autocast():
                    model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def recalibrated(model: nn.Module, source: TrainingSource, regime: Regime, compute: Compute) -> bool:
    """Re-estimate the BatchNorm statistics of a trained model, if the regime says so and it has any."""
    if not regime.training.recalibrate_batchnorm or not has_batchnorm(model):
        return False
    recalibrate_batchnorm(model, _images_as_trained_on(source, STATISTICS_IMAGES), compute)
    return True


@contextlib.contextmanager
def recalibrated_inside(model: nn.Module, source: TrainingSource, regime: Regime, compute: Compute) -> Iterator[None]:
    """The same for as long as the block lasts, on fewer images: a model that is judged while it learns is judged as it
    would be used. Afterwards the statistics are those that training has left.

    A loader's images are not asked for once more each epoch: there statistics stay as they are.
    """
    if not (regime.training.recalibrate_batchnorm and isinstance(source, TrainingBatches) and has_batchnorm(model)):
        yield
        return
    share = round(_SHARE_BETWEEN_EPOCHS * source.num_samples)
    count = min(max(share, _FEWEST_BETWEEN_EPOCHS), _MOST_BETWEEN_EPOCHS)
    statistics = [buffer for norm in _norms(model) for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in statistics]
    try:
        recalibrate_batchnorm(model, _images_as_trained_on(source, count), compute)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(statistics, before, strict=True):
                buffer.copy_(value)


def _images_as_trained_on(source: TrainingSource, count: int) -> Iterator[Tensor]:
    """The first images of the first epoch, augmented: statistics of plain images do not fit the weights."""
    num_seen = 0
    for batch in source.epoch(0):
        yield batch.images
        num_seen += len(batch.images)
        if num_seen >= count:
            return
