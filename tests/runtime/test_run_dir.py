import json
import os
import subprocess
import sys

import pytest
import torch

from distillab.errors import RunDirInUseError, StorageError
from distillab.runtime import run_dir
from distillab.runtime.run_dir import RunDir, check_free, environment, new_run_name

CPU = torch.device("cpu")


def test_runs_without_an_output_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = RunDir.new(None, label="st-cnn16"), RunDir.new(None, label="st-cnn16")
    assert first.path != second.path
    assert first.path.parent.name == "runs"
    assert "st-cnn16" in first.path.name
    first.release()
    second.release()


def test_a_folder_with_content_is_refused_and_untouched(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StorageError, match=r"result\.json"):
        RunDir.new(tmp_path, label="x")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="is a file"):
        RunDir.new(tmp_path / "run", label="x")


def test_looking_whether_a_folder_is_free_makes_nothing(tmp_path):
    check_free(tmp_path / "a" / "b")
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("settings", "more"), [("seed = 1", ""), ('model = "mine:make"', " --allow-code")])
def test_a_folder_with_a_run_that_has_not_ended_names_what_lets_it_go_on(tmp_path, settings, more):
    home = tmp_path / "my run"
    home.mkdir()
    (home / "config.toml").write_text(settings)
    with pytest.raises(StorageError, match="not come to its end") as caught:
        check_free(home)
    assert f"distillab resume '{home}'{more};" in caught.value.hint


@pytest.mark.parametrize(
    "files", [{"config.toml": ""}, {"config.toml": "["}, {"config.toml": "a=1", "result.json": ""}]
)
def test_other_folders_are_no_run_that_could_go_on(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(StorageError, match="not empty") as caught:
        check_free(tmp_path)
    assert "resume" not in caught.value.hint


def test_a_pipe_in_the_place_of_settings_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(StorageError, match="not empty"):
        check_free(tmp_path)


def test_what_comes_into_the_folder_before_the_lock_is_held_is_seen(tmp_path, monkeypatch):
    claim = run_dir.claim_dir

    def claim_slowly(path):
        claim(path)
        (path / "metrics.jsonl").write_text("")  # another run comes and goes meanwhile
        return path

    monkeypatch.setattr(run_dir, "claim_dir", claim_slowly)
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        RunDir.new(tmp_path / "run", label="x")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_another_process_owns_is_refused(tmp_path):
    code = (
        "import sys, pathlib; from distillab.runtime.run_dir import RunDir;"
        "r = RunDir.new(pathlib.Path(sys.argv[1]), label='x'); print('owned', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout.readline() == "owned\n"
        with pytest.raises(RunDirInUseError) as caught:
            RunDir.new(tmp_path / "run", label="x")
        assert caught.value.exit_code == 75
        owner.stdin.close()


def test_metrics_and_times_are_json_lines_apart(tmp_path):
    run = RunDir.new(tmp_path / "run", label="x")
    run.append_metrics({"stage": "student alone", "epoch": 1, "loss": 0.5, "seconds": 1.25})
    run.append_metrics({"stage": "student alone", "epoch": 2, "loss": 0.25, "seconds": 1.0})
    run.release()
    metrics = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    timing = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    assert [m["loss"] for m in metrics] == [0.5, 0.25]
    assert all("seconds" not in m for m in metrics)
    assert [t["seconds"] for t in timing] == [1.25, 1.0]
    assert not (run.path / ".lock").exists()


def test_what_is_run_and_where_is_written_before_the_first_step(tmp_path):
    run = RunDir.new(tmp_path / "run", label="x")
    run.describe(command=["distillab", "train", "a b"], device=CPU, threads=2)
    run.release()
    assert (run.path / "command.txt").read_text() == "distillab train 'a b'\n"
    env = json.loads((run.path / "env.json").read_text())
    assert env["versions"]["torch"] == torch.__version__.split("+")[0] or env["versions"]["torch"] == torch.__version__
    assert env["threads"] == 2


def test_the_environment_names_versions_device_and_source():
    env = environment(CPU, 1)
    assert {"distillab", "python", "versions", "device", "device_name", "git"} <= set(env)


def test_names_sort_by_time_and_hold_the_label():
    name = new_run_name("teacher-cnn8")
    date, clock, rest = name.split("-", 2)
    assert (len(date), len(clock)) == (8, 6)
    assert rest.startswith("teacher-cnn8-")
