"""A run's surroundings, made from its settings: data in batches, device, run folder."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillab.checks import check_trainable
from distillab.config import AnyConfig, TrainConfig, settings_of, shared_settings, to_toml
from distillab.data.catalog import open_dataset
from distillab.data.config import AugmentConfig
from distillab.data.dataset import Dataset
from distillab.errors import ConfigError, DistillabError, StorageError
from distillab.evaluation.evaluate import Evaluation, collect_logits, evaluate
from distillab.feeding import build_feed, build_place, common_image_size
from distillab.guidance.cache import teacher_sha256
from distillab.identity import identity_sha256, run_identity
from distillab.models.catalog import MODELS, build_model
from distillab.outside_code import mentions_code, names_code
from distillab.preparation import Workplace
from distillab.runtime.device import choose_compute, computing
from distillab.runtime.events import Event, Note, Observer, RunStarted
from distillab.runtime.files import write_text
from distillab.runtime.interruption import resume_command
from distillab.runtime.reproducibility import seeded
from distillab.runtime.run_dir import RunDir, check_free
from distillab.runtime.trackers.tracking import Trackers, check_installed
from distillab.stages import find_plan
from distillab.training.config import Role
from distillab.training.stage import Feed


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
        identity: What the run is: see `run_identity`.
        run_sha256: The same as a hash; equal for runs that give equal results.
        started: When the run was asked for, by `time.perf_counter`.
        test_logits: The teacher's on the test set, once they are known.
        trackers: Show the run's numbers elsewhere.
    """

    config: AnyConfig
    dataset: Dataset
    feed: Feed
    place: Workplace
    allow_code: bool
    run_dir: RunDir | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    run_sha256: str = ""
    started: float = field(default_factory=time.perf_counter)
    test_logits: Tensor | None = None
    trackers: Trackers = field(default_factory=Trackers)

    @property
    def needs_permission(self) -> bool:
        """Whether to go on with the run takes `allow_code`: what was typed by hand is read from its folder then."""
        return self.allow_code or mentions_code(settings_of(self.config))

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
        if spec not in MODELS:
            check_trainable(model, self.place.compute)
        model.classes = self.dataset.classes
        return model

    def identify(self, loaded_teacher: nn.Module | None) -> None:
        """Settle what the run is.

        Args:
            loaded_teacher: The teacher, if it is not trained in this run.
        """
        self.identity = run_identity(self.config, self.dataset, loaded_teacher)
        self.run_sha256 = identity_sha256(self.identity)

    def begin(self, label: str, command: Sequence[str]) -> None:
        """Take the run's folder: the last thing before the first step.

        Args:
            label: A part of the folder's name, where it is made.
            command: Words of the command line, for the record.

        Raises:
            StorageError: The folder holds something already, or cannot be written.
            RunDirInUseError: Another process owns it.
        """
        run_dir = RunDir.new(self.config.output, label=label)
        try:  # first: a folder with settings can be resumed, one with nothing in it be begun again
            write_text(run_dir.path / "config.toml", to_toml(self.config))
        except StorageError:
            run_dir.release()
            raise
        self._use(run_dir)
        run_dir.describe(command=command, device=self.place.compute.device, threads=torch.get_num_threads())

    def go_on(self, run_dir: RunDir, command: Sequence[str], *, anew: bool) -> None:
        """Put files into the folder that the run has already.

        Args:
            run_dir: It is ours, and given free by `close`.
            command: Words of the command line, for the record of a run that starts again.
            anew: The run starts again, on this machine.
        """
        run_dir.forget_metrics()
        if anew:
            run_dir.describe(command=command, device=self.place.compute.device, threads=torch.get_num_threads())
        self._use(run_dir)

    def track(self) -> None:
        """Begin to show the run elsewhere, or go on with that, if it has a folder: once nothing speaks against it.

        Raises:
            StorageError: The folder cannot be written.
        """
        if self.run_dir is not None:
            settings, observer = settings_of(self.config), self.place.observer
            self.trackers = Trackers.start(self.config.track, self.run_dir.path, settings, observer)

    def _use(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        observer, log = self.place.observer, run_dir.log

        def observe(event: Event) -> None:
            observer(event)
            log(event)

        def record(line: Mapping[str, Any]) -> None:
            run_dir.append_metrics(line)
            self.trackers.epoch(line)

        self.place = replace(self.place, record=record, observer=observe)
        observe(RunStarted(run_dir.path, resume_command(run_dir.path, allow_code=self.needs_permission)))
        log(Note(self._how()))  # not for the screen: runs that are carried out together would all say it

    def _how(self) -> str:
        """How the run computes, in words: what was chosen for it by the device and the data."""
        compute = self.place.compute
        images = "on the device" if self.feed.is_resident else "streamed"
        return f"computing on {compute.device}: {compute.precision}, {compute.execution} steps, images {images}"

    def log_end(self, error: DistillabError) -> None:
        """Write down why the run has stopped, if its folder still takes that."""
        if self.run_dir is not None:
            with suppress(StorageError):
                self.run_dir.log(Note(error.message))

    def close(self) -> None:
        """Let the trackers go, and give the run folder free."""
        with suppress(StorageError):  # the log may not take what went wrong with one
            self.trackers.end()
        if self.run_dir:
            self.run_dir.release()

    def teacher_test_logits(self, teacher: nn.Module) -> Tensor:
        """Logits [N, C] of the test images, by which the others are compared with their teacher."""
        test, place = self.feed.test, self.place
        assert test is not None

        def ask() -> Tensor:
            return collect_logits(teacher, test, autocast_dtype=place.compute.autocast_dtype)[0]

        if place.cache is None or self.feed.key is None:
            return ask()
        key = replace(
            self.feed.key,
            teacher=teacher_sha256(teacher),
            images="test",
            num_samples=len(self.dataset.test),
            augment=AugmentConfig(),
        )
        return place.cache.recall(key, ask).to(place.compute.device)

    def test(self, model: nn.Module) -> Evaluation:
        """Read the test set with a model, compared with the teacher if its logits are known."""
        assert self.feed.test is not None
        dtype = self.place.compute.autocast_dtype
        return evaluate(model, self.feed.test, teacher_logits=self.test_logits, autocast_dtype=dtype)


@contextmanager
def open_scenes(configs: Sequence[AnyConfig], observer: Observer, *, allow_code: bool) -> Iterator[list[Scene]]:
    """The surroundings of runs that are carried out together: one data set, one device, the same batches.

    Here is everything that can fail before models are built, in the order in which it is cheap to find out. The run
    folders are looked at and left alone: a run that fails before `Scene.begin` leaves nothing behind.

    Args:
        configs: Settings, one a run.
        observer: Is told of progress.
        allow_code: Weight files may name code that builds their model.

    Raises:
        ConfigError: They differ in what they are to share, or cannot be carried out on the device.
        DataError: The images cannot be used.
        StorageError: A run folder is taken.
    """
    first = configs[0]
    for config in configs:
        check_installed(config.track)
    for config in configs[1:]:
        theirs = shared_settings(config)
        for name, value in shared_settings(first).items():
            _check_shared(name, value, theirs[name])
    compute = choose_compute(first.device, first.training.precision, deterministic=first.training.deterministic)
    for config in configs:
        if config.output is not None:
            check_free(config.output)
    if compute.device.type == "cuda":
        # What earlier runs left in cycles holds memory of the device, and Python collects by its own memory only.
        gc.collect()
        torch.cuda.empty_cache()
    image_size = run_image_size(first)
    for config in configs[1:]:
        _check_shared("image_size", image_size, run_image_size(config))
    with computing(compute, first.threads), ExitStack() as stack:
        dataset = open_data(first, observer)
        feed = build_feed(first, dataset, image_size, compute, observer=observer)
        folder = first.data_dir / "logits" if first.cache_gib else None
        place = build_place(first, feed, compute, observer, folder=folder)
        scenes = [Scene(config, dataset, feed, place, allow_code) for config in configs]
        for scene in scenes:
            stack.callback(scene.close)
        try:
            yield scenes
        except DistillabError as error:
            for scene in scenes:
                scene.log_end(error)
            raise


def _check_shared(name: str, one: object, other: object) -> None:
    if one != other:
        raise ConfigError(
            f"runs that are trained together see the same batches, but {name} is {one} in one and {other} in another",
            where=name,
            hint="give it one value, or train them one after another",
        )


def run_image_size(config: AnyConfig) -> int:
    """Side of the images that the models of a run get, in pixels."""
    return config.image_size or common_image_size(_learners(config))


def open_data(config: AnyConfig, observer: Observer) -> Dataset:
    """The images of a run.

    Raises:
        DataError: They cannot be used.
    """
    return open_dataset(
        config.data,
        data_dir=config.data_dir,
        offline=config.offline,
        image_size=run_image_size(config),
        split=config.split,
        allow_code=True,  # as for models: see Scene.build
        observer=observer,
    )


def _learners(config: AnyConfig) -> list[str]:
    """Names of the models that the run is about."""
    if isinstance(config, TrainConfig):
        return [config.model]
    uses_assistant = find_plan(config.method, config.stages).uses_assistant
    return [config.student, *([config.assistant] if uses_assistant else [])]
