"""The same from Python: models and data as objects, settings as keywords.

    from distillab import build_model, distill, open_dataset, train

    data = open_dataset("digits")
    teacher = train(build_model("cnn8", num_classes=10), data, epochs=10).model
    result = distill(teacher, build_model("cnn16", num_classes=10), data, method="mbd-soft", epochs=10)
    print(result.test.top1)

Nothing is printed or written. Settings are those of a recipe: `epochs`, `batch_size` and `learning_rate` by name, all
others as `training={...}`, `optimizer={...}`, `schedule={...}`, `augment={...}`, `split={...}`. One that has no effect
is refused: a loader makes its own batches, and data that are given need no opening.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from distillab.checks import check_teacher, count_classes
from distillab.config import RunConfig, check, merged, regime_of
from distillab.data.batches import Batch, EvaluationBatches, LoaderBatches
from distillab.data.dataset import Dataset
from distillab.errors import ConfigError, ShapeError
from distillab.evaluation.evaluate import Evaluation
from distillab.evaluation.evaluate import evaluate as evaluate_batches
from distillab.execution import Job, Trained, carry_out, train_alone
from distillab.feeding import build_feed, build_place, check_fits
from distillab.models.classifier import IDENTITY, Classifier, evaluation_mode, set_normalization
from distillab.runtime.device import Compute, choose_compute, computing
from distillab.runtime.events import Observer, silent
from distillab.settings import validated
from distillab.stages import find_plan, plan_options
from distillab.training.config import Role
from distillab.training.stage import Feed, StageReport

Loader = Any
"""Whatever `LoaderBatches` takes: an iterable with a length that gives (images, labels)."""

_OPENING = ("data_dir", "offline", "split.test_fraction")
_BATCHING = (
    "image_size",
    "split",
    "augment",
    "views",
    "resident_gib",
    "training.batch_size",
    "training.label_smoothing",
)


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

    model: nn.Module = field(repr=False)
    test: Evaluation | None
    validation: Evaluation | None
    stages: tuple[StageReport, ...] = field(repr=False)
    seconds: float
    assistant: nn.Module | None = field(default=None, repr=False)


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
        seed: Of order, augmentation and dropout, a loader's draws from torch's global generator included. Initial
            weights are the model's.
        device: See `RunConfig.device`.
        observer: Is told of progress.
        **settings: Of the recipe; see above.

    Raises:
        ConfigError: Unknown setting, or one without effect on such data.
        DistillabError: Of the other kinds in `errors.py`.
    """
    _check_modules({"model": model})
    config = _config(settings, seed, device)
    compute = choose_compute(config.device, config.training.precision, deterministic=config.training.deterministic)
    with computing(compute, config.threads):
        feed = _feed(data, validation, test, {"model": model}, config, compute, observer)
        place = build_place(config, feed, compute, observer, folder=None)
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
        teacher: A trained model. It is moved to the device, and left as it is otherwise: parameters, statistics, the
            mode of every module.
        student: Trained in place.
        data: A `Dataset`, or a loader of (images, labels).
        method: A plan of `distillab list methods`.
        assistant: An untrained model between the two, for the plans that have one; trained in place.
        options: The method's own settings, such as {"temperature": 2.0}.
        validation: A loader, where `data` is one; a data set brings its own.
        test: A loader, where `data` is one; a data set brings its own.
        seed: Of order, augmentation, dropout and adapters, a loader's draws from torch's global generator included.
            Initial weights are the models'.
        device: See `RunConfig.device`.
        observer: Is told of progress.
        **settings: Of the recipe; see above.

    Raises:
        ConfigError: Unknown method or setting, a setting without effect on such data, or an assistant that is missing
            or has no part in the plan.
        DistillabError: Of the other kinds in `errors.py`.
    """
    plan = find_plan(method)
    for name in settings:
        if name in plan_options(plan).model_fields:
            hint = f'give it among its options: options={{"{name}": ...}}'
            raise ConfigError(f"{name} is a setting of the method", where=name, hint=hint)
    config = _config(settings, seed, device)
    chosen = validated(plan_options(plan), options or {}, where="options")
    models: dict[Role, nn.Module] = {"teacher": teacher, "student": student}
    if assistant is not None:
        if not plan.uses_assistant:
            raise ConfigError(f"'{plan.name}' has no assistant", where="assistant", hint="leave it out, or use takd")
        models["assistant"] = assistant
    _check_modules(models)
    compute = choose_compute(config.device, config.training.precision, deterministic=config.training.deterministic)
    with computing(compute, config.threads), evaluation_mode(teacher):
        feed = _feed(data, validation, test, models, config, compute, observer)
        regime = regime_of(config)
        place = build_place(config, feed, compute, observer, folder=None)
        assert feed.sample is not None
        check_teacher(place.compute.take(teacher), feed.sample, compute=compute, observer=observer)
        regimes: dict[Role, Any] = {"student": regime, "assistant": regime}
        trained = carry_out(Job(models, regimes, place, plan, chosen))
        result = _result(trained["student"], feed, compute, teacher=teacher)
    stages = tuple(report for one in trained.values() for report in one.stages)
    seconds = sum(one.seconds for one in trained.values())
    return Result(result.model, result.test, result.validation, stages, seconds, assistant)


def evaluate(
    model: nn.Module,
    data: Dataset | Loader,
    *,
    teacher: nn.Module | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> Evaluation:
    """Measure a model on the test images of a data set, or on a loader's images.

    Args:
        model: Any module that maps images in [0, 1] to logits; moved to the device.
        data: A `Dataset` (its test images are read, at the models' size), or a loader.
        teacher: To compare with, or None; moved to the device.
        batch_size: Images at once, for a data set; as many as keep the device busy if not given.
        device: See `RunConfig.device`.

    Raises:
        ConfigError: A batch size below 1, or one for a loader.
        DistillabError: Of the other kinds in `errors.py`.
    """
    compute = choose_compute(device)
    models = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    _check_modules(models)
    batches: EvaluationBatches | LoaderBatches
    if isinstance(data, Dataset):
        batches = EvaluationBatches(
            data.test.images,
            data.test.labels,
            batch_size=batch_size,
            device=compute.device,
            image_size=_image_size(models, data),
        )
    elif batch_size is not None:
        raise _without_effect("batch_size", "a loader makes its own batches")
    else:
        batches = LoaderBatches(data, device=compute.device)
    for one in models.values():
        one.to(compute.device)
    with computing(compute, None):
        return evaluate_batches(model, batches, teacher=teacher, autocast_dtype=compute.autocast_dtype)


def _config(settings: Mapping[str, Any], seed: int, device: str) -> RunConfig:
    values: dict[str, Any] = {"seed": seed, "device": device}
    for name, section in (("epochs", "training"), ("batch_size", "training"), ("learning_rate", "optimizer")):
        if name in settings:
            values = merged(values, {section: {name: settings[name]}})
    rest = {k: v for k, v in settings.items() if k not in ("epochs", "batch_size", "learning_rate")}
    return check(validated(RunConfig, merged(values, rest)))


def _check_modules(models: Mapping[Any, nn.Module]) -> None:
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"a torch.nn.Module is needed, not {model!r}",
                where=name,
                hint="build one: build_model('cnn16', num_classes=10)",
            )


def _feed(
    data: Dataset | Loader,
    validation: Loader | None,
    test: Loader | None,
    models: Mapping[Any, nn.Module],
    config: RunConfig,
    compute: Compute,
    observer: Observer,
) -> Feed:
    """The images of a training, for models by the names that messages give them."""
    _refuse_without_effect(config, is_loader=not isinstance(data, Dataset))
    if isinstance(data, Dataset):
        for name, loader in (("validation", validation), ("test", test)):
            if loader is not None:
                raise _without_effect(name, "a data set brings its own images")
        for name, model in models.items():
            if name != "teacher" and isinstance(model, Classifier) and model.normalize.statistics == IDENTITY:
                set_normalization(model, data.mean, data.std)
        size = config.image_size or _image_size(models, data)
        feed = build_feed(config, data, size, compute, observer=observer)
        for name, model in models.items():
            if isinstance(model, Classifier):
                check_fits(model, data, size, where=name, observer=observer)
    else:
        feed = _loaders_feed(data, validation, test, models, config.seed, compute)
    if config.training.early_stop_patience is not None and feed.validation is None:
        raise ConfigError(
            "early stopping needs validation images",
            where="training.early_stop_patience",
            hint="give more of them: a loader as `validation`, or a larger split.validation_fraction of a data set",
        )
    return feed


def _refuse_without_effect(config: RunConfig, *, is_loader: bool) -> None:
    reasons = {
        **dict.fromkeys(("output", "cache_gib", "checkpoint", "track"), "nothing is written"),
        **dict.fromkeys(_OPENING, "the images are given"),
    }
    if is_loader:
        reasons |= dict.fromkeys(_BATCHING, "a loader makes its own batches, images and labels")
    for section, given in config.model_dump(exclude_unset=True).items():
        for setting in [f"{section}.{name}" for name in given] if isinstance(given, dict) else [section]:
            reason = reasons.get(setting) or reasons.get(section)
            if reason:
                raise _without_effect(setting, reason)


def _without_effect(field: str, reason: str) -> ConfigError:
    return ConfigError(f"{field} has no effect: {reason}", where=field, hint="leave it out")


def _image_size(models: Mapping[Any, nn.Module], data: Dataset) -> int:
    """The side of the images that the models take; the data's, where no model says."""
    sizes = {name: model.image_size for name, model in models.items() if isinstance(model, Classifier)}
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"the models take images of different sizes: {sizes}",
            where="image_size",
            hint="build them for one size: build_model(..., image_size=...)",
        )
    return next(iter(sizes.values()), data.image_size)


