"""A run that is stopped anywhere and resumed leaves what it would have left, to the last bit."""

import json
import random
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from comparing_runs import differing, left_by
from distillab.config import resolve_distill, resolve_train
from distillab.errors import CheckpointError, ConfigError, NonFiniteLossError, RunDirInUseError, StorageError
from distillab.resume import resume, resume_or_run
from distillab.run import run_one, run_together
from distillab.runtime import reproducibility
from distillab.runtime.events import Note
from distillab.runtime.run_dir import RunDir, checkpoints_of
from distillab.stages import PLANS
from distillab.training.checkpoint import CheckpointDir, read_checkpoint
from distillab.training.keeper import Keeper


class Killed(BaseException):
    """What no handler of ours catches."""


@contextmanager
def killed_after(steps):
    """Save after so many steps of this process, and be killed then."""
    count = [0]

    def is_due(self):
        count[0] += 1
        return count[0] == steps

    save = CheckpointDir.save

    def save_and_die(self, *what):
        save(self, *what)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "is_due", is_due)
        patch.setattr(CheckpointDir, "save", save_and_die)
        with pytest.raises(Killed):
            yield


def killed_in_turn(begin, go_on, stops):
    """Begin a run, kill it after each of these steps of the whole, and let it go on to its end."""
    done = 0
    for stop in stops:
        with killed_after(stop - done):
            go_on() if done else begin()
        done = stop
        torch.manual_seed(random.randrange(2**31))  # another process would have other random numbers
    return go_on()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    home = tmp_path_factory.mktemp("teacher") / "teacher"
    run_one(resolve_train(tiny.RECIPE, {"role": "teacher", "output": home}), allow_code=True)
    return home


def distilled(folder, values=None, **flags):
    return resolve_distill({**tiny.RECIPE, **(values or {})}, {"output": folder, **flags})


def alone(folder, values=None, **flags):
    return resolve_train({**tiny.RECIPE, **(values or {})}, {"output": folder, **flags})


def begin(config, **more):
    return run_one(config, allow_code=True, **more)


def go_on(folder, **more):
    return resume(folder, allow_code=True, **more)


