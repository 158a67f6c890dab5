"""A run's surroundings, made from its settings: data in batches, device, run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distillab.config import DistillConfig, RunConfig, TrainConfig, settings_of, to_toml
from distillab.data.batches import EvaluationBatches, TrainingBatches, on_device
from distillab.data.catalog import open_dataset
from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import validation_split
from distillab.errors import DataError, ShapeError
from distillab.evaluation.evaluate import Evaluation, evaluate
from distillab.execution import Workplace
from distillab.guidance.cache import LogitsMemory
from distillab.models.catalog import MODELS, build_model
from distillab.models.classifier import Classifier
from distillab.models.weights import weights_sha256
from distillab.outside_code import names_code
from distillab.runtime.device import Compute, choose_compute, cpu_threads
from distillab.runtime.events import Event, Note, Observer, RunStarted
from distillab.runtime.reproducibility import seeded
from distillab.runtime.run_dir import RunDir, check_free
from distillab.stages import find_plan
from distillab.training.config import Role
from distillab.training.trainer import Feed

_EVALUATION_BATCH = 512
_STATISTICS_IMAGES = 4096


@dataclass
class Scene:
    """A run's surroundings, ready: data, device, folder.

    Attributes:
        config: The run's settings.
        dataset: Images, classes, statistics.
        feed: The same in batches.
        place: What all stages share.
        allow_code: Weight files may name code that builds their model.
        run_dir: Where files go, or None: see `begin`.
        run_sha256: What the run is; the same for runs that give equal results.
        started: When the run was asked for, by `time.perf_counter`.
        test_logits: The teacher's on the test set, once they are known.
    """

    config: TrainConfig | DistillConfig
    dataset: Dataset
    feed: Feed
    place: Workplace
    allow_code: bool
    run_dir: RunDir | None = None
    run_sha256: str = ""
    started: float = field(default_factory=time.perf_counter)
    test_logits: Tensor | None = None

    def build(self, spec: str, role: Role) -> nn.Module:
        """A new model, its initial weights drawn from the run's seed and its role.

        Settings that name code have been let through where they came in: they were typed by hand, or the recipe was
        read with permission.
        """
        if names_code(spec):
            self.place.observer(Note(f"importing code: {spec}"))
        with seeded(self.config.seed, role, "weights"):
            model = build_model(
                spec,
                self.dataset.num_classes,
                mean=self.dataset.mean,
                std=self.dataset.std,
                image_size=self.feed.image_size,
            )
        model.classes = self.dataset.classes
        return model

    def begin(
        self, label: str, command: Sequence[str], *, save_run: bool, loaded_teacher: nn.Module | None = None
    ) -> None:
        """Settle what the run is, and take its folder: the last thing before the first step.

        Args:
            label: A part of the folder's name, where it is made.
            command: Words of the command line, for the record.
            save_run: Keep a run folder.
            loaded_teacher: The teacher, if it is not trained in this run.

        Raises:
            StorageError: The folder holds something already, or cannot be written.
            RunDirInUseError: Another process owns it.
        """
        self.run_sha256 = _run_sha256(self.config, self.dataset, loaded_teacher)
        if not save_run:
            return
        self.run_dir = RunDir(self.config.output, label=label)
        observer, log = self.place.observer, self.run_dir.log

        def observe(event: Event) -> None:
            observer(event)
            log(event)

        self.place = replace(self.place, record=self.run_dir.append_metrics, observer=observe)
        observe(RunStarted(self.run_dir.path))
        self.run_dir.describe(
            config_toml=to_toml(self.config),
            command=command,
            device=self.place.compute.device,
            threads=torch.get_num_threads(),
        )

    def test(self, model: nn.Module) -> Evaluation:
        """Read the test set with a model, compared with the teacher if its logits are known."""
        assert self.feed.test is not None
        dtype = self.place.compute.autocast_dtype
        return evaluate(model, self.feed.test, teacher_logits=self.test_logits, autocast_dtype=dtype)


@contextmanager
def open_scene(
    config: TrainConfig | DistillConfig,
    observer: Observer,
    *,
    allow_code: bool,
    memory: LogitsMemory | None = None,
) -> Iterator[Scene]:
    """Everything that can fail before models are built, in the order in which it is cheap to find out.

    The run folder is looked at and left alone: a run that fails before `Scene.begin` leaves nothing behind.
    """
    compute = choose_compute(config.device, config.training.precision)
    if config.output is not None:
        check_free(config.output)
    image_size = config.image_size or common_image_size(_learners(config))
    with cpu_threads(config.threads):
        dataset = open_dataset(
            config.data,
            data_dir=config.data_dir,
            offline=config.offline,
            image_size=image_size,
            split=config.split,
            allow_code=True,  # as for models: see Scene.build
            observer=observer,
        )
        feed = build_feed(config, dataset, image_size, compute)
        scene = Scene(config, dataset, feed, Workplace(feed, config.seed, compute, observer, memory=memory), allow_code)
        try:
            yield scene
        finally:
            if scene.run_dir:
                scene.run_dir.release()


def _learners(config: TrainConfig | DistillConfig) -> list[str]:
    """Names of the models that the run is about."""
    if isinstance(config, TrainConfig):
        return [config.model]
    uses_assistant = find_plan(config.method, config.stages).uses_assistant
    return [config.student, *([config.assistant] if uses_assistant else [])]


def check_fits(model: Classifier, dataset: Dataset, image_size: int, *, where: str, observer: Observer) -> None:
    """See that a model that was loaded takes a data set's images and knows its classes.

    Other names for as many classes are let through, and the observer is told.

    Args:
        model: From a weight file.
        dataset: What it will look at.
        image_size: Side of the images that it will get, in pixels.
        where: The file, for the message.
        observer: Is told of other names.

    Raises:
        ShapeError: It takes images of another size, knows another number of classes, or knows them in another order.
    """
    if model.image_size != image_size:
        raise ShapeError(
            f"the model takes images of {model.image_size}x{model.image_size}, not {image_size}x{image_size}",
            where=where,
            hint=f"give --image-size {model.image_size}, if the others take such images too",
        )
    if model.num_classes != dataset.num_classes:
        raise ShapeError(
            f"the model knows {model.num_classes} classes, the data has {dataset.num_classes}",
            where=where,
            hint="give the data that it was trained on: --data",
        )
    if model.classes is None or model.classes == dataset.classes:
        return
    first = ", ".join(model.classes[:4])
    if set(model.classes) == set(dataset.classes):
        raise ShapeError(
            f"the model has the same classes as the data, but in another order: {first}, ...",
            where=where,
            hint="give the data that it was trained on: --data",
        )
    observer(Note(f"{where}: the model's classes ({first}, ...) have other names than the data's"))


def build_feed(config: RunConfig, dataset: Dataset, image_size: int, compute: Compute) -> Feed:
    """Cut, order and place the images of a run.

    Raises:
        DataError: Nothing is left to train on.
    """
    train, validation = validation_split(
        dataset.train.labels,
        fraction=config.split.validation_fraction,
        seed=config.split.seed,
        limit=config.split.train_limit,
    )
    if not len(train):
        raise DataError("no images are left to train on", where=config.data, hint="lower split.validation_fraction")

    def in_order(
        images: NDArray[np.uint8] | Tensor, of: ImageSet, indices: NDArray[np.int64] | None
    ) -> EvaluationBatches:
        return EvaluationBatches(
            images,
            of.labels,
            indices,
            batch_size=_EVALUATION_BATCH,
            device=compute.device,
            image_size=image_size,
        )

    images = on_device(dataset.train.images, compute.device)  # once, for all that read them
    training = TrainingBatches(
        images,
        dataset.train.labels,
        train,
        batch_size=config.training.batch_size,
        num_classes=dataset.num_classes,
        augment=config.augment,
        label_smoothing=config.training.label_smoothing,
        seed=config.seed,
        device=compute.device,
        image_size=image_size,
    )
    # Shuffled: statistics of a batch are those of the data only where its classes are mixed as the data's are.
    some = np.random.default_rng(config.split.seed).permutation(train)[:_STATISTICS_IMAGES]
    return Feed(
        training=training,
        validation=in_order(images, dataset.train, validation) if len(validation) else None,
        test=in_order(dataset.test.images, dataset.test, None),
        statistics=in_order(images, dataset.train, some),
        num_classes=dataset.num_classes,
        image_size=image_size,
        signature=_feed_signature(config, dataset, image_size),
    )


def common_image_size(specs: Sequence[str]) -> int:
    """The size of images that every model takes.

    Raises:
        ShapeError: They take different ones.
    """
    sizes = {spec: MODELS[spec].input_size if spec in MODELS else 32 for spec in specs}
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"the models take images of different sizes: {sizes}", where="image_size", hint="give image_size"
        )
    return next(iter(sizes.values()))


def _run_sha256(config: TrainConfig | DistillConfig, dataset: Dataset, loaded_teacher: nn.Module | None) -> str:
    """Hash of what a run is: its settings less those of place and device, contents in the place of files' paths."""
    settings = settings_of(config)
    for key in ("output", "data_dir", "offline", "device", "threads"):
        settings.pop(key, None)
    settings["data"] = dataset.sha256
    if loaded_teacher is not None:
        settings.pop("teacher_model", None)
        settings["teacher"] = weights_sha256(loaded_teacher)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _feed_signature(config: RunConfig, dataset: Dataset, image_size: int) -> str:
    settings = settings_of(config)
    parts = [
        dataset.sha256,
        image_size,
        settings["augment"],
        settings["split"],
        config.training.batch_size,
        config.seed,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
