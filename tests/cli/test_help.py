from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import shell
from distillab.__main__ import Program
from distillab.classic import run_train_kd_py, run_train_py

VERBS = (
    (),
    ("train",),
    ("distill",),
    ("bench",),
    ("evaluate",),
    ("predict",),
    ("compare",),
    ("report",),
    ("resume",),
    ("verify",),
    ("demo",),
    ("doctor",),
    ("list",),
    ("list", "methods"),
)


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_shows_usage_and_an_example(words: tuple[str, ...], command: shell.Command) -> None:
    outcome = command(*words, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith("Usage: distillab")
    assert "\x1b" not in outcome.out
    if len(words) < 2:
        assert f"  distillab {' '.join(words)}".rstrip() in outcome.out.split("Examples:")[1]


def test_no_words_show_the_commands(command: shell.Command) -> None:
    outcome = command()
    assert outcome.code == 0
    assert all(verb in outcome.out for verb in ("train", "distill", "evaluate", "predict", "list", "demo", "doctor"))


@pytest.mark.parametrize("panel", ["Run", "Split", "Augment", "Training", "Optimizer", "Schedule", "Command"])
def test_settings_stand_in_panels(panel: str, command: shell.Command) -> None:
    assert f"─ {panel} ─" in command("train", "--help").out


def test_every_setting_of_a_run_is_explained(command: shell.Command) -> None:
    shown = " ".join(command("distill", "--help").out.replace("│", " ").split())
    for words in ("--optimizer.learning-rate", "Peak learning rate.", "[default: 0.05]", "--stage-epochs"):
        assert words.replace("--stage-epochs", "[choices: shared, each]") in shown


def test_a_method_shows_its_own_settings(command: shell.Command) -> None:
    assert "--distill.temperature FLOAT" in command("distill", "--method", "st", "--help").out
    assert "--distill.delta FLOAT" in command("distill", "--method", "mbd-delta", "--help").out
    assert "--distill.temperature FLOAT" not in command("distill", "--help").out


def test_a_method_may_be_chosen_by_a_recipe(command: shell.Command, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('method = "mbd-delta"\n')
    words = ("distill", "--recipe", "mine.toml", "--distill.delta", "0.1", "--training.epochs", "0")
    assert "where: training.epochs" in command(*words).err  # delta is known, so the next fault is found
    assert "unknown option --distill.delta" in command(*words, "--method", "st").err


def test_version_is_told(command: shell.Command) -> None:
    from distillab import __version__

    assert command("--version").out == f"distillab {__version__}\n"


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        (run_train_py, ("--model_type", "--model_size", "--epoch", "--batch_size", "--num_class")),
        (run_train_kd_py, ("--model_type", "--epoch", "--batch_size", "--num_class", "--kd", "--teacher")),
    ],
    ids=["train.py", "train_kd.py"],
)
def test_the_classic_commands_show_their_classic_flags(
    program: Program, flags: tuple[str, ...], command: shell.Command
) -> None:
    out = command("--help", program=program).out
    assert all(f"{flag} " in out for flag in flags)
    assert "--model-type" not in out


def test_help_imports_no_torch() -> None:
    program = (
        "import sys, json; from distillab.__main__ import main;"
        "codes = [main([*words, '--help']) for words in json.loads(sys.argv[1])];"
        "heavy = {'torch', 'numpy', 'sklearn', 'PIL', 'jinja2', 'matplotlib'};"
        "print(json.dumps([codes, sorted(heavy & set(sys.modules))]), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(VERBS)], capture_output=True, text=True, check=True, timeout=60
    )
    assert json.loads(done.stderr) == [[0] * len(VERBS), []]
