"""`distillab verify` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shell
import tiny
from distillab.config import resolve_train
from distillab.run import run_one


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_one(resolve_train(tiny.RECIPE, {"output": tmp_path / "run"}), allow_code=True)
    return tmp_path / "run"


def test_a_good_run_is_a_table_of_what_was_looked_at(run: Path, command: shell.Command) -> None:
    outcome = command("verify", "run", "--allow-code")
    assert outcome.code == 0, outcome.err
    head, *rows, last = outcome.out.splitlines()
    assert head.split() == ["what", "found", "verdict"]
    assert all(row.endswith("  good") for row in rows)
    assert rows[-1].startswith("replay ")
    assert last == "nothing differs"
    assert "replaying student alone, epoch 1, from the beginning" in outcome.err


def test_what_differs_first_is_the_error(run: Path, command: shell.Command) -> None:
    (run / "metrics.csv").write_text("none")
    (run / "student.safetensors").write_text("none")
    outcome = command("verify", "run", "--allow-code", "--quiet")
    assert outcome.code == 4
    assert outcome.out.splitlines()[-1] == "3 of 9 differ"
    assert outcome.err.splitlines()[:2] == [
        "error: metrics.csv: its numbers are not those of metrics.jsonl",
        "  where: run",
    ]


def test_json_says_the_same_whatever_the_verdict(run: Path, command: shell.Command) -> None:
    (run / "metrics.csv").write_text("none")
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**environment, "python": "2.7", "cpu_count": [1]}))
    outcome = command("verify", "run", "--json", "--quiet")
    assert outcome.code == 4
    shown = json.loads(outcome.out)
    assert shown["run_dir"] == "run"
    assert shown["faults"] == 1
    assert {tuple(finding) for finding in shown["findings"]} == {("what", "found", "verdict")}
    assert {"what": "python", "run": "2.7", "here": environment["python"]} in shown["environment"]


def test_another_environment_is_a_table_of_its_own(run: Path, command: shell.Command) -> None:
    environment = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps({**environment, "python": "2.7"}))
    outcome = command("verify", "run", "--allow-code", "--quiet")
    assert outcome.code == 0
    head, row, last = outcome.out.splitlines()[-3:]
    assert head.split() == ["what", "run", "here"]
    assert row.split() == ["python", "2.7", environment["python"]]
    assert last == "nothing differs"


def test_without_permission_the_flag_that_gives_it_is_named(run: Path, command: shell.Command) -> None:
    outcome = command("verify", "run")
    assert outcome.code == 0
    assert "--allow-code" in outcome.out
    assert outcome.out.splitlines()[-1] == "nothing differs; 2 of 8 not looked at"


def test_a_folder_of_something_else_is_refused(command: shell.Command, tmp_path: Path) -> None:
    outcome = command("verify", str(tmp_path))
    assert outcome.code == 4
    assert outcome.err.startswith("error: this is no run folder")
    assert outcome.out == ""
