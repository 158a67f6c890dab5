"""The classic loop, as research scripts write it: what our own paths are measured against.

Images come one by one through PIL and a DataLoader, everything is float32 and contiguous, the loss and the right
answers are read after every step, merit-based losses go through the samples in Python, and the teacher, in evaluation
mode, builds a graph that the backward pass runs through. The mathematics is that of our methods; the pieces are torch's
own. It is neither slowed down nor tuned: see docs/performance.md.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from distillab.bench.workload import CROP_PADDING, LEARNING_RATE
from distillab.data.dataset import Triple

_TEMPERATURE, _LABEL_WEIGHT, _DISTILL_WEIGHT = 4.0, 0.1, 0.9
_DELTA = 0.1

ClassicLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(student's logits [N, C], teacher's logits [N, C], labels [N]) -> [] loss."""

Share = Callable[[Tensor, Tensor], float]
"""(a sample's teacher logits [C], its label []) -> the teacher's share of its loss, 0..1."""


def soft_target(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """0.1 * CE + 0.9 * T^2 * KL, T = 4."""
    soft_student = F.log_softmax(student_logits / _TEMPERATURE, dim=1)
    soft_teacher = F.softmax(teacher_logits / _TEMPERATURE, dim=1)
    divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean") * _TEMPERATURE**2
    return _DISTILL_WEIGHT * divergence + _LABEL_WEIGHT * F.cross_entropy(student_logits, labels)


def merit_based(share: Share, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """(1 - a) * CE + a * KL, sample by sample, T = 1."""
    loss = torch.zeros((), device=labels.device)
    for i in range(len(labels)):
        a = share(teacher_logits[i], labels[i])
        surprise = F.cross_entropy(student_logits[i : i + 1], labels[i : i + 1])
        soft_student = F.log_softmax(student_logits[i : i + 1], dim=1)
        soft_teacher = F.softmax(teacher_logits[i : i + 1], dim=1)
        divergence = F.kl_div(soft_student, soft_teacher, reduction="batchmean")
        loss = loss + (1 - a) * surprise + a * divergence
    return loss / len(labels)


def _delta_share(logits: Tensor, label: Tensor) -> float:
    return 0.5 + _DELTA if logits.argmax().item() == label.item() else 0.5 - _DELTA


def _hard_share(logits: Tensor, label: Tensor) -> float:
    return 0.5 if logits.argmax().item() == label.item() else 0.0


def _soft_share(logits: Tensor, label: Tensor) -> float:
    return F.softmax(logits, dim=0)[label].item()


LOSSES: Mapping[str, ClassicLoss] = {
    "st": soft_target,
    "mbd-delta": partial(merit_based, _delta_share),
    "mbd-hard": partial(merit_based, _hard_share),
    "mbd-soft": partial(merit_based, _soft_share),
}
"""Of each method that has a teacher."""


class ClassicImages(Dataset[tuple[Tensor, int]]):
    """Images as PIL gives them, changed one at a time: random crop, flip, resize if need be, tensor, normalise.

    Args:
        images: [M, H, H, 3] uint8.
        labels: [M] int64.
        mean: Of each channel, 0..1.
        std: Of each channel, 0..1.
        image_size: Side of the result, in pixels.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], *, mean: Triple, std: Triple, image_size: int
    ) -> None:
        self._images = images
        self._labels = labels
        self._mean = mean
        self._std = std
        self._image_size = image_size

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One view of an image, [3, S, S] float32, and its label."""
        image = Image.fromarray(self._images[index])
        image = _random_crop(image)
        if torch.rand(1).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if image.width != self._image_size:
            image = image.resize((self._image_size, self._image_size), Image.Resampling.BILINEAR)
        return _normalized(_to_tensor(image), self._mean, self._std), int(self._labels[index])


def _random_crop(image: Image.Image) -> Image.Image:
    padded = ImageOps.expand(image, border=CROP_PADDING, fill=0)
    top = int(torch.randint(0, 2 * CROP_PADDING + 1, size=(1,)).item())
    left = int(torch.randint(0, 2 * CROP_PADDING + 1, size=(1,)).item())
    return padded.crop((left, top, left + image.width, top + image.height))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def _normalized(image: Tensor, mean: Triple, std: Triple) -> Tensor:
    means, deviations = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    return image.sub_(means).div_(deviations)


def with_stock_pieces(model: nn.Module) -> nn.Module:
    """A model of ours as a classic script has it: torch's own dropout, and images normalised before they reach it.

    Args:
        model: Changed in place.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                module.add_module(name, nn.Dropout(child.p).train(child.training))
    model.add_module("normalize", nn.Identity())
    return model


class ClassicLoop:
    """The classic loop; it goes on where it was at each call.

    Attributes:
        num_workers: Processes that load images; 0: none but this one.

    Args:
        student: Learns; contiguous float32, on the device.
        teacher: Guides it; None for a student alone.
        method: A name of `LOSSES`; a student alone learns by cross-entropy, whatever it is.
        images: To learn from.
        batch_size: Images a step.
        num_workers: See above.
        device: Where models are.
    """

    warm_up_steps = 1

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        *,
        method: str,
        images: ClassicImages,
        batch_size: int,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.num_workers = num_workers
        self._student = student.train()
        self._teacher = teacher.eval() if teacher is not None else None
        self._method = method
        self._images = images
        self._batch_size = batch_size
        self._device = device
        self._optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
        self._running_loss = 0.0
        self._correct = 0

    def seconds(self, steps: int, *, run_in: bool) -> float:
        """Wall time of so many steps, as in the middle of an epoch: workers are there and have worked ahead.

        cuDNN picks kernels as it does by itself.

        Args:
            steps: At least 1.
            run_in: See `measure.Loop`.
        """
        with cudnn.flags(enabled=True, benchmark=False, allow_tf32=True):
            batches = self._batches()
            if run_in:
                self._step(*next(batches))
            started = time.perf_counter()
            for images, labels in itertools.islice(batches, steps):
                self._step(images, labels)
            return time.perf_counter() - started

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(self._images, self._batch_size, shuffle=True, drop_last=True, num_workers=self.num_workers)
        started = time.perf_counter()
        epoch: Iterator[tuple[Tensor, Tensor]] = iter(loader)
        if loader.prefetch_factor is not None:
            first = next(epoch)
            time.sleep(loader.prefetch_factor * (time.perf_counter() - started))  # until their queues are full
            epoch = itertools.chain([first], epoch)
        return itertools.chain(epoch, itertools.chain.from_iterable(itertools.repeat(loader)))

    def _step(self, images: Tensor, labels: Tensor) -> None:
        images, labels = images.to(self._device), labels.to(self._device)
        self._optimizer.zero_grad()
        logits = self._student(images)
        if self._teacher is None:
            loss = F.cross_entropy(logits, labels)
        else:
            # The classic fault: nothing keeps gradients from the teacher, so the backward pass runs through it.
            loss = LOSSES[self._method](logits, self._teacher(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._running_loss += loss.item()
        self._correct += int((logits.argmax(dim=1) == labels).sum().item())
