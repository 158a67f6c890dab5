"""Recipes and run folders made to run code, to hang, to fill the memory or to write elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import hostile.weights as hostile
import shell
from distillab.errors import ConfigError
from distillab.recipe import load_recipe

VERBS = (("train",), ("distill",))

CODE_FIELDS = {
    "data": 'data = "{}"',
    "teacher": 'teacher = "{}"',
    "teacher_model": 'teacher = "x.pth"\nteacher_model = "{}"',
    "assistant": 'assistant = "{}"',
    "student": 'student = "{}"',
    "the student where it is trained alone": '[alone]\nstudent = "{}"',
    "the teacher where it is trained alone": '[alone]\nteacher = "{}"',
    "the data where a model is trained alone": '[alone]\ndata = "{}"',
    "a setting of the method": '[distill]\nbuilder = "{}"',
    "an option of a stage": 'method = "custom"\n[[stages]]\nmethod = "soft_target"\noptions = {{ temperature = "{}" }}',
}

TEXTS: dict[str, str | bytes] = {
    "arrays nested too deeply": "milestones = " + "[" * 5000,
    "tables nested too deeply": "alone = " + "{a=" * 2000 + "1" + "}" * 2000,
    "a key of ten thousand parts": "alone" + ".a" * 10_000 + " = 1",
    "keys of five hundred parts": ("alone" + ".a" * 500 + " = 1\n") * 60,
    "headers of five hundred parts": ("[[distill" + ".a" * 500 + "]]\n") * 60,
    "settings ten levels deep": "[alone.a.b.c.d.e.f.g.h.i]\nx = 1",
    "ten megabytes": "# " + "x" * 10_000_000,
    "one key many times": "seed = 1\nseed = 2",
    "one section twice": "[training]\nepochs = 1\n[training]\nepochs = 2",
    "bytes that are no text": bytes(range(256)),
    "UTF-16": "seed = 1".encode("utf-16"),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(1000),
    "a pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x05mkdir\x94\x93\x94",
    "YAML with a tag": "!!python/object/apply:os.mkdir ['canary']",
    "a number without end": "seed = " + "9" * 60_000,
    "a number of a thousand digits": "seed = " + "9" * 1000,
    "a negative number": "seed = -1",
    "a number that is none": "cache_gib = nan",
    "an infinite number": "[optimizer]\nlearning_rate = inf",
    "a number beyond all": "[training]\nepochs = 0x" + "f" * 900,
    "a list for a number": "seed = [1]",
    "a section for a word": "[data]\nx = 1",
    "a date for a number": "seed = 1979-05-27",
    "a zero byte in a path": 'output = "a\\u0000b"',
    "a zero byte in a name": 'student = "cnn16\\u0000"',
    "an unknown setting with an escape": '"\\u001b[2J" = 1',
    "an unknown setting of sixty thousand letters": "x" * 60_000 + " = 1",
    "an unknown setting of a thousand letters": "x" * 1000 + " = 1",
}

THINGS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to somebody's file": lambda path: path.symlink_to("../home/diary.txt"),
    "a hole of 100 GB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 10**11),
    "a folder whose recipe is a pipe": lambda path: path.mkdir() or os.mkfifo(path / "config.toml"),
}


@pytest.fixture
def evil(work: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A function in a module that makes the canary as soon as it is imported."""
    (work / "evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nbuild = dataset = dict\n")
    monkeypatch.syspath_prepend(work)
    return "evil:build"


@pytest.mark.parametrize("field", CODE_FIELDS)
def test_code_that_a_recipe_names_is_not_imported(
    field: str, refused: shell.Command, work: Path, evil: str, canary: Path
) -> None:
    (work / "r.toml").write_text(CODE_FIELDS[field].format(evil))
    for verb in VERBS:
        error = refused(*verb, "--recipe", "r.toml", "--output", "run", code=2)
        assert "--allow-code" in error
        assert evil in error
    assert not canary.exists()


@pytest.mark.parametrize("name", ["evil-module:build", "1evil:build", "évil:build", "evil:build ", " evil:build"])
def test_code_of_an_odd_name_is_no_way_around(
    name: str, refused: shell.Command, work: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("evil", "evil-module", "1evil", "évil"):
        (work / f"{module}.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    monkeypatch.syspath_prepend(work)
    (work / "r.toml").write_text(f'student = "{name}"\n')
    refused("train", "--recipe", "r.toml", "--output", "run", code=2)
    assert not canary.exists()


def test_code_that_a_run_folder_names_is_not_imported(
    refused: shell.Command, work: Path, evil: str, canary: Path
) -> None:
    (work / "run").mkdir()
    hostile.described()(canary, work / "run")
    (work / "run" / "config.toml").write_text(f'data = "{evil}"\n')
    for source in ("run", "run/x.safetensors"):
        assert "--allow-code" in refused("evaluate", source, code=2)
    assert not canary.exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_recipe_is_refused(name: str, refused: shell.Command, work: Path) -> None:
    text = TEXTS[name]
    (work / "r.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for verb in VERBS:
        for allowed in ((), ("--allow-code",)):
            refused(*verb, "--recipe", "r.toml", *allowed, "--output", "run", "--dry-run", code=2)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_recipe_is_refused(name: str, refused: shell.Command, work: Path) -> None:
    THINGS[name](work / "r.toml")
    error = refused("train", "--recipe", "r.toml", "--output", "run", code=2)
    assert "mine alone" not in error


@pytest.mark.parametrize(
    "name", ["../../recipes/x", "/etc/passwd", "~/r", "<script>", "\x1b[2J", "x" * 300, "digits\0"]
)
def test_a_recipe_of_any_name_that_is_none_is_refused(name: str, refused: shell.Command) -> None:
    with pytest.raises(ConfigError):
        load_recipe(name)
    refused("train", "--recipe", name, "--output", "run", code=2)


@pytest.mark.parametrize("method", ["../../evil", "evil", "base", "__init__", "os:mkdir"])
def test_a_stage_finds_its_method_among_the_methods_only(
    method: str, refused: shell.Command, work: Path, evil: str, canary: Path
) -> None:
    (work / "r.toml").write_text(f'method = "custom"\n[[stages]]\nmethod = "{method}"\n')
    refused("distill", "--recipe", "r.toml", "--output", "run", code=2)
    assert not canary.exists()
