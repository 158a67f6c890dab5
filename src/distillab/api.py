"""The same from Python: models and data as objects, settings as keywords.

    from distillab import build_model, distill, open_dataset, train

    data = open_dataset("digits")
    teacher = train(build_model("cnn8", num_classes=10), data, epochs=10).model
    result = distill(teacher, build_model("cnn16", num_classes=10), data, method="mbd-soft", epochs=10)
    print(result.test.top1)

Nothing is printed or written. Settings are those of a recipe: `epochs`, `batch_size` and `learning_rate` by name, all
others as `training={...}`, `optimizer={...}`, `schedule={...}`, `augment={...}`, `split={...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from distillab.config import RunConfig, check, merged, regime_of
from distillab.data.batches import LoaderBatches
from distillab.data.dataset import Dataset
from distillab.errors import ConfigError
from distillab.evaluation.evaluate import Evaluation
from distillab.evaluation.evaluate import evaluate as evaluate_batches
from distillab.execution import Trained, Workplace, carry_out, train_alone
from distillab.models.classifier import IDENTITY, Classifier, set_normalization
from distillab.runtime.device import Compute, choose_compute, cpu_threads
from distillab.runtime.events import Observer, silent
from distillab.scene import build_feed
from distillab.settings import validated
from distillab.stages import find_plan, plan_options
from distillab.training.config import Role
from distillab.training.trainer import Feed, StageReport

Loader = Any
"""Whatever `LoaderBatches` takes: an iterable with a length that gives (images, labels)."""


@dataclass(frozen=True)
class Result:
    """What training brought.

    Attributes:
        model: The trained model, in evaluation mode.
        test: On the test images, read once, at the end; None where there are none.
        validation: On the validation images; None where there are none.
        stages: What was done, with the numbers of each epoch.
        seconds: Wall time of training.
        assistant: The assistant that stood between, for plans that have one.
    """

    model: nn.Module
    test: Evaluation | None
    validation: Evaluation | None
    stages: tuple[StageReport, ...]
    seconds: float
    assistant: nn.Module | None = None


def train(
    model: nn.Module,
    data: Dataset | Loader,
    *,
    validation: Loader | None = None,
    test: Loader | None = None,
    role: Role = "student",
    seed: int = 0,
    device: str = "auto",
    observer: Observer = silent,
    **settings: Any,
) -> Result:
    """Train a model on labels alone.

    Args:
        model: Any module that maps images [N, 3, H, W] in [0, 1] to logits [N, C]; trained in place. One of
            `build_model` without statistics of its own takes the data set's.
        data: A `Dataset`, or a loader of (images, labels).
        validation: A loader, where `data` is one; a data set brings its own.
        test: A loader, where `data` is one; a data set brings its own.
        role: Named in the log, and part of what seeds dropout.
        seed: Of order, augmentation and dropout. Initial weights are the model's.
        device: See `RunConfig.device`.
        observer: Is told of progress.
        **settings: Of the recipe; see above.

    Raises:
        DistillabError: Of the kinds in `errors.py`.
    """
    config = _config(settings, seed, device)
    compute = choose_compute(config.device, config.training.precision)
    with cpu_threads(config.threads):
        feed = _feed(data, validation, test, [model], config, compute)
        place = Workplace(feed, seed, compute, observer)
        return _result(train_alone(model, regime_of(config), place, role=role), feed, compute)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    data: Dataset | Loader,
    *,
    method: str = "st",
    assistant: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
    validation: Loader | None = None,
    test: Loader | None = None,
    seed: int = 0,
    device: str = "auto",
    observer: Observer = silent,
    **settings: Any,
) -> Result:
    """Distil a teacher into a student.

    Args:
        teacher: A trained model; it is left as it is, to the last bit of its statistics.
        student: Trained in place.
        data: A `Dataset`, or a loader of (images, labels).
        method: A plan of `distillab list methods`.
        assistant: An untrained model between the two, for the plans that have one; trained in place.
        options: The method's own settings, such as {"temperature": 2.0}.
        validation: A loader, where `data` is one; a data set brings its own.
        test: A loader, where `data` is one; a data set brings its own.
        seed: Of order, augmentation, dropout and adapters. Initial weights are the models'.
        device: See `RunConfig.device`.
        observer: Is told of progress.
        **settings: Of the recipe; see above.

    Raises:
        ConfigError: Unknown method or setting, or an assistant that is missing or has no part in the plan.
        DistillabError: Of the other kinds in `errors.py`.
    """
    config = _config(settings, seed, device)
    plan = find_plan(method)
    chosen = validated(plan_options(plan), options or {}, where="options")
    models: dict[Role, nn.Module] = {"teacher": teacher, "student": student}
    if assistant is not None:
        if not plan.uses_assistant:
            raise ConfigError(f"'{plan.name}' has no assistant", where="assistant", hint="leave it out, or use takd")
        models["assistant"] = assistant
    compute = choose_compute(config.device, config.training.precision)
    with cpu_threads(config.threads):
        learning = [model for role, model in models.items() if role != "teacher"]
        feed = _feed(data, validation, test, learning, config, compute)
        regime = regime_of(config)
        place = Workplace(feed, seed, compute, observer)
        regimes: dict[Role, Any] = {"student": regime, "assistant": regime}
        trained = carry_out(plan, chosen, models=models, regimes=regimes, place=place)
        result = _result(trained["student"], feed, compute, teacher=teacher)
    stages = tuple(report for one in trained.values() for report in one.stages)
    seconds = sum(one.seconds for one in trained.values())
    return Result(result.model, result.test, result.validation, stages, seconds, assistant)


def evaluate(
    model: nn.Module,
    data: Dataset | Loader,
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 512,
    device: str = "auto",
) -> Evaluation:
    """Measure a model on the test images of a data set, or on a loader's images.

    Args:
        model: Any module that maps images in [0, 1] to logits.
        data: A `Dataset` (its test images are read), or a loader.
        teacher: To compare with, or None.
        batch_size: Images at once, for a data set.
        device: See `RunConfig.device`.
    """
    config = validated(RunConfig, {"device": device, "training": {"batch_size": batch_size}})
    compute = choose_compute(device)
    feed = _feed(data, None, data, [], config, compute)
    assert feed.test is not None
    for one in (model, teacher):
        if one is not None:
            one.to(compute.device)
    return evaluate_batches(model, feed.test, teacher=teacher, autocast_dtype=compute.autocast_dtype)


def _config(settings: Mapping[str, Any], seed: int, device: str) -> RunConfig:
    values: dict[str, Any] = {"seed": seed, "device": device}
    for name, section in (("epochs", "training"), ("batch_size", "training"), ("learning_rate", "optimizer")):
        if name in settings:
            values = merged(values, {section: {name: settings[name]}})
    rest = {k: v for k, v in settings.items() if k not in ("epochs", "batch_size", "learning_rate")}
    return check(validated(RunConfig, merged(values, rest)))


def _feed(
    data: Dataset | Loader,
    validation: Loader | None,
    test: Loader | None,
    models: list[nn.Module],
    config: RunConfig,
    compute: Compute,
) -> Feed:
    if isinstance(data, Dataset):
        for model in models:
            if isinstance(model, Classifier) and model.normalize.statistics == IDENTITY:
                set_normalization(model, data.mean, data.std)
        sizes = {model.image_size for model in models if isinstance(model, Classifier)}
        size = config.image_size or (sizes.pop() if len(sizes) == 1 else data.image_size)
        return build_feed(config, data, size, compute)
    training = LoaderBatches(data, device=compute.device)
    first = next(iter(training))
    return Feed(
        training=training,
        validation=None if validation is None else LoaderBatches(validation, device=compute.device),
        test=None if test is None else LoaderBatches(test, device=compute.device),
        statistics=training,
        num_classes=_num_classes(first.labels, models),
        image_size=first.images.shape[-1],
        signature="",
    )


def _num_classes(labels: torch.Tensor, models: list[nn.Module]) -> int:
    """C, as the loader's probabilities or the models say; a loader of integers does not tell."""
    if labels.ndim == 2:
        return labels.shape[1]
    known = [m.num_classes for m in models if isinstance(m, Classifier)]
    return known[0] if known else int(labels.max()) + 1


def _result(trained: Trained, feed: Feed, compute: Compute, teacher: nn.Module | None = None) -> Result:
    found = None
    if feed.test is not None:
        found = evaluate_batches(trained.model, feed.test, teacher=teacher, autocast_dtype=compute.autocast_dtype)
    return Result(trained.model, found, trained.validation, trained.stages, trained.seconds)
