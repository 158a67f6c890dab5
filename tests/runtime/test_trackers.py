"""Trackers show every number of a run, once, whatever happens; and a run is the same with and without them."""

import importlib.util
import json
import random
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
from distillab.config import resolve_distill, resolve_train
from distillab.errors import ConfigError
from distillab.resume import resume
from distillab.run import run_one, run_together
from distillab.runtime.events import EpochEnded, Note
from distillab.runtime.run_dir import write_group
from distillab.runtime.trackers import tracking
from distillab.runtime.trackers.base import TrackedRun
from distillab.runtime.trackers.tracking import Trackers, check_installed

# The tools' own warnings are none of ours.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TOOLS = tuple(tracking._NEEDED)
INSTALLED = [tool for tool in TOOLS if all(map(importlib.util.find_spec, tracking._NEEDED[tool]))]
each_tool = pytest.mark.parametrize(
    "tool",
    [
        pytest.param(tool, marks=[] if tool in INSTALLED else pytest.mark.skip(f"{tool} is not installed"))
        for tool in TOOLS
    ],
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """The folder that all runs are started in, so that MLflow makes its tables once."""
    yield tmp_path_factory.mktemp("trackers")
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


@pytest.fixture(autouse=True)
def offline(workplace, monkeypatch):
    """No network, and nothing of whoever runs the tests."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_DIR", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")  # which we set ourselves, for good
    for name in ("excepthook", "exit"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # wandb puts its own in their place


@dataclass
class Told:
    """What a tool knows of a run: of each curve (epoch, value), the numbers on the test images, settings as text."""

    curves: dict
    numbers: dict
    settings: dict


def told_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    curves = {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}
    numbers = {name: curves.pop(name)[-1][1] for name in list(curves) if is_of_test(name)}
    settings = {}
    if "_hparams_/session_start_info" in events.PluginTagToContent("hparams"):
        content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
        hparams = HParamsPluginData.FromString(content).session_start_info.hparams
        settings = {name: str(getattr(value, value.WhichOneof("kind"))) for name, value in hparams.items()}
    return Told(curves, numbers, settings)


def told_wandb(folder):
    curves, numbers, settings = {}, {}, {}
    for record in wandb_records(max((folder / "wandb").glob("offline-run-*/*.wandb"))):
        row = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
        for name, value in row.items():
            if "/" in name:
                curves.setdefault(name, []).append((row[name.split("/")[0] + "/epoch"], value))
        changed = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.summary.update}
        numbers |= {name: value for name, value in changed.items() if is_of_test(name)}
        settings |= {one.key: str(json.loads(one.value_json)) for one in record.run.config.update}
    return Told(curves, numbers, settings)


def wandb_records(path):
    """What is in a file to which wandb's other process may still be writing, when the run has ended."""
    from wandb.proto.wandb_internal_pb2 import Record

    for _ in range(1000):
        records = [Record.FromString(record) for record in records_of(path.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.01)
    raise AssertionError(f"{path} has no end")


def records_of(data):
    """The records in a file of the log format that wandb has from LevelDB."""
    position, record = 7, b""
    while position + 7 <= len(data):  # the last one may not be whole yet
        if 32768 - position % 32768 < 7:  # the rest of a block
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if position + 7 + length > len(data):
            return
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def mlflow_client():
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{Path('runs/mlflow.db').absolute()}")


def told_mlflow(folder):
    client = mlflow_client()
    run_id = json.loads((folder / "trackers.json").read_text())["mlflow"]
    data = client.get_run(run_id).data
    curves = {
        name: [(one.step, one.value) for one in client.get_metric_history(run_id, name)]
        for name in data.metrics
        if not is_of_test(name)
    }
    return Told(curves, {name: value for name, value in data.metrics.items() if is_of_test(name)}, data.params)


def is_of_test(name):
    return "test" in name.split("/")


def told(tool, folder):
    """What a tool knows, the numbers of epochs aside, by which it draws."""
    found = {"tensorboard": told_tensorboard, "wandb": told_wandb, "mlflow": told_mlflow}[tool](folder)
    found.curves = {name: points for name, points in found.curves.items() if not name.endswith("/epoch")}
    return found


def expected_curves(tool, folder):
    """Each number of `metrics.jsonl`, over the epochs of its role."""
    curves, epochs = {}, Counter()
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        role, stage = line.pop("role"), line.pop("stage")
        epochs[role] += 1
        del line["epoch"]
        for name, value in line.items():
            same_for_all = name in ("train_top1", "validation_top1", "validation_loss", "learning_rate")
            tag = f"{role}/{name}" if same_for_all else f"{role}/{stage.removeprefix(role + ' ')}/{name}"
            tag = tag.replace("(", "").replace(")", "") if tool == "mlflow" else tag
            curves.setdefault(tag, []).append((epochs[role], pytest.approx(value, rel=1e-6)))
    return curves


def check_told(tool, folder):
    found, expected = told(tool, folder), expected_curves(tool, folder)
    seconds = {name: found.curves.pop(name) for name in list(found.curves) if name.endswith("/seconds")}
    assert found.curves == expected
    assert sum(map(len, seconds.values())) == len((folder / "metrics.jsonl").read_text().splitlines())
    result = json.loads((folder / "result.json").read_text())
    assert found.numbers["test/top1"] == pytest.approx(result["test"]["top1"], rel=1e-6)
    assert found.numbers["teacher/test/top1"] == pytest.approx(result["teacher"]["test"]["top1"], rel=1e-6)
    assert float(found.settings["optimizer.learning_rate"]) == 0.05
    assert found.settings["method"] == result["method"]


def distilled(folder, *tools, **flags):
    return resolve_distill(tiny.RECIPE, {"output": folder, "track": tools, "method": "fitnet", **flags})


@each_tool
def test_every_number_of_a_run_is_shown(tool, tmp_path):
    run_one(distilled(tmp_path, tool), allow_code=True)
    check_told(tool, tmp_path)


@each_tool
def test_runs_that_are_carried_out_together_are_shown_apart(tool, tmp_path):
    methods = ("st", "fitnet")
    run_together([distilled(tmp_path / method, tool, method=method) for method in methods], allow_code=True)
    for method in methods:
        check_told(tool, tmp_path / method)


def test_a_run_of_a_comparison_is_called_after_its_seed_as_well(tmp_path):
    write_group(tmp_path / "seed-1", ["st"])
    assert TrackedRun(tmp_path / "seed-1" / "st", {}, None).name == "seed-1/st"
    assert TrackedRun(tmp_path / "seed-1", {}, None).name == "seed-1"


class Killed(BaseException):
    """What no handler of ours catches."""


def later(tool):
    """TensorBoard tells its files' order by the second; a process takes longer to start."""
    if tool == "tensorboard":
        time.sleep(1.0 - time.time() % 1.0)


@each_tool
def test_a_run_that_goes_on_is_shown_once(tool, tmp_path):
    """It is killed at the end of epochs that no checkpoint knows, and that the tool is told of again."""
    training = {**tiny.RECIPE["training"], "epochs": 4}
    config = distilled(tmp_path, tool, checkpoint={"minutes": 0.0}, training=training)
    ids = []

    def killed_at(title, epoch):
        def observe(event):
            if isinstance(event, EpochEnded) and (event.title, event.epoch) == (title, epoch):
                raise Killed

        return observe

    with pytest.raises(Killed):
        run_one(config, allow_code=True, observer=killed_at("student by fitnet (soft target)", 2))
    for title, epoch in [("student by fitnet (soft target)", 2), ("student by fitnet (soft target)", 3)]:
        ids.append((tmp_path / "trackers.json").read_text())
        later(tool)
        with pytest.raises(Killed):
            resume(tmp_path, allow_code=True, observer=killed_at(title, epoch))
    later(tool)
    resume(tmp_path, allow_code=True)
    ids.append((tmp_path / "trackers.json").read_text())
    check_told(tool, tmp_path)
    assert len(set(ids)) == 1


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_has_one_run_a_run_and_knows_whether_it_is_complete(tmp_path):
    def status():
        (run,) = mlflow_client().search_runs([experiment.experiment_id])
        return run.info.status

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "of its own")
        trackers = Trackers.start(["mlflow"], tmp_path, {}, complain)
        experiment = mlflow_client().get_experiment_by_name("of its own")
        assert status() == "RUNNING"
        trackers.end()
        assert status() == "KILLED"
        trackers = Trackers.start(["mlflow"], tmp_path, {}, complain)
        assert status() == "RUNNING"
        trackers.result({"test": {"top1": 0.5}})
        trackers.end()
        assert status() == "FINISHED"


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_begins_anew_in_a_store_that_does_not_know_the_run(tmp_path):
    (tmp_path / "trackers.json").write_text('{"mlflow": "0123", "wandb": "kept"}')
    trackers = Trackers.start(["mlflow"], tmp_path, {}, complain)
    trackers.epoch(line(1))
    trackers.end()
    assert told("mlflow", tmp_path).curves == {"student/alone/loss": [(1, 1.0)]}
    assert json.loads((tmp_path / "trackers.json").read_text())["wandb"] == "kept"


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_takes_as_many_and_as_long_settings_as_there_are(tmp_path):
    settings = {f"setting {number}": number for number in range(250)} | {"long": "a" * 10_000}
    Trackers.start(["mlflow"], tmp_path, settings, complain).end()
    found = told("mlflow", tmp_path).settings
    assert len(found) == 251
    assert found["long"] == "a" * 6000


def test_what_the_service_of_wandb_has_is_not_sent_again(tmp_path, monkeypatch):
    logged = []
    run = SimpleNamespace(step=3, define_metric=lambda *what, **more: None, finish=lambda **how: None)
    run.log = lambda values, *, step, commit: logged.append((step, values["student/epoch"]))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: run, Settings=dict))
    trackers = Trackers.start(["wandb"], tmp_path, {}, complain)
    for number in range(1, 5):
        trackers.epoch(line(number))
    trackers.end()
    assert logged == [(3, 3), (4, 4)]