def check_survives(make, tmp_path, *, stride):
    """Compare the run of `make(folder)` with itself, killed after every `stride` steps and after the last one."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "is_due", lambda self: steps.append(1))
        begin(make(whole))
    assert len(steps) >= 8
    stops = [*range(1, len(steps), stride), len(steps)]
    killed_in_turn(lambda: begin(make(parts)), lambda: go_on(parts), stops)
    assert differing(whole, parts) == []


@pytest.mark.parametrize("name", PLANS)
def test_every_plan_goes_on_from_any_step_to_the_same_bits(name, teacher, tmp_path):
    """In mid-epoch, at the end of an epoch, of a stage, of an assistant, and of all."""
    check_survives(lambda home: distilled(home, method=name, teacher=str(teacher)), tmp_path, stride=1)


SHORT = {"epochs": 2, "batch_size": 16, "precision": "float32"}
KINDS = {
    "a model alone": (alone, {}),
    "a teacher that is trained first": (distilled, {}),
    "a moving average": (alone, {"training": {**SHORT, "ema_decay": 0.9}}),
    "a moving average in two stages": (distilled, {"training": {**SHORT, "ema_decay": 0.9}, "method": "fitnet"}),
    "a run that stops early": (
        alone,
        {
            "training": {**SHORT, "epochs": 30, "early_stop_patience": 2},
            "optimizer": {"learning_rate": 0.5},
            "split": {"validation_fraction": 0.3},
        },
    ),
    "adam and a gradient that is clipped": (
        alone,
        {"optimizer": {"name": "adam", "learning_rate": 0.01}, "training": {**SHORT, "gradient_clip": 0.5}},
    ),
    "adamw": (alone, {"optimizer": {"name": "adamw", "learning_rate": 0.01}}),
    "a rate that goes in steps": (alone, {"schedule": {"name": "multi_step", "milestones": [1]}}),
    "mixed images": (distilled, {"augment": {"mixup": 0.4, "horizontal_flip": True}}),
    "one view, its logits kept": (distilled, {"views": 1}),
    "two views, their logits kept": (distilled, {"views": 2, "training": {**SHORT, "epochs": 3}}),
    "images as they are, their logits kept": (distilled, {"augment": {}, "method": "takd"}),
    "streamed images": (distilled, {"resident_gib": 0.0}),
    "bfloat16": (alone, {"training": {**SHORT, "precision": "bfloat16"}}),
    "stages of one's own": (
        distilled,
        {
            "method": "custom",
            "training": {**SHORT, "epochs": 3},
            "stages": [
                {"method": "hint", "share": 0.3},
                {"method": "merit_based", "options": {"variant": "soft"}, "share": 0.3},
                {"method": "soft_target"},
            ],
        },
    ),
    "stages with all epochs each": (distilled, {"method": "fitnet", "training": {**SHORT, "stage_epochs": "each"}}),
}


@pytest.mark.parametrize(("make", "values"), KINDS.values(), ids=KINDS)
def test_every_kind_of_run_goes_on_from_anywhere_to_the_same_bits(make, values, tmp_path):
    check_survives(lambda home: make(home, values), tmp_path, stride=5)


def test_logits_that_are_kept_on_disk_change_nothing(teacher, tmp_path):
    values = {"views": 2, "cache_gib": 1.0, "training": {**SHORT, "epochs": 4}, "teacher": str(teacher)}

    def make(home):
        return distilled(home, values, data_dir=tmp_path / "data")

    begin(make(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "data")
    killed_in_turn(lambda: begin(make(tmp_path / "parts")), lambda: go_on(tmp_path / "parts"), [2, 5, 9, 10])
    assert differing(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # those of the compiler
@pytest.mark.parametrize("execution", ["eager", "captured", "compiled"])
def test_on_a_gpu_a_deterministic_run_goes_on_from_anywhere_to_the_same_bits(execution, tmp_path):
    training = {"epochs": 2, "batch_size": 16, "execution": execution, "deterministic": True}
    check_survives(lambda home: distilled(home, {"training": training}, device="cuda"), tmp_path, stride=5)


def group(folder):
    """Runs that are carried out together: one that goes its way, one in stages, one that diverges in its 2nd epoch."""
    spoilt = {"optimizer": {"learning_rate": 1e18}, "schedule": {"warmup_fraction": 0.9}, "seed": 0}
    return [
        distilled(folder / "st", method="st"),
        distilled(folder / "multi", method="multi"),
        alone(folder / "spoilt", spoilt),
    ]


def test_runs_that_are_carried_out_together_go_on_together(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcomes = run_together(group(whole), allow_code=True, group=whole)
    assert [isinstance(outcome, NonFiniteLossError) for outcome in outcomes] == [False, False, True]
    ended = killed_in_turn(
        lambda: run_together(group(parts), allow_code=True, group=parts), lambda: go_on(parts), [3, 8, 10, 16, 18, 23]
    )
    assert ended[2].message == outcomes[2].message
    assert differing(whole, parts) == []
    assert go_on(parts)[2].message == outcomes[2].message
    assert differing(whole, parts) == []


def test_a_run_that_diverges_names_step_images_and_the_last_checkpoint_which_is_good(tmp_path):
    spoilt = {
        "optimizer": {"learning_rate": 1e18},
        "schedule": {"warmup_fraction": 0.9},
        "checkpoint": {"minutes": 0.0},
    }
    with pytest.raises(NonFiniteLossError) as caught:
        begin(alone(tmp_path, spoilt))
    step, checkpoint = caught.value.where.split("; the last checkpoint before it: ")
    assert re.fullmatch(r"student alone, epoch \d, step \d, images \d+, \d+, \d+, ... \(16 in all\)", step)
    place = Path(checkpoint)
    (lane,) = read_checkpoint(place).state["phases"][0]["lanes"]
    assert place.parent == checkpoints_of(tmp_path)
    assert all(tensor.isfinite().all() for tensor in lane["run"]["learner"].values())


NAMES = {
    "outside": ["../elsewhere"],
    "absolute": ["/tmp"],
    "itself": ["."],
    "above": [".."],
    "none": [],
    "nameless": [""],
    "numbers": [3],
    "a word": "st",
    "nothing": None,
}


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_a_group_leads_to_the_run_folders_in_it_and_nowhere_else(tmp_path, names):
    (tmp_path / "group.json").write_text(json.dumps({"runs": names}))
    with pytest.raises(CheckpointError) as caught:
        go_on(tmp_path)
    assert caught.value.where == str(tmp_path / "group.json")
    assert [path.name for path in tmp_path.iterdir()] == ["group.json"]


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"runs": ["a"]', "[" * 100_000, "\x00\xff"])
def test_a_damaged_group_is_told(tmp_path, text):
    (tmp_path / "group.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="damaged"):
        go_on(tmp_path)


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Steps are counted and intervals measured by a clock that nobody sets."""
    begin(alone(tmp_path / "whole"))
    monkeypatch.setattr(time, "time", lambda: random.uniform(0.0, 4e9))
    killed_in_turn(lambda: begin(alone(tmp_path / "parts")), lambda: go_on(tmp_path / "parts"), [3, 6])
    assert differing(tmp_path / "whole", tmp_path / "parts") == []


