"""From settings to results: data, models and stages, for one run or for some that share their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from distillab.checks import check_assistant, check_teacher
from distillab.config import AnyConfig, DistillConfig, TrainConfig, alone, for_role, is_weight_source, regime_of
from distillab.errors import ConfigError, NonFiniteLossError, few_of
from distillab.execution import Job, Trained, carry_out_together, train_alone
from distillab.feeding import check_fits
from distillab.identity import differences, made_by
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model
from distillab.outcome import RunResult, distill_result, save_model, train_result
from distillab.preparation import check_layers
from distillab.runtime.events import Note, Observer, retitled, silent
from distillab.runtime.interruption import resume_command
from distillab.runtime.run_dir import RunDir, checkpoints_of, write_group
from distillab.scene import Scene, open_scenes
from distillab.stages import find_plan
from distillab.training.checkpoint import Checkpoint, CheckpointDir
from distillab.training.config import Regime, Role
from distillab.training.keeper import Keeper


def run_one(
    config: AnyConfig,
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    save_run: bool = True,
) -> RunResult:
    """Train one model alone, or distil a teacher into a student by any plan.

    Args:
        config: Resolved settings; their kind says which.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Weight files may name code that builds their model.
        save_run: Keep a run folder.

    Raises:
        DistillabError: Of the kinds in `errors.py`; what was written until then is whole.
    """
    outcome = run_together([config], observer=observer, command=command, allow_code=allow_code, save_run=save_run)[0]
    if isinstance(outcome, NonFiniteLossError):
        raise outcome
    return outcome


def run_together(
    configs: Sequence[AnyConfig],
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    save_run: bool = True,
    group: Path | None = None,
    resumed: Resumed | None = None,
    ready: Callable[[Scene, Mapping[Role, nn.Module]], None] | None = None,
) -> list[RunResult | NonFiniteLossError]:
    """Carry out some runs at the same time on the same batches, each teacher being asked once a batch.

    Each gives the result, and leaves the files, that it would alone; only times differ.

    Args:
        configs: Resolved settings. All have the same data, seed, batches and device.
        observer: Is told of progress.
        command: Words of the command line, for the record.
        allow_code: Weight files may name code that builds their model.
        save_run: Keep run folders.
        group: The folder that holds all run folders, and takes the checkpoints that they have in common; None: one run
            has its own, several have none.
        resumed: The runs go on; None: they are new.
        ready: Is called for each run before its first step, with its surroundings and its models.

    Returns:
        Of each run its result, or why it ended before its time.

    Raises:
        ConfigError: The runs cannot share their batches.
        DistillabError: Of the kinds in `errors.py`; what was written until then is whole.
    """
    for config in configs:
        if isinstance(config, DistillConfig):
            find_plan(config.method, config.stages)
            is_weight_source(config.teacher)  # before images are read or downloaded
    with open_scenes(configs, observer, allow_code=allow_code) as scenes:
        teachers = Teachers()
        runs = [prepare(scene, teachers) for scene in scenes]
        _tell_apart(runs)
        for number, one in enumerate(runs):
            one.scene.identify(teachers.loaded(one.scene.config))
            if resumed is not None:
                one.scene.go_on(resumed.run_dirs[number], command, anew=resumed.checkpoint is None)
            elif save_run:
                one.scene.begin(one.label, command)
        _keep(scenes, group, resumed)
        for scene in scenes:
            scene.track()
        if ready is not None:
            for one in runs:
                ready(one.scene, one.models)
        keeper = scenes[0].place.keeper
        with keeper.hearing() if keeper is not None else nullcontext():
            taught = [teachers.taught(one.scene) for one in runs]
            outcomes = carry_out_together([one.job() for one in runs])
        return [one.end(outcome, teacher) for one, outcome, teacher in zip(runs, outcomes, taught, strict=True)]


@dataclass(frozen=True)
class Resumed:
    """Where runs go on.

    Attributes:
        run_dirs: Of the runs, in their order; they are ours, and given free in the end.
        checkpoint: The newest; None: there was none yet, and they start again.
        force: Go on even if they would come out otherwise now.
    """

    run_dirs: Sequence[RunDir]
    checkpoint: Checkpoint | None
    force: bool = False


def _keep(scenes: Sequence[Scene], group: Path | None, resumed: Resumed | None) -> None:
    """Have runs saved now and then, if they have a folder."""
    first = scenes[0]
    home = group or (first.run_dir.path if first.run_dir is not None and len(scenes) == 1 else None)
    if home is None:
        return
    made = made_by([scene.identity for scene in scenes], first.place.compute)
    checkpoint = None
    if resumed is not None and resumed.checkpoint is not None:
        checkpoint = resumed.checkpoint
        _check_trajectory(checkpoint, made, first.place.observer, force=resumed.force)
    elif group is not None:
        write_group(group, [scene.run_dir.path.name for scene in scenes if scene.run_dir is not None])
    settings = first.config.checkpoint
    keeper = Keeper(
        CheckpointDir(checkpoints_of(home), keep=settings.keep, observer=first.place.observer),
        interval_seconds=60.0 * settings.minutes,
        made_by=made,
        observer=first.place.observer,
        go_on=resume_command(home, allow_code=any(scene.needs_permission for scene in scenes)),
        resumed=checkpoint,
    )
    for scene in scenes:
        scene.place = replace(scene.place, keeper=keeper)
        scene.started -= keeper.seconds


def _check_trajectory(checkpoint: Checkpoint, made: Mapping[str, Any], observer: Observer, *, force: bool) -> None:
    """See that a run that goes on comes out as it would have; the observer is told of what may matter.

    Raises:
        ConfigError: It would not, and is not forced to.
    """
    decisive, told = differences(checkpoint.made_by, made)
    for words in [*told, *(decisive if force else [])]:
        observer(Note(f"{checkpoint.path.name}: {words}"))
    if decisive and not force:
        raise ConfigError(
            f"the run would come out otherwise than it began: {few_of(decisive)}",
            where=str(checkpoint.path),
            hint="put that back as it was, or go on all the same with --force",
        )


@dataclass(frozen=True)
class PreparedRun:
    """One run, ready to be carried out.

    Attributes:
        scene: Its surroundings.
        label: A part of its folder's name, where that is made.
        models: All that it has.
    """

    scene: Scene
    label: str
    models: dict[Role, nn.Module]

    def retitle(self, pattern: str) -> None:
        """Have its stages called otherwise, for whoever watches: see `retitled`. Its files know of that not."""
        self.scene.place = replace(self.scene.place, observer=retitled(self.scene.place.observer, pattern))

    def job(self) -> Job:
        """What is to be trained."""
        config = self.scene.config
        if isinstance(config, TrainConfig):
            return Job(self.models, {config.role: regime_of(config)}, self.scene.place)
        plan = find_plan(config.method, config.stages)
        return Job(self.models, learners_regimes(config), self.scene.place, plan, config.distill)

    def end(
        self, outcome: dict[Role, Trained] | NonFiniteLossError, taught: Trained | None
    ) -> RunResult | NonFiniteLossError:
        """The run's result; or why there is none, which does not concern the other runs."""
        if isinstance(outcome, NonFiniteLossError):
            return outcome
        try:
            return self._conclude(outcome, taught)
        except NonFiniteLossError as error:  # the last update may be what spoils a model
            return error

    def _conclude(self, trained: Mapping[Role, Trained], taught: Trained | None) -> RunResult:
        config = self.scene.config
        if isinstance(config, TrainConfig):
            return train_result(self.scene, config, trained[config.role])
        return distill_result(self.scene, config, self.models, trained, taught)