def line(epoch, **values):
    return {"stage": "student alone", "role": "student", "epoch": epoch, "loss": 1.0, **values}


def complain(event):
    raise AssertionError(event)


@each_tool
def test_names_and_settings_are_plain_text(tool, tmp_path):
    text = "<script>alert(1)</script> {0} %s \udcff\n[link](http://x) \u202e"
    folder = tmp_path / "<b> \u00e9 %s"
    folder.mkdir()
    trackers = Trackers.start([tool], folder, {"data": text, "nested": {"flag": True, "list": [1, 2]}}, complain)
    trackers.epoch({**line(1), "stage": "student by <i>\u00e9</i>"})
    trackers.result({"test": {"top1": 0.5}})
    trackers.end()
    found = told(tool, folder)
    assert found.settings["data"] == text.replace("\udcff", "?")
    assert found.settings["nested.flag"] == ("1.0" if tool == "tensorboard" else "True")
    assert found.settings["nested.list"] == "[1, 2]"
    tag = "by i\u00e9/i" if tool == "mlflow" else "by <i>\u00e9</i>"
    assert found.curves == {f"student/{tag}/loss": [(1, 1.0)]}


def random_state():
    return random.getstate(), tuple(np.random.get_state()[1]), torch.get_rng_state().tolist()


