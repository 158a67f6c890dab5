"""One pass of a model over images that it has not learned from, and the numbers that go into a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from distillab.data.batch import Batch
from distillab.data.batches import EvaluationBatches
from distillab.errors import ConfigError, DataError, NonFiniteLossError
from distillab.evaluation import metrics
from distillab.models.classifier import evaluation_mode
from distillab.models.features import forward_features
from distillab.runtime.capture import CannotCaptureError, Capture
from distillab.runtime.events import Note, Observer, silent
from distillab.tensors import check_labels, check_logits

_WITHOUT_FLOAT64 = ("mps",)


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a set of images.

    Attributes:
        num_samples: Images in the set.
        top1: Share of images whose label has the largest logit, 0..1.
        top5: Share of images whose label is among the five largest; None for fewer than six classes.
        nll: Mean negative log-likelihood of the labels, nats.
        ece: Expected calibration error in 15 bins, 0..1.
        teacher_agreement: Share of images for which it chooses as the teacher does; None without a teacher.
        teacher_divergence: Mean KL(teacher || model), nats; None without a teacher.
        top1_where_teacher_wrong: Its top-1 where the teacher errs; None without a teacher, or if it never
            errs.
    """

    num_samples: int
    top1: float
    top5: float | None
    nll: float
    ece: float
    teacher_agreement: float | None = None
    teacher_divergence: float | None = None
    top1_where_teacher_wrong: float | None = None

    def as_dict(self) -> dict[str, int | float | None]:
        """The attributes by name, ready for JSON."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    teacher: nn.Module | None = None,
    teacher_logits: Tensor | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> Evaluation:
    """Measure a model, and how much it is like its teacher.

    Args:
        model: Images to logits, on the device of the batches. Left in the mode that it was in.
        batches: Images [N, 3, H, W] and labels [N] integers; gone through once a model, in the same order.
        teacher: Whom to compare it with, run over the same batches.
        teacher_logits: [N, C] what `collect_logits` gave for the teacher, instead of it.
        autocast_dtype: Type for mixed precision of the forward passes; None for the model's own.

    Returns:
        The numbers of a table's row.

    Raises:
        ConfigError: Both a teacher and its logits are given.
        DataError: There are no batches, they come in another order the second time, or labels are outside 0..C-1.
        ShapeError: Teacher, model and labels do not belong together.
        NonFiniteLossError: Logits are NaN or infinite.
    """
    if teacher is not None and teacher_logits is not None:
        raise ConfigError("teacher and teacher_logits are both given", where="teacher", hint="leave one out")
    logits, labels = collect_logits(model, batches, autocast_dtype=autocast_dtype)
    if teacher is not None:
        teacher_logits, teacher_labels = collect_logits(teacher, batches, autocast_dtype=autocast_dtype)
        if not torch.equal(labels, teacher_labels):
            raise DataError(
                "the teacher was shown the images in another order than the model",
                where="batches",
                hint="give batches that come in the same order each time, such as a loader without shuffle",
            )
    return evaluate_logits(logits, labels, teacher_logits)


def evaluate_logits(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> Evaluation:
    """The same numbers from logits that are there already.

    Args:
        logits: [N, C] raw scores.
        labels: [N] integers in 0..C-1.
        teacher_logits: [N, C] the teacher's, if it is to be compared with.

    Returns:
        The numbers of a table's row.

    Raises:
        DataError: A label is outside 0..C-1.
        ShapeError: Logits, labels and the teacher's logits do not belong together.
        NonFiniteLossError: Logits are NaN or infinite.
    """
    if logits.device.type in _WITHOUT_FLOAT64:  # which the metrics ask for
        logits = logits.cpu()
    labels = labels.to(logits.device)
    check_logits(logits=logits)
    check_labels(labels, logits, mixed=False)
    _check_range(labels, logits.shape[1])
    _check_finite("the model", logits)
    own = Evaluation(
        num_samples=len(labels),
        top1=metrics.top_k_accuracy(logits, labels, 1).item(),
        top5=metrics.top_k_accuracy(logits, labels, 5).item() if logits.shape[1] > 5 else None,
        nll=metrics.negative_log_likelihood(logits, labels).item(),
        ece=metrics.expected_calibration_error(logits, labels).item(),
    )
    return own if teacher_logits is None else _compared(own, logits, teacher_logits.to(logits.device), labels)


def collect_logits(
    model: nn.Module, batches: Iterable[Batch], *, autocast_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """What a model says of every image, and what is right.

    The model runs in evaluation mode without gradients; afterwards each of its modules is in the mode that
    it was in. All stays on the device until the caller reads it.

    Args:
        model: Images to logits, on the device of the batches.
        batches: Images [N, 3, H, W] and labels [N] integers.
        autocast_dtype: Type for mixed precision of the forward passes; None for the model's own.

    Returns:
        Logits [N, C] float32 and labels [N], in the order of the batches.

    Raises:
        DataError: There are no batches.
        ShapeError: Logits are not [N, C], or labels are not [N] integers.
    """
    return Evaluator(model, batches, autocast_dtype=autocast_dtype).logits()


class Evaluator:
    """A model and a set of images that it is measured on again and again while it learns.

    Captured, what is done with a batch, from its raw parts to the logits, is recorded once and replayed. A recording
    reads the weights where they lie: it holds while they change in place, and where they have moved it is made anew.

    Args:
        model: As for `evaluate`.
        batches: As for `evaluate`.
        autocast_dtype: As for `evaluate`.
        captured: Record and replay, if the batches are `EvaluationBatches`; others have no one size, and run eagerly.
        observer: Is told if the model cannot be recorded; it then runs eagerly too.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        *,
        autocast_dtype: torch.dtype | None = None,
        captured: bool = False,
        observer: Observer = silent,
    ) -> None:
        self._model = model
        self._batches = batches
        self._autocast_dtype = autocast_dtype
        self._of_one_size = batches if captured and isinstance(batches, EvaluationBatches) else None
        self._observer = observer
        self._capture: Capture[tuple[Tensor, Tensor]] | None = None
        self._raw: tuple[Tensor, ...] = ()  # what the recording reads
        self._places: list[int] = []  # where the weights were when it was made

    def __call__(self, teacher_logits: Tensor | None = None) -> Evaluation:
        """Measure the model as it is now; see `evaluate`."""
        return evaluate_logits(*self.logits(), teacher_logits)

    def logits(self) -> tuple[Tensor, Tensor]:
        """What the model says now of every image, and what is right; see `collect_logits`."""
        with evaluation_mode(self._model), torch.no_grad():
            try:
                parts = list(self._replayed(self._of_one_size) if self._of_one_size else map(self._ask, self._batches))
            except CannotCaptureError as error:
                self._of_one_size = None
                self._observer(Note(f"the evaluation cannot be captured and runs eagerly: {error}"))
                parts = list(map(self._ask, self._batches))
        if not parts:
            raise DataError(
                "there are no images to evaluate on",
                where="batches",
                hint="give at least one batch; a generator is spent after one pass, a list is not",
            )
        logits, labels = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(labels)

    def _replayed(self, batches: EvaluationBatches) -> Iterator[tuple[Tensor, Tensor]]:
        places = [tensor.data_ptr() for tensor in (*self._model.parameters(), *self._model.buffers())]
        if places != self._places:
            self._capture = None
            self._places = places
        for raw, count in batches.raw():
            if self._capture is None:
                self._capture = self._record(batches, raw)
            for place, value in zip(self._raw, raw, strict=True):
                place.copy_(value, non_blocking=True)
            logits, labels = self._capture()
            yield logits[:count].clone(), labels[:count].clone()

    def _record(self, batches: EvaluationBatches, raw: tuple[Tensor, ...]) -> Capture[tuple[Tensor, Tensor]]:
        static = tuple(tensor.clone() for tensor in raw)
        self._raw = static
        return Capture(lambda: self._ask(batches.make(static)), device=raw[0].device)

    def _ask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        # Without autocast's cache: a recording must not hold copies of weights that were made outside of it.
        with torch.autocast(
            batch.images.device.type,
            dtype=self._autocast_dtype,
            enabled=self._autocast_dtype is not None,
            cache_enabled=False,
        ):
            logits = forward_features(self._model, batch.images).logits
        assert logits is not None, "a forward pass that does not stop ends in logits"
        check_logits(logits=logits)
        check_labels(batch.labels, logits, mixed=False)
        return logits.float(), batch.labels


def _compared(own: Evaluation, logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Evaluation:
    """The same with the numbers that need a teacher."""
    check_logits(logits=logits, teacher_logits=teacher_logits)
    _check_finite("the teacher", teacher_logits)
    where_wrong = metrics.accuracy_where_teacher_wrong(logits, teacher_logits, labels)
    return replace(
        own,
        teacher_agreement=metrics.agreement(logits, teacher_logits).item(),
        teacher_divergence=metrics.divergence(logits, teacher_logits).item(),
        top1_where_teacher_wrong=None if where_wrong.isnan() else where_wrong.item(),
    )


def _check_range(labels: Tensor, num_classes: int) -> None:
    low, high = (int(value) for value in labels.aminmax())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"labels run from {low} to {high}, the model knows 0 to {num_classes - 1}",
            where="labels",
            hint="give a model of as many classes as the data has",
        )


def _check_finite(role: str, logits: Tensor) -> None:
    bad = int((~logits.isfinite().all(dim=1)).sum())
    if bad:
        raise NonFiniteLossError(
            f"{role} gives NaN or infinite logits for {bad} of {len(logits)} images",
            where="evaluation",
            hint="training diverged: lower the learning rate, or clip the gradient",
        )
