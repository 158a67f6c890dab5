"""A run is verified: whole ones pass to the last bit, and whatever is changed in one is found and named."""

import hashlib
import importlib.metadata
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

import tiny
from distillab.config import resolve_distill, resolve_train
from distillab.errors import CheckpointError, Interrupted, RunDirInUseError, StorageError
from distillab.models.catalog import build_model
from distillab.models.weight_files import read_weights, write_safetensors
from distillab.models.weights import save_weights
from distillab.replay import held_against
from distillab.run import run_one, run_together
from distillab.runtime.events import EpochEnded, Note, StageEnded, StageStarted, StepsDone
from distillab.runtime.run_dir import RunDir
from distillab.scene import Scene
from distillab.training.checkpoint import CheckpointDir, read_checkpoint
from distillab.training.watch import Watch
from distillab.verify import Difference, verify

OFTEN = {"minutes": 0.0, "keep": 3}


class Killed(BaseException):
    """What no handler of ours catches."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Complete runs: `takd`, whose last checkpoints lie in the student's training, and `alone`, which has none."""
    folder = tmp_path_factory.mktemp("runs")
    run_one(
        resolve_distill(tiny.RECIPE, {"output": folder / "takd", "method": "takd", "checkpoint": OFTEN}),
        allow_code=True,
    )
    run_one(resolve_train(tiny.RECIPE, {"output": folder / "alone"}), allow_code=True)
    return folder


@pytest.fixture
def takd(originals, tmp_path):
    return Path(shutil.copytree(originals / "takd", tmp_path / "takd"))


@pytest.fixture
def alone(originals, tmp_path):
    return Path(shutil.copytree(originals / "alone", tmp_path / "alone"))


def look(folder, **options):
    return verify(folder, **{"allow_code": True, **options})


def verdicts(verification):
    return {finding.what: finding.verdict for finding in verification.findings}