@each_tool
def test_no_random_number_is_drawn(tool, tmp_path):
    before = random_state()
    trackers = Trackers.start([tool], tmp_path, {}, complain)
    trackers.epoch(line(1))
    trackers.end()
    assert random_state() == before


@pytest.mark.parametrize("broken", [False, True], ids=["trackers that work", "a tracker that fails"])
def test_a_run_is_the_same_with_and_without_trackers(broken, tmp_path, monkeypatch):
    if broken:
        monkeypatch.setitem(tracking._KINDS, "tensorboard", failing("epoch"))
        monkeypatch.setitem(tracking._NEEDED, "tensorboard", ())
    tools = ["tensorboard"] if broken else INSTALLED
    plain, tracked = (
        run_one(distilled(tmp_path / str(number), *track), allow_code=True) for number, track in enumerate([[], tools])
    )
    for name in ("student.safetensors", "teacher.safetensors", "metrics.jsonl", "metrics.csv"):
        assert (plain.run_dir / name).read_bytes() == (tracked.run_dir / name).read_bytes(), name
    assert plain.summary["run_sha256"] == tracked.summary["run_sha256"]
    assert plain.summary["test"] == tracked.summary["test"]


def failing(place):
    """A tracker that fails at one place."""

    class Failing:
        run_id = "known"

        def __init__(self, run):
            self.at("start")

        def epoch(self, epoch):
            self.at("epoch")

        def result(self, numbers):
            self.at("result")

        def end(self, *, complete):
            self.at("end")

        def at(self, here):
            if here == place:
                raise OSError(f"no network\nat the {here}")

    return Failing


class Remembering:
    """A tracker that works."""

    run_id = None
    seen: list

    def __init__(self, run):
        type(self).seen = []

    def epoch(self, epoch):
        self.seen.append((epoch.role, epoch.epoch, epoch.number))

    def result(self, numbers):
        self.seen.append("result")

    def end(self, *, complete):
        self.seen.append(complete)


