"""Names of runs and models made to lead elsewhere or to steer the terminal: each stays a name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import shell
import tiny
from distillab.models.catalog import MODELS, ModelInfo

NAMES = (
    "../run",
    "../../run",
    "../home/run",
    "a/../../home/run",
    "./././run",
    "..",
    ".",
    "...",
    "~",
    "~root",
    "$HOME/run",
    "`id`",
    "$(id)",
    "run; touch canary",
    "run && touch canary",
    "run | tee canary",
    "-rf",
    "--help",
    "*",
    "run\nmkdir canary",
    "run\rerror: none",
    "run\tname",
    "\x1b[2J\x1b[31mrun",
    "\x1b]0;title\x07run",
    "\x9b31mrun",
    "\u202egnp.nur",
    "run\u200b",
    "run\udcff",
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "=cmd|' /C calc'!A0",
    "CON",
    "result.json",
    "run ",
    " run",
    "名前",
    "r" * 250,
)
SMALL = ("--data", "tiny:dataset", "--image-size", "16", "--threads", "1", "--device", "cpu", "--training.epochs", "1")


def outside(folder: Path, named: Path) -> dict[str, bytes]:
    """All files but those in a folder."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_relative_to(named.resolve())
    }


def is_plain(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_the_collection_is_large() -> None:
    assert len(set(NAMES)) >= 30


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_run_writes_in_the_folder_that_was_named_and_nowhere_else(
    name: str, command: shell.Command, work: Path
) -> None:
    named = work / name
    before = outside(work.parent, named)
    outcome = command("train", *SMALL, "--model", "tiny:build", f"--output={name}")
    assert outside(work.parent, named) == before
    assert is_plain(outcome.out), outcome.out
    assert is_plain(outcome.err), outcome.err
    assert "internal error" not in outcome.err, outcome.err
    if name == "..":  # it holds something already
        assert outcome.code == 4
    else:
        assert outcome.code == 0, outcome.err
        assert (named / "result.json").is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if "\udcff" not in name], ids=ascii)
def test_a_model_of_any_name_gives_its_run_a_name_under_runs(
    name: str, command: shell.Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = ModelInfo(name, "student", "normal", "", 0, 0, tiny.build, input_size=16)
    monkeypatch.setitem(MODELS, name, info)
    before = outside(work.parent, work / "runs")
    outcome = command("train", *SMALL, f"--model={name}")
    assert outside(work.parent, work / "runs") == before
    assert is_plain(outcome.out + outcome.err), outcome
    assert "internal error" not in outcome.err, outcome.err
    assert outcome.code == 0, outcome.err
    (run,) = (work / "runs").iterdir()
    assert is_plain(run.name)
    assert not set(run.name) & set("/<>|;&$`*\"'= ")
    assert json.loads((run / "result.json").read_text())