def words(verification, what):
    return next(finding.found for finding in verification.findings if finding.what == what)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge_log(folder, change):
    """Change the log as somebody would who knows of tables and hashes."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    change(lines)
    (folder / "metrics.jsonl").unlink()
    (folder / "timing.jsonl").unlink()
    run_dir = RunDir(folder)
    for line in lines:
        run_dir.append_metrics({**line, "seconds": 1.0})
    run_dir.write_metrics_table()
    run_dir.release()

    def rehash(result):
        for name in ("metrics.jsonl", "metrics.csv"):
            result["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()

    change_json(folder / "result.json", rehash)


def test_a_run_as_it_was_left_is_good_in_everything_and_stays_as_it_is(takd):
    before = contents(takd)
    notes = []
    verification = look(takd, observer=notes.append)
    assert verdicts(verification) == dict.fromkeys(
        (
            *("result.json", "env.json", "config.toml", "metrics.jsonl", "metrics.csv"),
            *("assistant.safetensors", "student.safetensors", "teacher.safetensors"),
            *(f"checkpoints/checkpoint-{step}" for step in (22, 23, 24)),
            *("settings and data", "teacher on the test images"),
            *(f"{role}.safetensors on the test images" for role in ("student", "assistant")),
            "replay",
        ),
        "good",
    )
    assert words(verification, "replay") == "student by takd, epoch 2, from checkpoint-22: equal to the last bit"
    assert verification.faults == []
    assert verification.environment == ()
    assert contents(takd) == before
    told = [note.text for note in notes if isinstance(note, Note)]
    assert any(text.startswith("replaying student by takd, epoch 2, from checkpoint-22; in the run") for text in told)
    json.dumps(verification.as_dict(), allow_nan=False)


def test_a_run_without_checkpoints_is_replayed_from_the_beginning(alone):
    verification = look(alone)
    assert words(verification, "replay") == "student alone, epoch 1, from the beginning: equal to the last bit"
    assert verification.faults == []


def test_a_replay_ends_with_the_epoch_that_it_compares(alone):
    seen = []
    look(alone, observer=seen.append)
    assert [event.title for event in seen if isinstance(event, StageStarted)] == ["student alone"]
    assert not [event for event in seen if isinstance(event, EpochEnded | StageEnded)]


def test_a_result_names_the_hashes_of_what_equal_runs_leave_equal(alone):
    files = json.loads((alone / "result.json").read_text())["files"]
    assert set(files) >= {"metrics.jsonl", "metrics.csv", "student.safetensors"}
    for name, sha256 in files.items():
        assert hashlib.sha256((alone / name).read_bytes()).hexdigest() == sha256
    unsaved = run_one(resolve_train(tiny.RECIPE, {}), allow_code=True, save_run=False)
    assert "files" not in unsaved.summary


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def another_seed(run):
    tensors, metadata = read_weights(run / "student.safetensors")
    source = {**metadata.pop("source"), "seed": 1}
    for key in ("sha256", "format_version"):
        metadata.pop(key)
    write_safetensors(run / "student.safetensors", tensors, {**metadata, "source": source})


def weights_of_nobody(run):
    save_weights(build_model("tiny:build", 3, image_size=tiny.SIZE), run / "student.safetensors", {})


def replace(name, old, new):
    def change(run):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


def drop_last_line(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-1]))


def result(**changes):
    return lambda run: change_json(run / "result.json", lambda content: content.update(changes))


def worse(run):
    change_json(run / "result.json", lambda content: content["test"].update(top1=content["test"]["top1"] + 1e-9))


def worse_assistant(run):
    change_json(run / "result.json", lambda content: content["assistant"]["test"].update(nll=0.5))


def worse_teacher(run):
    change_json(run / "result.json", lambda content: content["teacher"]["test"].update(ece=0.5))


def rename_checkpoint(run):
    (run / "checkpoints" / "checkpoint-24").rename(run / "checkpoints" / "checkpoint-25")


DAMAGE = {
    "a bit of the weights": (
        lambda run: flip_a_byte(run / "student.safetensors"),
        {"student.safetensors": "SHA-256", "student.safetensors on the test images": "SHA-256"},
    ),
    "weights of another seed": (another_seed, {"student.safetensors": "its seed is 1, in result.json 0"}),
    "weights of nobody": (
        weights_of_nobody,
        {"student.safetensors": "run_sha256 is None", "student.safetensors on the test images": "in the run it was"},
    ),
    "missing weights": (
        lambda run: (run / "assistant.safetensors").unlink(),
        {"assistant.safetensors": "it is not there", "assistant.safetensors on the test images": "no such"},
    ),
    "a missing teacher": (
        lambda run: (run / "teacher.safetensors").unlink(),
        {"teacher.safetensors": "it is not there", "teacher on the test images": "no such"},
    ),
    "a digit of the settings": (
        replace("config.toml", "learning_rate = 0.05", "learning_rate = 0.06"),
        {"settings and data": "settings.optimizer.learning_rate was 0.05, is 0.06"},
    ),
    "settings that are none": (lambda run: (run / "config.toml").write_text("="), {"config.toml": "not valid TOML"}),
    "a digit of the log": (
        replace("metrics.jsonl", '"epoch": 1, "learning_rate": 0.0', '"epoch": 1, "learning_rate": 0.1'),
        {"metrics.jsonl": "SHA-256", "metrics.csv": "not those", "replay": "learning_rate is 0.0"}
        | {f"checkpoints/checkpoint-{step}": "epochs in it are not the first ones" for step in (22, 23, 24)},
    ),
    "a log that was cut": (
        drop_last_line,
        {"metrics.jsonl": "1 epoch of 'student by takd', 2 in result.json"},
    ),
    "a log in another order": (
        replace("metrics.jsonl", '"epoch": 1', '"epoch": 2'),
        {"metrics.jsonl": "line 1 is epoch 2 of 'teacher alone', not epoch 1"},
    ),
    "a log that is none": (
        lambda run: (run / "metrics.jsonl").write_text("[1]\n"),
        {"metrics.jsonl": "line 1 is damaged"},
    ),
    "no log": (lambda run: (run / "metrics.jsonl").unlink(), {"metrics.jsonl": "it is not there"}),
    "a folder for a log": (
        lambda run: [(run / "metrics.jsonl").unlink(), (run / "metrics.jsonl").mkdir()],
        {"metrics.jsonl": "it is a folder or a device"},
    ),
    "a digit of the table": (replace("metrics.csv", ",1,", ",7,"), {"metrics.csv": "not those of metrics.jsonl"}),
    "no table": (lambda run: (run / "metrics.csv").unlink(), {"metrics.csv": "it is not there"}),
    "a table of binary": (lambda run: (run / "metrics.csv").write_bytes(b"\xff\x00"), {"metrics.csv": "no table"}),
    "a bit of a checkpoint": (
        lambda run: flip_a_byte(run / "checkpoints" / "checkpoint-22" / "model.safetensors"),
        {"checkpoints/checkpoint-22": "SHA-256"},
    ),
    "a checkpoint under another name": (rename_checkpoint, {"checkpoints/checkpoint-25": "another checkpoint"}),
    "a number on the test images": (worse, {"student.safetensors on the test images": "top1 is"}),
    "a number of the assistant": (worse_assistant, {"assistant.safetensors on the test images": "nll is"}),
    "a number of the teacher": (worse_teacher, {"teacher on the test images": "ece is"}),
    "what the run was": (
        result(run_sha256="0" * 64),
        {"settings and data": "in result.json 000"}
        | {f"{role}.safetensors": "run_sha256" for role in ("teacher", "assistant", "student")},
    ),
    "a result that is none": (lambda run: (run / "result.json").write_text("{"), {"result.json": "damaged"}),
    "a result of other kinds": (result(stages="all"), {"result.json": "stages"}),
    "a result of a later version": (result(format_version=99), {"result.json": "this version reads 1"}),
    "a result that leads elsewhere": (result(weights="../student.safetensors"), {"result.json": "weights"}),
}


@pytest.mark.parametrize(("damage", "found"), DAMAGE.values(), ids=DAMAGE)
def test_what_was_changed_is_found_and_named(takd, damage, found):
    damage(takd)
    verification = look(takd)
    faults = {fault.what: fault.found for fault in verification.faults}
    assert faults.keys() == found.keys()
    for what, says in found.items():
        assert says in faults[what]


def test_a_log_that_was_forged_with_all_its_hashes_is_found_by_the_replay(takd):
    forge_log(takd, lambda lines: lines[-1].update(loss=lines[-1]["loss"] - 1e-9))
    shutil.rmtree(takd / "checkpoints" / "checkpoint-24")  # which would tell on it, too
    (fault,) = look(takd).faults
    assert fault.what == "replay"
    assert fault.found.startswith("loss is")


def test_an_epoch_that_never_was_is_found_by_the_replay(alone):
    def go_on(lines):
        lines.append({**lines[-1], "epoch": 3})
        lines[0]["loss"] += 1e-9

    forge_log(alone, go_on)
    change_json(alone / "result.json", lambda content: content["stages"][0].update(epochs=3))
    (fault,) = look(alone).faults
    assert fault.what == "replay"


def test_a_log_that_is_longer_than_its_run_is_found_by_the_replay(takd):
    shutil.rmtree(takd / "checkpoints" / "checkpoint-22")
    shutil.rmtree(takd / "checkpoints" / "checkpoint-23")
    forge_log(takd, lambda lines: lines.append({**lines[-1], "epoch": 3}))
    change_json(takd / "result.json", lambda content: content["stages"][1].update(epochs=3))
    (fault,) = look(takd).faults
    assert fault.found == "the run ends after 6 epochs, its log goes on"


def test_other_images_are_another_run(takd, monkeypatch):
    other = tiny.dataset().__class__(**{**vars(tiny.dataset()), "sha256": "other"})
    monkeypatch.setattr(tiny, "dataset", lambda: other)
    verification = look(takd)
    assert [fault.what for fault in verification.faults] == ["settings and data"]
    assert "settings.data was tiny, is other" in verification.faults[0].found
    assert words(verification, "replay") == "it would be another run"


def test_without_permission_no_code_is_run_and_files_are_looked_at(takd, monkeypatch):
    for name in ("dataset", "build", "build_wide"):
        monkeypatch.setattr(tiny, name, None)
    verification = look(takd, allow_code=False)
    assert verification.faults == []
    unseen = {finding.what: finding.found for finding in verification.findings if finding.verdict == "not looked at"}
    assert unseen.keys() == {"settings and data", "replay"}
    assert "--allow-code" in unseen["replay"]


def test_settings_of_the_place_may_be_put_right_for_this_one(takd):
    replace("config.toml", "threads = 1", "threads = 2")(takd)
    verification = look(takd)
    assert verification.faults == []
    assert words(verification, "replay").endswith("equal to the last bit")


def test_settings_of_a_run_without_checkpoints_are_known_by_their_hash(alone):
    replace("config.toml", "seed = 0", "seed = 3")(alone)
    (fault,) = look(alone).faults
    assert fault.what == "settings and data"
    assert fault.found.startswith("run_sha256 is ")


def test_a_teacher_that_was_moved_is_no_fault_of_the_run(alone, tmp_path):
    flags = {"output": tmp_path / "st", "teacher": str(alone)}
    run_one(resolve_distill(tiny.RECIPE, flags), allow_code=True)
    assert look(tmp_path / "st").faults == []
    alone.rename(tmp_path / "elsewhere")
    verification = look(tmp_path / "st")
    assert verification.faults == []
    assert words(verification, "replay") == f"the teacher's weights are not there: {alone}"


def test_weights_that_validation_chose_are_tested_too(tmp_path, monkeypatch):
    look_after, seen = Watch.look, []

    def first_is_best(self, epoch):
        found = look_after(self, epoch)
        seen.append(self.best)
        self.best = seen[0]
        return found

    monkeypatch.setattr(Watch, "look", first_is_best)
    flags = {"output": tmp_path / "run", "training": {"epochs": 3, "batch_size": 16}}
    run_one(resolve_train(tiny.RECIPE, flags), allow_code=True)
    assert verdicts(look(tmp_path / "run"))["student-best.safetensors on the test images"] == "good"
    change_json(tmp_path / "run" / "result.json", lambda content: content["best"]["test"].update(nll=9.0))
    assert [fault.what for fault in look(tmp_path / "run").faults] == ["student-best.safetensors on the test images"]


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """A run that was killed in its third epoch; it had been saved in the second."""
    save = CheckpointDir.save

    def save_once(self, step, *what):
        if step == 10:
            raise Killed
        return save(self, step, *what) if step == 5 else None

    flags = {"output": tmp_path / "run", "training": {"epochs": 4, "batch_size": 16}, "checkpoint": OFTEN}
    monkeypatch.setattr(CheckpointDir, "save", save_once)
    with pytest.raises(Killed):
        run_one(resolve_train(tiny.RECIPE, flags), allow_code=True)
    monkeypatch.undo()
    return tmp_path / "run"


def test_a_run_that_was_killed_is_good_as_far_as_it_came(killed):
    log = (killed / "metrics.jsonl").read_text()
    (killed / "metrics.jsonl").write_text(log + '{"stage": "stud')
    verification = look(killed)
    assert verification.faults == []
    unseen = [finding.what for finding in verification.findings if finding.verdict == "not looked at"]
    assert unseen == ["result.json", "metrics.csv", "test images"]
    assert verdicts(verification)["settings and data"] == "good"
    assert words(verification, "replay") == "student alone, epoch 2, from checkpoint-5: equal to the last bit"


def test_changed_settings_of_a_run_that_was_killed_are_found_by_its_checkpoint(killed):
    replace("config.toml", "seed = 0", "seed = 3")(killed)
    (fault,) = look(killed).faults
    assert fault.found == "settings.seed was 0, is 3"


def test_a_run_that_has_hardly_begun_has_nothing_to_look_at(killed):
    shutil.rmtree(killed / "checkpoints")
    (killed / "metrics.jsonl").unlink()
    (killed / "env.json").unlink()
    verification = look(killed)
    assert {verdict for what, verdict in verdicts(verification).items() if what != "config.toml"} == {"not looked at"}
    assert words(verification, "replay") == "no epoch is complete yet"


def test_a_run_that_goes_on_is_left_alone(alone):
    run_dir = RunDir(alone)
    with pytest.raises(RunDirInUseError):
        look(alone)
    run_dir.release()


@pytest.mark.parametrize("name", ["empty", "none"])
def test_what_is_no_run_folder_is_told(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StorageError, match="no run folder"):
        look(tmp_path / name)
    assert not (tmp_path / "none").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_runs_that_were_carried_out_together_are_verified_together_or_alone(alone, tmp_path):
    group = tmp_path / "group"
    configs = [
        resolve_distill(
            tiny.RECIPE, {"output": group / name, "method": name, "teacher": str(alone), "checkpoint": OFTEN}
        )
        for name in ("st", "fitnet")
    ]
    run_together(configs, allow_code=True, group=group)
    verification = look(group)
    assert verification.faults == []
    assert words(verification, "st/replay").endswith("from the beginning: equal to the last bit")
    assert verdicts(verification)["fitnet/student.safetensors"] == "good"
    assert len([what for what in verdicts(verification) if what.startswith("checkpoints/")]) == 3
    assert words(look(group / "fitnet"), "replay").endswith("from the beginning: equal to the last bit")
    newest = CheckpointDir(group / "checkpoints", keep=1).places()[0]
    flip_a_byte(newest / "model.safetensors")
    with pytest.raises(CheckpointError):
        read_checkpoint(newest)
    assert [fault.what for fault in look(group).faults] == [f"checkpoints/{newest.name}"]


def test_another_environment_is_told_and_the_last_digits_may_differ_there(alone):
    change_json(alone / "env.json", lambda content: content["versions"].update(torch="1.0", numpy="1.0"))
    change_json(alone / "result.json", lambda content: content["test"].update(nll=content["test"]["nll"] + 1e-4))
    forge_log(alone, lambda lines: lines[0].update(loss=lines[0]["loss"] + 1e-3))
    verification = look(alone)
    assert verification.faults == []
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    assert verification.environment == tuple(Difference(f"versions.{name}", "1.0", versions[name]) for name in versions)
    why = f"(versions.torch was 1.0, is {versions['torch']})"
    for what in ("student.safetensors on the test images", "replay"):
        said = words(verification, what)
        assert "equal but for" in said
        assert said.endswith(why)
    change_json(alone / "result.json", lambda content: content["test"].update(nll=content["test"]["nll"] + 0.1))
    (fault,) = look(alone).faults
    assert "more than 0.01 apart" in fault.found


def test_a_run_that_does_not_say_where_it_was_made_may_differ_in_the_last_digits(alone):
    (alone / "env.json").unlink()
    verification = look(alone)
    assert verification.faults == []
    assert words(verification, "replay").endswith("(env.json does not say where the run was made)")


def test_a_replay_has_as_many_threads_as_the_run_had(tmp_path, monkeypatch):
    recipe = {key: value for key, value in tiny.RECIPE.items() if key != "threads"}
    run_one(resolve_train(recipe, {"output": tmp_path / "run"}), allow_code=True)
    had = torch.get_num_threads()
    seen = []
    real = Scene.test
    monkeypatch.setattr(Scene, "test", lambda *what: seen.append(torch.get_num_threads()) or real(*what))
    torch.set_num_threads(had + 1)
    try:
        verification = look(tmp_path / "run")
    finally:
        torch.set_num_threads(had)
    assert seen == [had]
    assert verification.faults == []
    assert verification.environment == (Difference("threads", had, had + 1),)


def test_somebody_who_stops_a_replay_finds_the_run_as_it_was(takd):
    before = contents(takd)
    seen = []

    def stop(event):
        seen.append(event)
        if sum(isinstance(event, StepsDone) for event in seen) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as caught:
        look(takd, observer=stop)
    assert caught.value.exit_code == 130
    assert contents(takd) == before


@pytest.mark.parametrize(
    ("recorded", "found", "says"),
    [
        ({"a": 1.0, "b": None, "c": "x"}, {"a": 1.0, "b": None, "c": "x"}, "equal to the last bit"),
        ({"a": 0.001}, {"a": 0.0011}, "equal but for 1.0e-04 at most"),  # as a share of 1
        ({"a": 200.0, "b": 1.0}, {"a": 199.0, "b": 1.0}, "equal but for 5.0e-03 at most"),  # 1 / 200
    ],
)
def test_numbers_are_apart_by_a_share_of_the_larger_one_or_of_one(recorded, found, says):
    assert held_against(recorded, found, tolerance=0.01) == says


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        ({"a": 1.0}, {"a": 1.02}),
        ({"a": 1.0}, {"a": float("nan")}),
        ({"a": 1.0}, {"a": None}),
        ({"a": 1.0}, {}),
        ({}, {"a": 1.0}),
        ({"a": 10**400}, {"a": 1.0}),
        ({"a": "x"}, {"a": "y"}),
    ],
)
def test_numbers_that_are_too_far_apart_or_missing_are_named(recorded, found):
    with pytest.raises(CheckpointError, match=r"^a is "):
        held_against(recorded, found, tolerance=0.01)
