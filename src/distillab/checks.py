"""What is looked at before a run's first step: whether labels, models and images can lead anywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillab.data.batch import Batch
from distillab.data.dataset import Dataset
from distillab.errors import DataError, DistillabError, NonFiniteLossError, ShapeError
from distillab.evaluation.cost import count_parameters
from distillab.evaluation.evaluate import collect_logits
from distillab.models.classifier import Classifier, evaluation_mode
from distillab.models.features import forward_features
from distillab.runtime.device import Compute
from distillab.runtime.events import Note, Observer
from distillab.tables import millions
from distillab.tensors import check_logits
from distillab.training.config import Role

_ROUNDING = 1e-3  # of published means and deviations, which have three decimals or more
_TEACHER_IMAGES = 512
_LUCK = 0.01  # how often a teacher that guesses may pass for one that knows
_NUM_SHOWN = 5
_IMAGES_TO_TRY = 4  # some models take even numbers only


def check_labels(
    dataset: Dataset, train: NDArray[np.int64], validation: NDArray[np.int64], *, observer: Observer
) -> None:
    """See that there is something to tell apart, and something of every class to measure with.

    Args:
        dataset: Its training images are learnt from and validated with.
        train: Rows of the training images that are learnt from.
        validation: Rows of those that are held out; may be empty.
        observer: Is told of classes without images.

    Raises:
        DataError: All images that are learnt from have one label.
    """
    labels = dataset.train.labels
    counts = np.bincount(labels[train], minlength=dataset.num_classes)
    if np.count_nonzero(counts) == 1:
        raise DataError(
            f"all {len(train):,} images to learn from are of one class: {dataset.classes[counts.argmax()]}",
            where=f"{dataset.name}: labels",
            hint="check the labels, or the folders that stand for them; or raise split.train_limit",
        )
    for what, rows in (("to learn from", train), ("held out for validation", validation)):
        missing = np.flatnonzero(np.bincount(labels[rows], minlength=dataset.num_classes) == 0)
        if len(rows) and len(missing):
            observer(Note(f"warning: no image {what} is of class {_named(dataset.classes, missing)}"))


def check_classes(models: Mapping[Role, nn.Module], num_classes: int, images: Tensor) -> None:
    """See that all models of a training know the classes of its images.

    Args:
        models: By role.
        num_classes: C of the data.
        images: [N, 3, S, S] in [0, 1], any one or few; a model that does not say how many classes it knows is run
            on them.

    Raises:
        ShapeError: A model gives another number of logits than there are classes.
    """
    for role, model in models.items():
        known = count_classes(model, images)
        if known != num_classes:
            raise ShapeError(
                f"the {role} knows {known} classes, the data has {num_classes}",
                where=role,
                hint=f"take a {role} of the data's classes: build_model(..., num_classes={num_classes})",
            )


def count_classes(model: nn.Module, images: Tensor) -> int:
    """How many classes a model knows: what it says of itself, or else the number of its logits.

    Args:
        model: Any module that maps images to logits; left in the mode that it was in.
        images: [N, 3, S, S] in [0, 1], brought to the model's device.

    Raises:
        ShapeError: It gives no logits [N, C].
    """
    if isinstance(model, Classifier):
        return model.num_classes
    with evaluation_mode(model), torch.no_grad():
        logits = forward_features(model, images.to(next(model.parameters(), images))).logits
    assert logits is not None, "a forward pass that does not stop ends in logits"
    check_logits(logits=logits)
    return logits.shape[1]


def check_normalization(model: Classifier, dataset: Dataset, *, where: str, observer: Observer) -> None:
    """Tell where a model normalises images by other statistics than those of the data that it is given.

    That is right for a model that was trained so, and a common mistake otherwise.

    Args:
        model: Trained, or with statistics of its own.
        dataset: What it will look at.
        where: The model's file or role.
        observer: Is told.
    """
    own, data = model.normalize.statistics, (dataset.mean, dataset.std)
    if not np.allclose(own, data, rtol=0.0, atol=_ROUNDING):
        observer(
            Note(
                f"{where}: the model normalises images by {_statistics(*own)}, those of the data are "
                f"{_statistics(*data)}: right if it was trained so"
            )
        )


def check_trainable(model: Classifier, compute: Compute) -> None:
    """Try a new model on a few black images, in training and afterwards: it must give logits, whoever has written it.

    A model that cannot be copied is not tried: its statistics would be those of black images.

    Args:
        model: Not changed, and none of torch's random numbers is drawn.
        compute: Device to try it on.

    Raises:
        ShapeError: It gives no logits [N, C], or cannot take images of its size.
        Exception: Whatever else its own code raises.
    """
    try:
        tried = compute.take(copy.deepcopy(model))
    except Exception:
        return
    images = torch.zeros(_IMAGES_TO_TRY, 3, model.image_size, model.image_size, device=compute.device)
    with torch.random.fork_rng(devices=[compute.device] if compute.device.type == "cuda" else []):
        for training in (True, False):
            try:
                with torch.set_grad_enabled(training):
                    tried.train(training)(images)
            except (RuntimeError, ValueError) as error:  # what torch says of shapes
                if isinstance(error, DistillabError):
                    raise
                raise ShapeError(
                    f"{model.spec} fails on images of {model.image_size}x{model.image_size}: "
                    f"{type(error).__name__}: {error}",
                    where="model",
                    hint="mend it, or give it images of a size that it takes: --image-size N",
                ) from error


def check_assistant(models: Mapping[Role, nn.Module], *, observer: Observer) -> None:
    """Tell where an assistant, whose place is between teacher and student, is larger or smaller than both.

    Args:
        models: By role; without an assistant there is nothing to tell.
        observer: Is told.
    """
    if "assistant" not in models:
        return
    teacher, assistant, student = (count_parameters(models[role]) for role in ("teacher", "assistant", "student"))
    if not min(teacher, student) <= assistant <= max(teacher, student):
        sizes = f"{millions(assistant)} M parameters, teacher {millions(teacher)}, student {millions(student)}"
        observer(
            Note(f"warning: the assistant is not between teacher and student ({sizes}): --assistant names another")
        )


def check_teacher(teacher: nn.Module, batches: Iterable[Batch], *, compute: Compute, observer: Observer) -> None:
    """Try a teacher on some hundred images: one that guesses has the wrong weights, classes or normalisation.

    It is held against a model that says the same classes as often, but without looking: that one is right on
    sum_c (share of answers c) (share of labels c) of the images, 1/C where classes are balanced. The observer is
    told of a teacher that is right no more often than that, but for what luck explains (one-sided binomial test at
    1 %). Images of one class alone say nothing.

    Args:
        teacher: Trained; on the device of the batches.
        batches: Of shuffled images, of which the first 512 are looked at; no batch after those is made.
        compute: Device and precision.
        observer: Is told.

    Raises:
        NonFiniteLossError: Its logits are NaN or infinite.
        ShapeError: It gives no logits [N, C].
    """
    logits, labels = collect_logits(teacher, _first(batches, _TEACHER_IMAGES), autocast_dtype=compute.autocast_dtype)
    if not logits.isfinite().all():
        raise NonFiniteLossError(
            "the teacher's logits are NaN or infinite",
            where="teacher",
            hint="its weights are damaged, or its training diverged: take others",
        )
    answers = logits.argmax(dim=1).cpu().numpy()[:_TEACHER_IMAGES]
    truth = labels.cpu().numpy()[:_TEACHER_IMAGES]
    if (truth == truth[0]).all():
        return
    chance = float((answers[:, None] == truth).mean())  # each answer held against the labels of all images
    hits, count = int((answers == truth).sum()), len(truth)
    if _probability_of_hits(hits, count, chance) > _LUCK:
        observer(
            Note(
                f"warning: the teacher is right on {hits / count:.1%} of {count} training images, a guess would be on "
                f"{chance:.1%}: check its weights, the order of its classes, and its normalisation"
            )
        )


def _probability_of_hits(hits: int, count: int, chance: float) -> float:
    """That guessing is right so often or more."""
    # Not binomtest, which gives the same: importing scipy.stats takes a second, which every run would wait for.
    from scipy.special import bdtrc

    return float(bdtrc(hits - 1, count, chance))


def _first(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Batches until so many images are there; of mixed labels the largest."""
    seen = 0
    for batch in batches:
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(dim=1)
        yield replace(batch, labels=labels)
        seen += len(labels)
        if seen >= count:
            return


def _named(classes: tuple[str, ...], which: NDArray[np.int64]) -> str:
    first = ", ".join(classes[number] for number in which[:_NUM_SHOWN])
    return first if len(which) <= _NUM_SHOWN else f"{first}, ... ({len(which)} of {len(classes)} classes)"


def _statistics(mean: Iterable[float], std: Iterable[float]) -> str:
    first, second = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
    return f"mean {first} and std {second}"
