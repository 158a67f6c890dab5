import signal
from types import SimpleNamespace

import pytest
import torch

from distillab.errors import CheckpointError, Interrupted, StorageError
from distillab.runtime.events import silent
from distillab.training import keeper as module
from distillab.training.checkpoint import Checkpoint, CheckpointDir, read_checkpoint
from distillab.training.keeper import Keeper


class Clock:
    """Stands in for the module `time`: it has the monotonic clock and no other, whose jumps would count."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Saves:
    """Stands in for the folder: remembers what was saved."""

    def __init__(self, path):
        self.path = path
        self.saved = {}

    def save(self, step, state, made_by):
        self.saved[step] = state
        return self.path / f"checkpoint-{step}"


def keeper(folder, *, seconds=60.0, observer=silent, resumed=None):
    return Keeper(
        folder, interval_seconds=seconds, made_by={}, observer=observer, go_on="distillab resume x", resumed=resumed
    )


def nothing():
    """Nobody wants to look."""


def train(phase, clock, steps, *, seconds_per_step=1.0, look=nothing, first=0):
    phase.begin(lambda: {"steps": phase.steps}, steps=first)
    for step in range(first, steps):
        clock.now += seconds_per_step
        phase.after_step(step + 1, look=look)


def train_with_a_signal(run, clock, number, *, before, after):
    """Somebody wants the run to stop after so many steps; so many more are meant to follow."""
    with run.hearing(), run.phase("student") as phase:
        train(phase, clock, before)
        signal.raise_signal(number)
        train(phase, clock, before + after, first=before)


def test_a_run_is_saved_at_intervals(tmp_path, clock):
    saves = Saves(tmp_path)
    with keeper(saves, seconds=10.0).phase("student") as phase:
        train(phase, clock, 35)
    assert list(saves.saved) == [10, 20, 30]


def test_an_interval_begins_when_the_last_save_has_ended(tmp_path, clock):
    saves = Saves(tmp_path)

    def slow_save(step, state, made_by):
        clock.now += 7.0
        return Saves.save(saves, step, state, made_by)

    saves_slowly = SimpleNamespace(save=slow_save)
    with keeper(saves_slowly, seconds=10.0).phase("student") as phase:
        train(phase, clock, 25)
    assert list(saves.saved) == [10, 20]


def test_an_interval_of_zero_is_every_step(tmp_path, clock):
    saves = Saves(tmp_path)
    with keeper(saves, seconds=0.0).phase("student") as phase:
        train(phase, clock, 3, seconds_per_step=0.0)
    assert list(saves.saved) == [1, 2, 3]


def test_the_numbers_are_looked_at_before_they_are_saved_and_bad_ones_never_are(tmp_path, clock):
    saves = Saves(tmp_path)

    def look():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), keeper(saves, seconds=3.0).phase("student") as phase:
        train(phase, clock, 5, look=look)
    assert saves.saved == {}


def test_steps_are_counted_over_all_phases_and_each_has_its_state(tmp_path, clock):
    saves = Saves(tmp_path)
    run = keeper(saves, seconds=4.0)
    for name, steps in (("teacher", 3), ("assistant", 3), ("student", 2)):
        with run.phase(name) as phase:
            train(phase, clock, steps)
    assert {step: state["phases"] for step, state in saves.saved.items()} == {
        4: [{"name": "teacher", "steps": 3}, {"name": "assistant", "steps": 1}],
        8: [{"name": "teacher", "steps": 3}, {"name": "assistant", "steps": 3}, {"name": "student", "steps": 2}],
    }
    assert run.newest == tmp_path / "checkpoint-8"


def resumed(*phases, step=5, seconds=100.0, path="checkpoint-5"):
    return Checkpoint(path, step, {"seconds": seconds, "phases": [dict(phase) for phase in phases]}, {})


def test_a_run_goes_on_where_its_checkpoint_says(tmp_path, clock):
    saves, notes = Saves(tmp_path), []
    teacher, student = {"name": "teacher", "steps": 3}, {"name": "student", "steps": 2}
    run = keeper(saves, seconds=4.0, observer=notes.append, resumed=resumed(teacher, student))
    with run.phase("teacher") as phase:
        assert phase.start == teacher
        phase.begin(lambda: {"steps": 3}, steps=3)
    with run.phase("student") as phase:
        assert phase.start == student
        train(phase, clock, 8, first=2)
    assert list(saves.saved) == [9]
    assert [note.text for note in notes] == ["resuming after step 5 of the run: student"]


def test_seconds_add_up_over_the_processes_of_a_run(tmp_path, clock):
    saves = Saves(tmp_path)
    run = keeper(saves, seconds=4.0, resumed=resumed({"name": "student"}, step=1, seconds=100.0))
    with run.phase("student") as phase:
        train(phase, clock, 6, first=1)
    assert saves.saved[5]["seconds"] == 104.0
    assert run.seconds == 105.0


def test_a_checkpoint_of_another_plan_is_refused(tmp_path, clock):
    run = keeper(Saves(tmp_path), resumed=resumed({"name": "assistant"}))
    with pytest.raises(CheckpointError, match="trains the assistant where this one trains the student"):
        run.phase("student").__enter__()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"seconds": 1.0},
        {"seconds": "long", "phases": []},
        {"seconds": 1.0, "phases": 3},
        {"seconds": 1.0, "phases": [3]},
        {"seconds": 1.0, "phases": [{}]},
    ],
)
def test_a_checkpoint_with_parts_missing_is_refused_by_name(tmp_path, clock, state):
    with pytest.raises(CheckpointError, match="of another run"):
        keeper(Saves(tmp_path), resumed=Checkpoint(tmp_path, 5, state, {})).phase("student").__enter__()


@pytest.mark.parametrize(("number", "name", "code"), [(signal.SIGINT, "Ctrl-C", 130), (signal.SIGTERM, "SIGTERM", 143)])
def test_a_signal_is_heard_after_the_step_saved_and_told(tmp_path, clock, number, name, code):
    saves = Saves(tmp_path)
    with pytest.raises(Interrupted) as caught:
        train_with_a_signal(keeper(saves), clock, number, before=2, after=3)
    assert list(saves.saved) == [3]
    assert caught.value.message == f"stopped by {name} after step 3 of the run; it is saved"
    assert (caught.value.exit_code, caught.value.hint) == (code, "distillab resume x")
    assert caught.value.where == str(tmp_path / "checkpoint-3")


def test_a_step_that_has_just_been_saved_is_not_saved_again(tmp_path, clock):
    saves = Saves(tmp_path)
    with pytest.raises(Interrupted, match="after step 2 of the run"):
        train_with_a_signal(keeper(saves, seconds=2.0), clock, signal.SIGTERM, before=2, after=0)
    assert list(saves.saved) == [2]
    run = keeper(saves, resumed=resumed({"name": "student"}, step=2))
    saves.saved.clear()
    with pytest.raises(Interrupted, match="after step 2 of the run"):
        train_with_a_signal(run, clock, signal.SIGTERM, before=2, after=0)
    assert saves.saved == {}


def test_a_signal_after_the_last_step_of_a_phase_is_heard_too(tmp_path, clock):
    """The models are being finished: BatchNorm re-estimated, validation read."""
    saves = Saves(tmp_path)
    with pytest.raises(Interrupted, match="after step 2 of the run"):
        train_with_a_signal(keeper(saves), clock, signal.SIGTERM, before=2, after=0)
    assert list(saves.saved) == [2]


def test_a_signal_between_two_phases_is_heard_after_the_next_step(tmp_path, clock):
    saves, started = Saves(tmp_path), []

    def run_all(run):
        with run.hearing():
            with run.phase("teacher") as phase:
                train(phase, clock, 2)
            signal.raise_signal(signal.SIGTERM)
            with run.phase("student") as phase:
                started.append("student")
                train(phase, clock, 5)

    with pytest.raises(Interrupted, match="after step 3 of the run"):
        run_all(keeper(saves))
    assert (list(saves.saved), started) == ([3], ["student"])


def test_a_signal_after_the_last_phase_is_heard_too(tmp_path, clock):
    def run_all(run):
        with run.hearing():
            with run.phase("student") as phase:
                train(phase, clock, 2)
            signal.raise_signal(signal.SIGTERM)

    saves = Saves(tmp_path)
    with pytest.raises(Interrupted, match="after step 2 of the run"):
        run_all(keeper(saves))
    assert list(saves.saved) == [2]


def test_a_signal_while_the_disk_refuses_is_answered_by_that(tmp_path, clock):
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(StorageError):
        train_with_a_signal(
            keeper(CheckpointDir(tmp_path / "checkpoints", keep=1)), clock, signal.SIGTERM, before=1, after=1
        )
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_saved_can_be_read(tmp_path, clock):
    folder = CheckpointDir(tmp_path, keep=1)
    weights = torch.ones(3)
    run = keeper(folder, seconds=0.0)
    with run.phase("student") as phase:
        phase.begin(lambda: {"weights": weights}, steps=0)
        phase.after_step(1, look=nothing)
    found = read_checkpoint(run.newest)
    assert found.state["phases"][0]["name"] == "student"
    assert torch.equal(found.state["phases"][0]["weights"], weights)