def prepare(scene: Scene, teachers: Teachers) -> PreparedRun:
    """Build or load the models of a run.

    Args:
        scene: Its surroundings.
        teachers: Of all runs that are carried out together.

    Raises:
        DistillabError: As `build_models`.
    """
    config = scene.config
    if isinstance(config, TrainConfig):
        models = {config.role: scene.build(config.model, config.role)}
        return PreparedRun(scene, f"{config.role}-{_file_name(config.model)}", models)
    plan = find_plan(config.method, config.stages)
    return PreparedRun(scene, f"{plan.name}-{_file_name(config.student)}", build_models(scene, config, teachers))


def _tell_apart(runs: Sequence[PreparedRun]) -> None:
    """Number the stages of runs by one plan, or of one role, for whoever watches; their files know of no other run."""
    configs = [one.scene.config for one in runs]
    kinds = [config.role if isinstance(config, TrainConfig) else config.method for config in configs]
    for number, one in enumerate(runs):
        if kinds.count(kinds[number]) > 1:
            one.retitle(f"{{}} [{kinds[: number + 1].count(kinds[number])}]")


def build_models(scene: Scene, config: DistillConfig, teachers: Teachers | None = None) -> dict[Role, nn.Module]:
    """The models of a plan: new ones for those that learn, and the teacher, loaded or to be trained.

    Raises:
        CheckpointError: The teacher cannot be loaded, or has another number of classes.
        ShapeError: It takes other images, or knows the classes in another order.
        ConfigError: A method reads a layer that a model does not have.
    """
    plan = find_plan(config.method, config.stages)
    models: dict[Role, nn.Module] = {}
    if plan.uses_assistant:
        models["assistant"] = scene.build(config.assistant, "assistant")
    models["student"] = scene.build(config.student, "student")
    models["teacher"] = (teachers or Teachers()).get(scene, config)
    check_layers(plan, config.distill, models)
    check_assistant(models, observer=scene.place.observer)
    return models


