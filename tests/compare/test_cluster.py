"""`--ray`: the same numbers from a cluster, and what goes wrong on its machines told as what it is."""

import os
import pickle
import shutil
import signal
import socket
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import tiny
from distillab.compare import cluster
from distillab.compare.cluster import on_cluster, same_device
from distillab.compare.conduct import Task
from distillab.compare.config import ComparisonConfig
from distillab.compare.run import resume_comparison, run_comparison
from distillab.config import resolve_train
from distillab.errors import CheckpointError, ConfigError, Interrupted, StorageError
from distillab.resume import read_config
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Note, silent

ERRORS = (
    ConfigError("too wide", where="student", hint="take a narrow one"),
    CheckpointError("torn"),
    Interrupted("stopped", signal_number=signal.SIGTERM, where="checkpoint-3", hint="go on"),
)


def task(work, **flags):
    return Task("a task", resolve_train(tiny.RECIPE, flags), work)


def fail_with(number, observer):
    """Work that tells something, then fails."""
    observer(Note("before"))
    raise ERRORS[number]


def fail_first(observer):
    return fail_with(0, observer)


def tell_where(observer):
    return Path.cwd()


def wait_to_be_stopped(folder, observer):
    (folder / "begun").touch()
    try:
        wait_for(folder / "never")
    except KeyboardInterrupt:
        (folder / "saved").touch()
        raise


def fail_when_the_other_has_begun(folder, observer):
    wait_for(folder / "begun")
    raise ERRORS[0]


def wait_for(path):
    until = time.monotonic() + 60
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert path.exists()


def test_a_missing_ray_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray") as caught, on_cluster(tmp_path, silent):
        pass
    assert caught.value.hint == "pip install 'distillab[cluster]'"


def test_a_cluster_that_nobody_answers_for_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OSError, match="refused"):
            cluster._check_answers(f"ray://127.0.0.1:{taken.getsockname()[1]}")
    assert cluster._check_answers(None) is cluster._check_answers("auto") is None


def test_all_machines_are_told_which_device_auto_is():
    here = choose_compute("auto").device.type
    assert same_device({}, {}) == {"device": here}
    assert same_device({"device": "auto"}, {"seed": 1}) == {"device": here, "seed": 1}
    assert same_device({"device": "cuda"}, {}) == {}
    assert same_device({"device": "auto"}, {"device": "cuda"}) == {"device": "cuda"}


def test_whoever_goes_on_takes_the_threads_of_the_machine_that_began(tmp_path, monkeypatch):
    recipe = {name: value for name, value in tiny.RECIPE.items() if name != "threads"}
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    run_comparison(ComparisonConfig(methods=("st",), seeds=1), recipe, {}, output=tmp_path / "table", allow_code=True)
    shutil.rmtree(tmp_path / "table" / "seed-0")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    resume_comparison(tmp_path / "table", allow_code=True)
    assert read_config(tmp_path / "table" / "seed-0" / "st", allow_code=True).threads == 1


@pytest.fixture
def token(tmp_path, monkeypatch):
    """What a machine looks for; a task may change the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "token"
    path.write_text(cluster._versions())
    return path


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_an_error_comes_back_as_what_it_is(token, number):
    outcome = cluster._carry_out(lambda observer: fail_with(number, observer), Path.cwd(), token)
    received = pickle.loads(pickle.dumps(outcome))
    assert received.notes == ["before"]
    error, sent = received.result, ERRORS[number]
    assert type(error) is type(sent)
    assert str(error) == str(sent)
    assert error.exit_code == sent.exit_code


def test_a_machine_that_does_not_see_the_folder_is_told(token):
    token.unlink()
    outcome = cluster._carry_out(tell_where, Path.cwd(), token)
    assert type(outcome.result) is StorageError
    assert "does not see the comparison's files" in outcome.result.message
    assert outcome.result.where == str(token.parent)


def test_a_machine_that_does_not_have_the_working_directory_is_told(token):
    outcome = cluster._carry_out(tell_where, token.parent / "nowhere", token)
    assert type(outcome.result) is StorageError


def test_a_machine_with_other_versions_is_told(token):
    token.write_text("distillab 0.0.1 with torch 1.0")
    outcome = cluster._carry_out(tell_where, Path.cwd(), token)
    assert type(outcome.result) is ConfigError
    assert "distillab 0.0.1 with torch 1.0" in outcome.result.message


@pytest.fixture(scope="module")
def two_machines():
    """This process, connected to a cluster of two machines of one processor each, both of which are this one."""
    ray = pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'distillab[cluster]'")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        machines.add_node(num_cpus=1)
        paths = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        ray.init(address=machines.address, log_to_driver=False, runtime_env={"env_vars": paths})
        yield machines
        ray.shutdown()
        machines.shutdown()


def files(folder):
    """What equal comparisons leave equal."""
    kinds = ("*.safetensors", "metrics.jsonl", "config.toml", "tuning.json")
    return {path.relative_to(folder): path.read_bytes() for kind in kinds for path in folder.rglob(kind)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_cluster_gives_the_same_numbers(two_machines, tmp_path):
    recipe = {**tiny.RECIPE, "training": {**tiny.RECIPE["training"], "epochs": 1}}
    request = ComparisonConfig(methods=("st", "takd"), seeds=2, tune=3)
    told = []
    run_comparison(request, recipe, {}, output=tmp_path / "here", allow_code=True)
    with on_cluster(tmp_path / "there", told.append) as spread:
        run_comparison(
            request, recipe, {}, output=tmp_path / "there", observer=told.append, allow_code=True, spread=spread
        )
    here, there = files(tmp_path / "here"), files(tmp_path / "there")
    at_home = {name: content.replace(b"/there/", b"/here/") for name, content in there.items()}  # the teacher's path
    assert at_home == here
    assert len([path for path in here if path.name == "student.safetensors"]) == 12
    assert Note("seed-1: done (2 of 4)") in told
    assert not list((tmp_path / "there").glob(".*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_fails_on_a_machine_fails_here(two_machines, tmp_path):
    told = []
    with on_cluster(tmp_path, told.append) as spread:
        assert list(spread([task(tell_where)])) == [Path.cwd()]
        with pytest.raises(ConfigError, match="too wide") as caught:
            list(spread([task(fail_first), task(tell_where)]))
    assert caught.value.hint == "take a narrow one"
    assert Note("before") in told
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_where_one_machine_fails_the_other_is_asked_to_save_and_end(two_machines, tmp_path):
    works = (fail_when_the_other_has_begun, wait_to_be_stopped)  # at the same time: else the first would wait in vain
    with on_cluster(tmp_path, silent) as spread, pytest.raises(ConfigError, match="too wide"):
        list(spread([task(partial(work, tmp_path)) for work in works]))
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flags", [{"threads": 2}, {"device": "cuda"}])
def test_what_no_machine_can_do_is_refused_and_not_waited_for(two_machines, tmp_path, flags):
    with on_cluster(tmp_path, silent) as spread, pytest.raises(ConfigError, match="no machine"):
        list(spread([task(tell_where, **flags)]))