def _loaders_feed(
    data: Loader,
    validation: Loader | None,
    test: Loader | None,
    models: Mapping[Any, nn.Module],
    seed: int,
    compute: Compute,
) -> Feed:
    first = next(iter(LoaderBatches(data, device=compute.device, seed=seed)))
    num_classes = _num_classes(models, first)

    def batches(loader: Loader) -> LoaderBatches:
        return LoaderBatches(loader, device=compute.device, seed=seed, num_classes=num_classes)

    training = batches(data)
    return Feed(
        training=training,
        validation=None if validation is None else batches(validation),
        test=None if test is None else batches(test),
        sample=training,
        num_classes=num_classes,
        image_size=first.images.shape[-1],
    )


def _num_classes(models: Mapping[Any, nn.Module], batch: Batch) -> int:
    """C, as the models know it: labels of one batch may leave out the last classes."""
    found = {name: count_classes(model, batch.images[:1]) for name, model in models.items()}
    if len(set(found.values())) > 1:
        raise ShapeError(
            f"the models know different numbers of classes: {found}",
            where="models",
            hint="take models of the classes that the data has",
        )
    return next(iter(found.values()))


def _result(trained: Trained, feed: Feed, compute: Compute, teacher: nn.Module | None = None) -> Result:
    found = None
    if feed.test is not None:
        found = evaluate_batches(trained.model, feed.test, teacher=teacher, autocast_dtype=compute.autocast_dtype)
    return Result(trained.model, found, trained.validation, trained.stages, trained.seconds)
