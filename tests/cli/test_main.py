from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

import shell
from distillab.__main__ import Program
from distillab.errors import ConfigError, DataError, NonFiniteLossError, RunDirInUseError, StorageError
from distillab.runtime.events import RunStarted
from distillab.tables import millions
from distillab.terminal import Screen

ROOT = Path(__file__).parents[2]
DISTILLAB = Path(sys.executable).with_name("distillab")


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ConfigError, 2), (DataError, 3), (StorageError, 4), (NonFiniteLossError, 5), (RunDirInUseError, 75)],
)
def test_an_error_gives_its_exit_code(kind: type[Exception], code: int, command: shell.Command) -> None:
    def program(words: Sequence[str], screen: Screen) -> None:
        raise kind("it went wrong")

    assert command(program=program) == shell.Outcome(code, "", "error: it went wrong\n")


def of_nobody(code: str) -> Program:
    """A program whose code lies in no file, so that it passes for ours; it knows `words` and `screen`."""
    scope = dict(globals())
    exec(f"def program(words, screen):\n{textwrap.indent(textwrap.dedent(code), '    ')}", scope)
    program: Program = scope["program"]
    return program


def test_a_bug_in_code_from_elsewhere_names_the_place(command: shell.Command, tmp_path: Path) -> None:
    def program(words: Sequence[str], screen: Screen) -> None:
        with screen.watching() as observe:
            observe(RunStarted(tmp_path, "distillab resume run"))
            json.loads("{")  # the deepest frame is that of the standard library

    outcome = command(program=program)
    lines = outcome.err.splitlines()
    assert outcome.code == 1
    assert lines[0].startswith("error: JSONDecodeError: ")
    assert lines[1] == f"  where: {__file__}:{program.__code__.co_firstlineno + 3}"
    assert lines[2] == (
        f"  try:   mend that code, which is not distillab's; the whole traceback: {tmp_path / 'traceback.txt'}"
    )


def test_a_bug_of_ours_that_others_called_is_ours(command: shell.Command) -> None:
    def program(words: Sequence[str], screen: Screen) -> None:
        millions("many")  # type: ignore[arg-type]

    assert command(program=program).err.startswith("internal error: TypeError: ")


def test_a_bug_is_one_line_and_a_file(command: shell.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = command(program=of_nobody("raise ZeroDivisionError('by\\nzero [/x]')"))
    assert outcome.code == 1
    first, second = outcome.err.splitlines()
    assert first == "internal error: ZeroDivisionError: by; zero [/x] (this is a bug)"
    assert "Traceback (most recent call last)" in Path(second.removeprefix("  where: ")).read_text()


def test_a_bug_in_a_run_is_kept_in_its_folder(command: shell.Command, tmp_path: Path) -> None:
    code = f"""
    with screen.watching() as observe:
        observe(RunStarted(Path({str(tmp_path)!r}), "distillab resume run"))
        raise ZeroDivisionError
    """
    assert command(program=of_nobody(code)).err.endswith(f"  where: {tmp_path / 'traceback.txt'}\n")
    assert "ZeroDivisionError" in (tmp_path / "traceback.txt").read_text()


def test_ctrl_c_gives_130(command: shell.Command) -> None:
    def program(words: Sequence[str], screen: Screen) -> None:
        raise KeyboardInterrupt

    assert command(program=program) == shell.Outcome(130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([DISTILLAB, "trian"], 2, 'error: unknown command "trian"'),
        ([sys.executable, "-m", "distillab", "distill", "--method", "sst"], 2, "error: unknown method 'sst'"),
        ([sys.executable, ROOT / "train.py", "--model_size", "huge"], 2, 'error: invalid value "huge"'),
        ([sys.executable, ROOT / "train_kd.py"], 4, "error: the teacher's weights are not there"),
    ],
    ids=["distillab", "python -m distillab", "train.py", "train_kd.py"],
)
def test_the_installed_programs_answer_wrong_words(words: list[object], code: int, said: str, tmp_path: Path) -> None:
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) <= 6


@pytest.mark.parametrize("script", ["train.py", "train_kd.py"])
def test_a_classic_script_without_the_package_says_how_to_install_it(script: str, tmp_path: Path) -> None:
    (tmp_path / script).write_text((ROOT / script).read_text())
    words = [sys.executable, "-S", script]  # -S: no installed packages
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "No module named 'distillab'; first install it: pip install -r requirements.txt\n"


def test_requirements_install_the_package() -> None:
    assert (ROOT / "requirements.txt").read_text().split() == ["."]


def test_completion_is_installed_for_a_shell(tmp_path: Path) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    words = [DISTILLAB, "--install-completion", "--shell", "bash"]
    subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    script = (tmp_path / ".local/share/bash-completion/completions/distillab").read_text()
    assert "--optimizer.learning-rate" in script
    assert "mbd-soft" in complete("distill", "--method", "")
    assert "digits-modern" in complete("train", "--recipe", "")


def complete(*words: str) -> str:
    """What the shell is offered after these words, without torch being imported for it."""
    program = (
        "import sys; from distillab.__main__ import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "__complete", *words], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_doctor_reports_in_markdown_and_in_json(command: shell.Command) -> None:
    shown = command("doctor").out
    assert all(line.startswith("- ") for line in shown.splitlines())
    assert "precision `auto` on" in shown
    report = json.loads(command("doctor", "--json").out)
    assert report["cpu"]["usable_cores"] >= 1
    assert report["precision"]["auto"] in ("float32", "bfloat16")
    assert report["storage"]["writable"]
    assert all(rate > 0 for rates in report["rates"].values() for rate in rates.values())
