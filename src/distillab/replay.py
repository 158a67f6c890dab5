"""A part of a run, carried out again in memory and held against what the run has written down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from distillab.config import AnyConfig
from distillab.data.batches import on_device
from distillab.errors import CheckpointError, DistillabError, Interrupted, NonFiniteLossError
from distillab.evaluation.evaluate import evaluate_logits
from distillab.feeding import check_fits
from distillab.identity import differences, made_by
from distillab.models.classifier import Classifier
from distillab.models.weights import load_model
from distillab.recipe import load_recipe
from distillab.run import run_together
from distillab.run_files import Finding, NotLookedAtError, Result, RunFiles, looked_at
from distillab.runtime.events import Note, Observer
from distillab.scene import Scene
from distillab.training.checkpoint import Checkpoint, CheckpointDir
from distillab.training.config import Role
from distillab.training.keeper import Keeper
from distillab.training.state import reading_state

# How far numbers may be apart where a run cannot come out the same to the last bit: see `held_against`. What a trained
# model says of images moves by little more than the rounding; while a model learns, differences grow step by step.
TEST_TOLERANCE = 0.01
REPLAY_TOLERANCE = 0.1


def replay(files: RunFiles, *, elsewhere: Sequence[str], observer: Observer, allow_code: bool) -> list[Finding]:
    """See that a run is what it says, that its weights are worth what it says, and that an epoch comes out as it did.

    Data are opened and models built as for the run; then it goes on from a checkpoint, or begins, and is ended when one
    more line of its log is complete. Nothing is written into its folder.

    Args:
        files: They have been looked at.
        elsewhere: Why numbers may be rounded otherwise here than they were in the run.
        observer: Is told of progress, and of the time that it will take.
        allow_code: Settings and weight files may name code that is run.

    Raises:
        Interrupted: Somebody asked for that.
    """
    again = _Replay(files, elsewhere, observer, allow_code)
    replayed = looked_at("replay", again.carry_out)
    if not again.findings:  # it did not even begin
        return [Finding("settings and data", replayed.found, "not looked at"), replayed]
    return [*again.findings, replayed]


def held_against(recorded: Mapping[str, Any], found: Mapping[str, Any], *, tolerance: float) -> str:
    """Say how near numbers come to those of a run.

    Args:
        recorded: By the run.
        found: Now.
        tolerance: How far two numbers may be apart, as a share of the larger one, or of 1 where both are smaller; 0:
            they must be equal.

    Raises:
        CheckpointError: Two are farther apart, or one of them is missing.
    """
    largest = 0.0
    for name in {**recorded, **found}:
        before, now = recorded.get(name), found.get(name)
        apart = _apart(before, now)
        if not apart <= tolerance:
            raise CheckpointError(f"{name} is {now}, in the run it was {before}")
        largest = max(largest, apart)
    return f"equal but for {largest:.1e} at most" if largest else "equal to the last bit"


def _apart(before: Any, now: Any) -> float:
    if before == now:
        return 0.0
    if not isinstance(before, int | float) or not isinstance(now, int | float):
        return math.inf
    try:
        return abs(before - now) / max(1.0, abs(before), abs(now))
    except OverflowError:  # a whole number that no float holds
        return math.inf


class _EnoughError(Exception):
    """The line that was asked for is there: the run need not go on."""


class _Onlooker(Keeper):
    """Says where a run goes on, and saves nothing.

    Args:
        checkpoint: Where.
        observer: Is told of it.
    """

    def __init__(self, checkpoint: Checkpoint, observer: Observer) -> None:
        folder = CheckpointDir(checkpoint.path.parent, keep=1)
        super().__init__(folder, interval_seconds=math.inf, made_by={}, observer=observer, go_on="", resumed=checkpoint)

    def save(self, step: int) -> None:
        """Stop: it is time to save only when somebody wants that.

        Raises:
            Interrupted: Always.
        """
        asked = self.asked
        assert asked is not None
        raise Interrupted("stopped; the run is as it was", signal_number=asked)


class _Replay:
    """A replay under way.

    Attributes:
        findings: What came of it, as long as the run was not trained on.
    """

    def __init__(self, files: RunFiles, elsewhere: Sequence[str], observer: Observer, allow_code: bool) -> None:
        self.findings: list[Finding] = []
        self._files = files
        self._elsewhere = list(elsewhere)
        self._observer = observer
        self._allow_code = allow_code
        self._log: list[dict[str, Any]] = []

    def carry_out(self) -> str:
        """Go through the run up to the line of its log that is to be compared; say how it compares."""
        files = self._files
        try:
            outcomes = run_together(
                [self._config()],
                observer=self._observer,
                allow_code=self._allow_code,
                save_run=False,
                ready=self._look,
            )
        except _EnoughError:
            assert files.log is not None
            words = self._held_against(files.log[files.num_held], self._log[files.num_held], REPLAY_TOLERANCE)
            return f"{self._segment()}: {words}"
        except Interrupted:
            raise
        except DistillabError as error:
            if self.findings:
                raise
            hint = f" ({error.hint})" if error.hint else ""
            raise NotLookedAtError(f"{error.message}{hint}") from error
        if isinstance(outcomes[0], NonFiniteLossError):
            raise outcomes[0]
        raise CheckpointError(f"the run ends after {len(self._log)} epochs, its log goes on")

    def _config(self) -> AnyConfig:
        """The settings, with as many threads as the run had: others would round otherwise."""
        config = self._files.config
        if config is None:
            raise NotLookedAtError(self._files.obstacle)
        if not self._allow_code:
            load_recipe(str(self._files.folder))  # which refuses it
        threads = (self._files.made_by or self._files.environment).get("threads")
        if type(threads) is not int or not 1 <= threads <= 1024:
            return config
        return config.model_copy(update={"threads": threads})

    def _look(self, scene: Scene, models: Mapping[Role, nn.Module]) -> None:
        """Before the first step: see what the run is, test its weights, and say how it goes on."""
        files = self._files
        identity = looked_at("settings and data", partial(self._look_at_identity, scene))
        self.findings.append(identity)
        self._find_out_where(scene)
        if files.result is None:
            self.findings.append(Finding("test images", "the run is not complete", "not looked at"))
        else:
            self.findings += self._tests(scene, models, files.result)
        if identity.verdict == "differs":
            raise NotLookedAtError("it would be another run")
        if files.log is None:
            raise NotLookedAtError("no metrics.jsonl to hold it against")
        if len(files.log) <= files.num_held:
            raise NotLookedAtError("no epoch is complete yet")
        seconds = files.seconds(files.log[files.num_held])
        time = "" if seconds is None else f"; in the run the whole epoch took {seconds:.1f} s"
        self._observer(Note(f"replaying {self._segment()}{time}"))
        with reading_state():
            keeper = _Onlooker(files.checkpoint, self._observer) if files.checkpoint else None
        scene.place = replace(scene.place, record=self._record, keeper=keeper)

    def _record(self, line: Mapping[str, Any]) -> None:
        self._log.append({name: value for name, value in line.items() if name != "seconds"})
        if len(self._log) > self._files.num_held:
            raise _EnoughError

    def _look_at_identity(self, scene: Scene) -> str:
        result, saved = self._files.result, self._files.made_by.get("runs")
        if saved is not None:
            changed, _ = differences({"runs": saved}, {"runs": [scene.identity]})
            if changed:
                raise CheckpointError("; ".join(changed[:3]))
        if result is None and saved is None:
            raise NotLookedAtError("no result.json and no checkpoint to hold them against")
        if result is not None and result.run_sha256 != scene.run_sha256:
            raise CheckpointError(f"run_sha256 is {scene.run_sha256}, in result.json {result.run_sha256}")
        return f"run_sha256 is {scene.run_sha256[:12]}..., as in {'result.json' if result else 'the checkpoint'}"

    def _find_out_where(self, scene: Scene) -> None:
        """Add what is known now of why numbers may be rounded otherwise."""
        compute = scene.place.compute
        if self._files.made_by:
            for reasons in differences({**self._files.made_by, "runs": []}, made_by([], compute)):
                self._elsewhere += reasons
        if compute.device.type != "cpu":
            self._elsewhere.append(f"a {compute.device.type} device chooses its kernels anew")

    def _tests(self, scene: Scene, models: Mapping[Role, nn.Module], result: Result) -> Iterator[Finding]:
        if result.teacher is not None:
            yield looked_at("teacher on the test images", partial(self._test_teacher, scene, models, result))
        for name, recorded in result.tested:
            yield looked_at(f"{name} on the test images", partial(self._test, scene, result, name, recorded))

    def _test_teacher(self, scene: Scene, models: Mapping[Role, nn.Module], result: Result) -> str:
        assert result.teacher is not None
        if "teacher" not in models:
            raise CheckpointError("result.json has a teacher, config.toml has none")
        trained_here = bool(result.teacher.stages)
        guide = self._load(scene, "teacher.safetensors") if trained_here else models["teacher"]
        teacher = scene.place.compute.take(guide)
        scene.test_logits = scene.teacher_test_logits(teacher)
        labels = on_device(scene.dataset.test.labels, scene.test_logits.device)
        found = evaluate_logits(scene.test_logits, labels).as_dict()
        return self._held_against(result.teacher.test or {}, found, TEST_TOLERANCE)

    def _test(self, scene: Scene, result: Result, name: str, recorded: Mapping[str, Any]) -> str:
        if result.teacher is not None and scene.test_logits is None:
            raise NotLookedAtError("its teacher cannot be asked")
        found = scene.test(scene.place.compute.take(self._load(scene, name))).as_dict()
        return self._held_against(recorded, found, TEST_TOLERANCE)

    def _load(self, scene: Scene, name: str) -> Classifier:
        path = self._files.folder / name
        model = load_model(path, allow_code=self._allow_code, observer=self._observer)
        check_fits(model, scene.dataset, scene.feed.image_size, where=str(path), observer=self._observer)
        return model

    def _held_against(self, recorded: Mapping[str, Any], found: Mapping[str, Any], tolerance: float) -> str:
        if not self._elsewhere:
            return held_against(recorded, found, tolerance=0.0)
        try:
            words = held_against(recorded, found, tolerance=tolerance)
        except CheckpointError as error:
            raise CheckpointError(f"{error.message}, more than {tolerance} apart ({self._elsewhere[0]})") from error
        return f"{words} ({self._elsewhere[0]})"

    def _segment(self) -> str:
        """What is replayed, in words."""
        files = self._files
        assert files.log is not None
        line = files.log[files.num_held]
        start = files.checkpoint.path.name if files.checkpoint else "the beginning"
        return f"{line['stage']}, epoch {line['epoch']}, from {start}"