@pytest.mark.parametrize("name", ["write_json", "describe"])
def test_a_run_that_was_killed_before_its_first_step_starts_again(name, tmp_path, teacher):
    notes = []
    config = distilled(tmp_path / "run", teacher=str(teacher))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, name, die)
        with pytest.raises(Killed):
            begin(config)
    go_on(tmp_path / "run", observer=notes.append)
    assert Note(f"{tmp_path / 'run'} has no checkpoint yet: starting again") in notes
    begin(distilled(tmp_path / "whole", teacher=str(teacher)))
    assert differing(tmp_path / "run", tmp_path / "whole") == []


def die(*what, **more):
    raise Killed


def test_a_run_that_was_killed_while_it_wrote_its_settings_can_be_begun_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-config.toml-1234").write_text("data = ")
    with pytest.raises(StorageError, match="no run folder"):
        go_on(tmp_path / "run")
    resume_or_run(alone(tmp_path / "run"), allow_code=True)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_run_whose_settings_the_disk_did_not_take_can_be_begun_again(tmp_path):
    """Whatever else would have gone into its folder: without settings nothing does."""

    def refuse(path, text):
        raise StorageError("the disk is full", where=str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillab.scene.write_text", refuse)
        with pytest.raises(StorageError, match="the disk is full"):
            begin(alone(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []
    resume_or_run(alone(tmp_path / "run"), allow_code=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_a_run_that_is_complete_says_so_and_stays_as_it_is(tmp_path):
    whole = begin(alone(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    notes = []
    (found,) = go_on(tmp_path, observer=notes.append)
    assert found.summary == json.loads(json.dumps(whole.summary))
    assert notes == [Note(f"{tmp_path} is complete: nothing is left to do")]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture
def stopped(tmp_path, teacher):
    """A run that was stopped after its 5th step, with the checkpoint of the 2nd left as well."""
    home = tmp_path / "stopped"
    with killed_after(2):
        begin(distilled(home, teacher=str(teacher)))
    with killed_after(3):
        go_on(home)
    return home


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def changed_rate(home, patch):
    change(home / "config.toml", "learning_rate = 0.05", "learning_rate = 0.04")


def changed_threads(home, patch):
    change(home / "config.toml", "threads = 1", "threads = 2")


def changed_numerics(home, patch):
    patch.setattr("distillab.identity.NUMERICS", reproducibility.NUMERICS + 1)


def changed_data(home, patch):
    images = tiny.dataset()
    patch.setattr(tiny, "dataset", lambda: replace(images, sha256="other"))


CHANGES = {
    "settings.optimizer.learning_rate was 0.05, is 0.04": changed_rate,
    "threads was 1, is 2": changed_threads,
    f"numerics was {reproducibility.NUMERICS}, is {reproducibility.NUMERICS + 1}": changed_numerics,
    "settings.data was tiny, is other": changed_data,
}


@pytest.mark.parametrize(("words", "make"), CHANGES.items(), ids=CHANGES)
def test_what_would_make_another_run_of_it_is_refused_by_name_and_gone_on_with_by_force(
    words, make, stopped, monkeypatch
):
    make(stopped, monkeypatch)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != "log.txt"}
    with pytest.raises(ConfigError, match="would come out otherwise") as caught:
        go_on(stopped)
    assert words in caught.value.message
    assert "--force" in caught.value.hint
    assert {
        path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name != "log.txt"
    } == before
    notes = []
    go_on(stopped, force=True, observer=notes.append)
    assert Note(f"checkpoint-5: {words}") in notes
    assert (stopped / "result.json").exists()


def test_other_versions_are_told_and_gone_on_with(stopped, monkeypatch):
    notes = []
    monkeypatch.setattr("distillab.identity.__version__", "99.0")
    go_on(stopped, observer=notes.append)
    assert any("checkpoint-5: distillab was" in note.text for note in notes if isinstance(note, Note))


def test_a_run_goes_on_with_as_many_threads_as_it_had(tmp_path):
    recipe = {**tiny.RECIPE, "training": {**SHORT, "epochs": 1}}
    del recipe["threads"]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with killed_after(1):
            begin(resolve_train(recipe, {"output": tmp_path}))
    finally:
        torch.set_num_threads(before)
    seen = []
    with killed_after(1):
        go_on(tmp_path, observer=lambda event: seen.append(torch.get_num_threads()))
    assert seen[-1] == 2
    assert torch.get_num_threads() == before


def test_settings_of_another_model_are_refused_even_by_force(stopped):
    change(stopped / "config.toml", 'student = "tiny:build"', 'student = "tiny:build_wide"')
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="of another run"):
        go_on(stopped, force=True)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_step_that_an_epoch_no_longer_has_is_refused_even_by_force(stopped):
    change(stopped / "config.toml", "batch_size = 16", "batch_size = 64")
    with pytest.raises(CheckpointError, match="of another run"):
        go_on(stopped, force=True)


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_leads_to_the_same_bits(stopped, teacher, tmp_path):
    damaged = checkpoints_of(stopped) / "checkpoint-5"
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-1])
    notes = []
    go_on(stopped, observer=notes.append)
    texts = [note.text for note in notes if isinstance(note, Note)]
    assert any(f"{damaged} is not used" in text for text in texts)
    assert "resuming after step 2 of the run: student" in texts
    begin(distilled(tmp_path / "whole", teacher=str(teacher)))
    assert differing(stopped, tmp_path / "whole") == []


def test_without_a_good_checkpoint_the_run_starts_again_and_is_saved_again(stopped, teacher, tmp_path):
    for place in checkpoints_of(stopped).iterdir():
        (place / "state.json").write_text("{}")
    with killed_after(1):
        go_on(stopped)
    assert [path.name for path in checkpoints_of(stopped).iterdir()] == ["checkpoint-1"]
    assert read_checkpoint(checkpoints_of(stopped) / "checkpoint-1").step == 1
    go_on(stopped)
    begin(distilled(tmp_path / "whole", teacher=str(teacher)))
    assert differing(stopped, tmp_path / "whole") == []


@pytest.mark.parametrize(
    ("name", "words"), [("nothing", "no run folder"), ("folder", "no run folder"), ("file", "a file, not a folder")]
)
def test_what_is_no_run_folder_is_told(name, words, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=words) as caught:
        go_on(tmp_path / name)
    assert caught.value.exit_code == 4
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_run_that_is_going_on_is_left_alone(stopped):
    before = left_by(stopped)
    owner = RunDir.reopen(stopped)
    with pytest.raises(RunDirInUseError) as caught:
        go_on(stopped)
    assert caught.value.exit_code == 75
    owner.release()
    assert left_by(stopped) == before
    go_on(stopped)


def test_a_folder_that_can_no_longer_be_written_is_given_free(stopped, monkeypatch):
    def refuse(path, **more):
        raise PermissionError(13, "Permission denied", str(path))

    owner = RunDir.reopen(stopped)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        owner.release()
    RunDir.reopen(stopped).release()


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
@pytest.mark.parametrize("name", ["env.json", "result.json"])
def test_damaged_records_are_told(name, text, stopped):
    shutil.rmtree(checkpoints_of(stopped))
    (stopped / name).write_text(text)
    with pytest.raises(CheckpointError, match="damaged") as caught:
        go_on(stopped)
    assert caught.value.where == str(stopped / name)


def auto(config, **more):
    return resume_or_run(config, allow_code=True, **more)


def test_a_job_that_is_started_again_and_again_comes_to_its_end_in_its_folder(tmp_path):
    config = alone(tmp_path / "run")
    with killed_after(3):
        auto(config)
    with killed_after(3):
        auto(config)
    first = auto(config)
    assert first.run_dir == tmp_path / "run"
    assert auto(config).summary == json.loads(json.dumps(first.summary))
    begin(alone(tmp_path / "whole"))
    assert differing(tmp_path / "whole", tmp_path / "run") == []


def test_a_job_without_a_folder_finds_the_run_with_its_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, other = alone(None), alone(None, seed=1)
    with killed_after(3):
        auto(other)
    with killed_after(3):
        auto(config)
    with killed_after(3):
        auto(config)
    found = auto(config)
    assert len(list(Path("runs").iterdir())) == 2
    assert found.summary["seed"] == 0
    assert auto(config).run_dir != found.run_dir  # that one is complete: a new one is wanted


def test_a_job_with_other_settings_than_its_folder_is_refused(stopped):
    with pytest.raises(ConfigError, match="other settings") as caught:
        auto(distilled(stopped, seed=5))
    assert f"distillab resume {stopped}" in caught.value.hint