@pytest.mark.parametrize("place", ["start", "epoch", "result", "end"])
def test_a_tracker_that_fails_is_told_once_and_neither_the_run_nor_another_tracker_minds(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_KINDS", {"wandb": failing(place), "mlflow": Remembering})
    monkeypatch.setattr(tracking, "_NEEDED", {"wandb": (), "mlflow": ()})
    events = []
    config = resolve_train(tiny.RECIPE, {"output": tmp_path, "track": ["wandb", "mlflow"]})
    run_one(config, allow_code=True, observer=events.append)
    notes = [event for event in events if isinstance(event, Note) and "wandb" in event.text]
    assert notes == [Note(f"wandb does not track the run, which goes on without: OSError: no network at the {place}")]
    assert notes[0].text in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "result.json").exists()
    assert Remembering.seen == [("student", 1, 1), ("student", 2, 2), "result", True]


def test_a_run_that_fails_ends_its_trackers_as_not_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "_KINDS", {"mlflow": Remembering})
    monkeypatch.setattr(tracking, "_NEEDED", {"mlflow": ()})

    def stop(event):
        if isinstance(event, EpochEnded):
            raise Killed

    with pytest.raises(Killed):
        run_one(distilled(tmp_path, "mlflow"), allow_code=True, observer=stop)
    assert Remembering.seen == [("teacher", 1, 1), False]


def test_a_slow_tracker_does_not_hold_the_training_up_and_gets_everything_in_order(tmp_path, monkeypatch):
    go_on = threading.Event()

    class Slow(Remembering):
        def epoch(self, epoch):
            assert go_on.wait(timeout=60)
            super().epoch(epoch)

    monkeypatch.setattr(tracking, "_KINDS", {"mlflow": Slow})
    trackers = Trackers.start(["mlflow"], tmp_path, {}, complain)
    for epoch in range(1, 4):
        trackers.epoch(line(epoch))
    assert Slow.seen == []
    go_on.set()
    trackers.end()
    assert Slow.seen == [("student", 1, 1), ("student", 2, 2), ("student", 3, 3), False]


UNREACHABLE = {
    "tensorboard": {},
    "wandb": {"WANDB_MODE": "online"},  # but nobody is logged in
    "mlflow": {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"},
}


@each_tool
def test_a_tool_that_cannot_be_reached_is_told(tool, tmp_path, monkeypatch):
    for name, value in UNREACHABLE[tool].items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    if tool == "wandb":
        importlib.import_module("wandb").teardown()  # it reads its environment once
    events = []
    trackers = Trackers.start([tool], tmp_path, {}, events.append)
    trackers.epoch(line(1))
    trackers.end()
    (note,) = events
    assert note.text.startswith(f"{tool} does not track the run")
    assert "\n" not in note.text


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"wandb": 3}', '{"wandb": null, "mlflow": {}}', "[" * 100_000])
def test_run_names_that_are_damaged_are_forgotten(text, tmp_path, monkeypatch):
    (tmp_path / "trackers.json").write_text(text)
    monkeypatch.setattr(tracking, "_KINDS", {"wandb": lambda run: known.append(run.run_id) or Remembering(run)})
    known = []
    Trackers.start(["wandb"], tmp_path, {}, complain).end()
    assert known == [None]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_library_that_is_missing_is_told_before_anything_is_done(tool, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == tool else find_spec(name))
    with pytest.raises(ConfigError) as caught:
        run_one(distilled(tmp_path / "run", tool), allow_code=True)
    assert caught.value.where == "track"
    assert f"pip install 'distillab[{tool}]'" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_tool_has_made_is_not_taken_for_its_library(tmp_path, monkeypatch):
    (tmp_path / "folder_of_a_tool").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tracking._NEEDED, "wandb", ("folder_of_a_tool",))
    with pytest.raises(ConfigError, match="not installed"):
        check_installed(["wandb"])


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match="track"):
        resolve_train(tiny.RECIPE, {"track": ["excel"]})


def test_without_trackers_nothing_is_imported_written_or_started(tmp_path):
    threads = threading.active_count()
    trackers = Trackers.start([], tmp_path, {}, complain)
    trackers.epoch(line(1))
    assert threading.active_count() == threads
    trackers.end()
    assert not list(tmp_path.iterdir())
    code = "import sys, distillab.run; sys.exit(bool({'wandb', 'mlflow', 'tensorboard'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