def learners_regimes(config: DistillConfig) -> dict[Role, Regime]:
    """How each role of a plan is trained."""
    return {"student": regime_of(config), "assistant": regime_of(for_role(config, "assistant"))}


class Teachers:
    """The teachers of some runs: one model for all runs that name the same one."""

    def __init__(self) -> None:
        self._models: dict[str, nn.Module] = {}
        self._taught: dict[str, Trained] = {}

    def get(self, scene: Scene, config: DistillConfig) -> nn.Module:
        """The teacher of a run, loaded or to be trained."""
        key = self._key(config)
        if key not in self._models:
            loaded = is_weight_source(config.teacher)
            self._models[key] = _load_teacher(scene, config) if loaded else scene.build(config.teacher, "teacher")
        return self._models[key]

    def loaded(self, config: AnyConfig) -> nn.Module | None:
        """The teacher, if it is not trained in the run."""
        if isinstance(config, TrainConfig) or not is_weight_source(config.teacher):
            return None
        return self._models[self._key(config)]

    def taught(self, scene: Scene) -> Trained | None:
        """Train a run's teacher where a model name stands in its place, unless another run has; save it."""
        config = scene.config
        if isinstance(config, TrainConfig) or is_weight_source(config.teacher):
            return None
        key = self._key(config)
        if key not in self._taught:
            scene.place.observer(Note(f"no weights are given for the teacher: a {config.teacher} is trained first"))
            regime = regime_of(alone(config, "teacher"))
            self._taught[key] = train_alone(self._models[key], regime, scene.place, role="teacher")
        elif scene.place.record is not None:
            for stage in self._taught[key].stages:
                for line in stage.lines():
                    scene.place.record(line)
        save_model(scene, "teacher", self._models[key])
        return self._taught[key]

    def _key(self, config: DistillConfig) -> str:
        regime = "" if is_weight_source(config.teacher) else regime_of(alone(config, "teacher")).model_dump_json()
        return f"{config.teacher} {config.teacher_model} {regime}"


def _load_teacher(scene: Scene, config: DistillConfig) -> Classifier:
    teacher = load_model(
        config.teacher,
        spec=config.teacher_model,
        num_classes=scene.dataset.num_classes,
        image_size=scene.feed.image_size,
        allow_code=scene.allow_code,
        observer=scene.place.observer,
    )
    where = f"teacher: {config.teacher}"
    place = scene.place
    check_fits(teacher, scene.dataset, scene.feed.image_size, where=where, observer=place.observer)
    assert scene.feed.sample is not None
    check_teacher(place.compute.take(teacher), scene.feed.sample, compute=place.compute, observer=place.observer)
    return teacher


def _file_name(spec: str) -> str:
    """A model's name as a part of a folder's name."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in spec)[-40:]
