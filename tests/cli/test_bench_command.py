"""`distillab bench` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import shell
import tiny
from distillab.models.catalog import MODELS

TINY = "tiny:build"  # the classic loop's process finds it by this name as well
PAIR = f"{TINY}-{TINY}"
WORDS = ("bench", "--work", PAIR, "--method", "st", "--batch-size", "16", "--rounds", "2", "--seconds", "1")


@pytest.fixture(autouse=True)
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, TINY, replace(MODELS["cnn16"], name=TINY, builder=tiny.build))


def test_json_is_one_object_with_a_row_for_every_path(command: shell.Command) -> None:
    outcome = command(*WORDS, "--json", "--threads", "1", "--device", "cpu")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["device"] == "cpu"
    assert result["threads"] == 1
    assert {"torch", "numpy"} < set(result["versions"])
    assert [row["path"] for row in result["rows"]] == ["classic", "live", "cached"]
    for row in result["rows"]:
        assert (row["work"], row["method"], row["batch_size"]) == (PAIR, "st", 16)
        assert row["images_per_second"] > 0
    assert result["rows"][0]["ratio"] == 1.0
    assert "warming up" in outcome.err


def test_the_table_stands_on_stdout_and_progress_elsewhere(command: shell.Command) -> None:
    outcome = command("bench", "--work", TINY, *WORDS[5:], "--data", "tiny:dataset", "--quiet")
    assert outcome.code == 0, outcome.err
    head, classic, own, foot = outcome.out.splitlines()
    assert head.split()[:5] == ["work", "method", "path", "images/s", "ratio"]
    assert classic.split()[:3] == [TINY, "alone", "classic"]
    assert own.split()[:3] == [TINY, "alone", "live"]
    assert foot.startswith("batch 16 on ")
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--work", "cnn8-cnn61"), "unknown work 'cnn8-cnn61'"),
        (("--method", "mbd-sofd"), "unknown method 'mbd-sofd'"),
        (("--rounds", "1"), "where: rounds"),
        (("--profile", "trace.txt"), "a trace is a JSON file"),
        (("--device", "cuda:99"), "there is no device 'cuda:99'"),
    ],
)
def test_wrong_words_are_answered_at_once(words: tuple[str, ...], error: str, command: shell.Command) -> None:
    outcome = command("bench", *words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert error in outcome.err
    assert len(outcome.err.splitlines()) <= 3


def test_a_near_name_is_suggested(command: shell.Command) -> None:
    assert "did you mean 'cnn8-cnn16'?" in command("bench", "--work", "cnn8-cnn61").err


def test_help_shows_the_flags_and_an_example(command: shell.Command) -> None:
    outcome = command("bench", "--help")
    assert outcome.code == 0
    for flag in ("--work", "--method", "--batch-size", "--rounds", "--seconds", "--profile", "--json"):
        assert flag in outcome.out
    assert "distillab bench" in outcome.out.split("Examples:")[1]


def test_help_imports_no_torch() -> None:
    program = (
        "import sys; from distillab.__main__ import main;"
        "sys.exit(main(['bench', '--help']) or 'torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60).returncode == 0
