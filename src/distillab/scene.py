"""A run's surroundings, made from its settings: data in batches, device, run folder."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from distillab.config import RunConfig, settings_of, to_toml
from distillab.data.batches import EvaluationBatches, TrainingBatches, on_device
from distillab.data.catalog import open_dataset
from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import validation_split
from distillab.errors import DataError, ShapeError
from distillab.evaluation.evaluate import Evaluation, evaluate
from distillab.execution import Workplace
from distillab.guidance.cache import LogitsMemory
from distillab.models.catalog import MODELS, build_model
from distillab.outside_code import names_code
from distillab.runtime.device import Compute, choose_compute, cpu_threads
from distillab.runtime.events import Note, Observer, RunStarted
from distillab.runtime.reproducibility import seeded
from distillab.runtime.run_dir import RunDir
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
        run_dir: Where files go, or None.
        allow_code: Weight files may name code that builds their model.
        test_logits: The teacher's on the test set, once they are known.
    """

    config: RunConfig
    dataset: Dataset
    feed: Feed
    place: Workplace
    run_dir: RunDir | None
    allow_code: bool
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

    def test(self, model: nn.Module) -> Evaluation:
        """Read the test set with a model, compared with the teacher if its logits are known."""
        assert self.feed.test is not None
        dtype = self.place.compute.autocast_dtype
        return evaluate(model, self.feed.test, teacher_logits=self.test_logits, autocast_dtype=dtype)


@contextmanager
def open_scene(
    config: RunConfig,
    specs: Sequence[str],
    label: str,
    observer: Observer,
    command: Sequence[str],
    allow_code: bool,
    save_run: bool,
    memory: LogitsMemory | None = None,
) -> Iterator[Scene]:
    """Everything that can fail before the first step, in the order in which it is cheap to find out."""
    compute = choose_compute(config.device, config.training.precision)
    image_size = config.image_size or common_image_size(specs)
    with cpu_threads(config.threads) as threads:
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
        run_dir = RunDir(config.output, label=label) if save_run else None
        record = None
        if run_dir:
            observer(RunStarted(run_dir.path))
            run_dir.describe(config_toml=to_toml(config), command=command, device=compute.device, threads=threads)
            record = run_dir.append_metrics
        place = Workplace(feed, config.seed, compute, observer, record, memory)
        try:
            yield Scene(config, dataset, feed, place, run_dir, allow_code)
        finally:
            if run_dir:
                run_dir.release()


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
