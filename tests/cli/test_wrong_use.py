"""Wrong uses of the commands: each is answered in a few lines that name the place and the next step."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from syrupy.assertion import SnapshotAssertion

import shell
from distillab.classic import run_train_kd_py, run_train_py
from distillab.cli import run as run_distillab
from distillab.models.catalog import build_model
from distillab.models.weights import save_classic, save_weights

Prepare = Callable[[Path], object]
PROGRAMS = {"distillab": run_distillab, "train.py": run_train_py, "train_kd.py": run_train_kd_py}


def nothing(folder: Path) -> None:
    """The working directory stays empty."""


def text(name: str, content: str) -> Prepare:
    return lambda folder: (folder / name).write_text(content)


def empty_folder(name: str) -> Prepare:
    return lambda folder: (folder / name).mkdir()


def photos(folder: Path, classes: tuple[str, ...] = ("cat", "dog"), images: int = 5) -> Path:
    generator = np.random.default_rng(0)
    for label in classes:
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(images):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")
    return folder / "photos"


def one_class(folder: Path) -> None:
    photos(folder, ("cat",))


def corrupt_image(folder: Path) -> None:
    (photos(folder) / "dog" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")


def weights(num_classes: int = 10, spec: str = "cnn16") -> Prepare:
    return lambda folder: save_classic(build_model(spec, num_classes), folder / "teacher.pth", {})


def pickled_code(folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("this ran",))

    torch.save({"layer": Payload()}, folder / "teacher.pth")


def plain_pickle(folder: Path) -> None:
    (folder / "teacher.pth").write_bytes(pickle.dumps({"epoch": 3}))


def bare_weights(folder: Path) -> None:
    weights()(folder)
    (folder / "teacher.json").unlink()


def cut_weights(folder: Path) -> None:
    save_weights(build_model("cnn16", 10), folder / "teacher.safetensors", {})
    whole = (folder / "teacher.safetensors").read_bytes()
    (folder / "teacher.safetensors").write_bytes(whole[: len(whole) // 2])


def full_output(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "notes.txt").write_text("mine")


def damaged_run(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "result.json").write_text('{"weights": "student.saf')


def lost_weights(folder: Path) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "result.json").write_text(json.dumps({"weights": "student.safetensors"}))


def with_images(folder: Path) -> None:
    weights()(folder)
    photos(folder)


def other_teacher(folder: Path) -> None:
    weights(10, "cnn8")(folder)
    photos(folder)


def with_a_letter(folder: Path) -> None:
    weights()(folder)
    (folder / "letter.png").write_text("Dear Sir or Madam")


def with_empty_folder(folder: Path) -> None:
    weights()(folder)
    (folder / "photos").mkdir()


@dataclass(frozen=True)
class Wrong:
    """A wrong use.

    Attributes:
        name: What is wrong.
        line: The command line.
        code: The exit code that it deserves.
        prepare: Fills the working directory.
    """

    name: str
    line: str
    code: int
    prepare: Prepare = nothing


WRONG = (
    Wrong("a command that is misspelt", "distillab trian", 2),
    Wrong("a command like no other", "distillab frobnicate", 2),
    Wrong("a listing that does not exist", "distillab list method", 2),
    Wrong("a word too many", "distillab train digits", 2),
    Wrong("a flag that is misspelt", "distillab train --sead 3", 2),
    Wrong("a setting that is misspelt", "distillab train --optimizer.lerning-rate 0.1", 2),
    Wrong("a section that is misspelt", "distillab train --optimiser.learning-rate 0.1", 2),
    Wrong("a flag of another command", "distillab train --method st", 2),
    Wrong("a flag without its value", "distillab train --seed", 2),
    Wrong("a flag given twice", "distillab train --seed 1 --seed 2", 2),
    Wrong("a word for a number", "distillab train --training.epochs many", 2),
    Wrong("half an epoch", "distillab train --training.epochs 2.5", 2),
    Wrong("a word for a switch", "distillab train --offline=perhaps", 2),
    Wrong("no epochs", "distillab train --training.epochs 0", 2),
    Wrong("a negative rate", "distillab train --optimizer.learning-rate -3", 2),
    Wrong("an infinite rate", "distillab train --optimizer.learning-rate inf", 2),
    Wrong("a seed too large", "distillab train --seed 9999999999", 2),
    Wrong("an unknown optimizer", "distillab train --optimizer.name adamm", 2),
    Wrong("momentum with adamw", "distillab train --optimizer.name adamw --optimizer.momentum 0.9", 2),
    Wrong("nesterov without momentum", "distillab train --optimizer.momentum 0 --optimizer.nesterov", 2),
    Wrong("milestones without multi_step", "distillab train --schedule.milestones 10 15", 2),
    Wrong("multi_step without milestones", "distillab train --schedule.name multi_step", 2),
    Wrong(
        "milestones out of order",
        "distillab train --schedule.name multi_step --schedule.milestones 15 10",
        2,
    ),
    Wrong(
        "early stopping without validation",
        "distillab train --training.early-stop-patience 3 --split.validation-fraction 0",
        2,
    ),
    Wrong("a method that is misspelt", "distillab distill --method fitnets", 2),
    Wrong("a method like no other", "distillab distill --method zzz", 2),
    Wrong("a method without its name", "distillab distill --method", 2),
    Wrong("two methods at once", "distillab distill --method st --method fitnet", 2),
    Wrong("a method's help for a wrong name", "distillab distill --method ts --help", 2),
    Wrong("a method's setting misspelt", "distillab distill --method st --distill.temprature 4", 2),
    Wrong("a setting of another method", "distillab distill --method mbd-hard --distill.delta 0.1", 2),
    Wrong("a method's setting out of bounds", "distillab distill --method st --distill.temperature 0", 2),
    Wrong("a method's setting of another kind", "distillab distill --method st --distill.temperature hot", 2),
    Wrong("a custom plan without stages", "distillab distill --method custom", 2),
    Wrong(
        "stages without a custom plan",
        "distillab distill --recipe mine.toml",
        2,
        text("mine.toml", '[[stages]]\nmethod = "hint"\n'),
    ),
    Wrong(
        "a plan in which nobody taught the teacher",
        "distillab distill --recipe mine.toml",
        2,
        text("mine.toml", 'method = "custom"\n[[stages]]\nmethod = "hint"\nteacher = "assistant"\n'),
    ),
    Wrong("fewer epochs than stages", "distillab distill --method fitnet --training.epochs 1", 2),
    Wrong(
        "a flag that makes the recipe's settings idle",
        "distillab train --recipe cifar10-cnn-classic --schedule.name cosine",
        2,
    ),
    Wrong(
        "a recipe of a model alone",
        "distillab distill --recipe mine.toml",
        2,
        text("mine.toml", 'role = "teacher"\nmodel = "cnn8"\n'),
    ),
    Wrong("a recipe that is misspelt", "distillab train --recipe digits-moderne", 2),
    Wrong("a recipe that is not TOML", "distillab train --recipe mine.toml", 2, text("mine.toml", "epochs: 3\n")),
    Wrong(
        "a recipe that is not text",
        "distillab train --recipe mine.toml",
        2,
        lambda folder: (folder / "mine.toml").write_bytes(b"\xff\xfe\x00"),
    ),
    Wrong("an unknown setting in a recipe", "distillab train --recipe mine.toml", 2, text("mine.toml", "sed = 3\n")),
    Wrong(
        "an unknown setting deep in a recipe",
        "distillab train --recipe mine.toml",
        2,
        text("mine.toml", "[optimizer]\nlerning_rate = 0.1\n"),
    ),
    Wrong(
        "a wrong type in a recipe",
        "distillab train --recipe mine.toml",
        2,
        text("mine.toml", '[training]\nepochs = "many"\n'),
    ),
    Wrong(
        "a value for a section in a recipe",
        "distillab train --recipe mine.toml",
        2,
        text("mine.toml", "training = 3\n"),
    ),
    Wrong(
        "code in a recipe",
        "distillab distill --recipe mine.toml",
        2,
        text("mine.toml", 'student = "os.path:join"\n'),
    ),
    Wrong("a folder without a recipe", "distillab train --recipe run", 2, empty_folder("run")),
    Wrong("an unknown device", "distillab train --device gpu", 2),
    Wrong("a device that is not here", "distillab train --device cuda:99", 2),
    Wrong("an unknown model", "distillab train --model cnn61", 2),
    Wrong("a module that does not exist", "distillab train --allow-code --model no_such_package.models:tiny", 2),
    Wrong("a function that does not exist", "distillab train --allow-code --model json:tiny", 2),
    Wrong("a function that makes no model", "distillab train --allow-code --model builtins:dict", 2),
    Wrong("images of a size that the model does not take", "distillab train --image-size 64 --model cnn16", 2),
    Wrong("a data set that is misspelt", "distillab train --data cifr10", 2),
    Wrong("a folder that does not exist", "distillab train --data ./photos", 3),
    Wrong("a data set that is not here, offline", "distillab train --data cifar10 --offline", 3),
    Wrong("a folder without images", "distillab train --data ./photos", 3, empty_folder("photos")),
    Wrong("a single class", "distillab train --data ./photos", 3, one_class),
    Wrong("a corrupt image", "distillab train --data ./photos", 3, corrupt_image),
    Wrong("a file that is no archive", "distillab train --data ./notes.txt", 3, text("notes.txt", "milk, bread")),
    Wrong("a teacher that is missing", "distillab distill --teacher teacher.pth", 4),
    Wrong("a teacher that is text", "distillab distill --teacher teacher.pth", 4, text("teacher.pth", "hello")),
    Wrong("a teacher that is empty", "distillab distill --teacher teacher.pth", 4, text("teacher.pth", "")),
    Wrong("a teacher that holds code", "distillab distill --teacher teacher.pth", 4, pickled_code),
    Wrong("a teacher that is some pickle", "distillab distill --teacher teacher.pth", 4, plain_pickle),
    Wrong("a teacher with other classes", "distillab distill --teacher teacher.pth", 4, weights(7)),
    Wrong(
        "a teacher of another architecture",
        "distillab distill --teacher teacher.pth --teacher-model cnn8",
        4,
        bare_weights,
    ),
    Wrong("a teacher cut short", "distillab distill --teacher teacher.safetensors", 4, cut_weights),
    Wrong("a teacher's folder without weights", "distillab distill --teacher run", 4, empty_folder("run")),
    Wrong("a run folder that is a file", "distillab train --output run", 4, text("run", "mine")),
    Wrong("a run folder below a file", "distillab train --output run/1", 4, text("run", "mine")),
    Wrong("a run folder that holds something", "distillab train --output run", 4, full_output),
    Wrong("to evaluate nothing", "distillab evaluate", 2),
    Wrong("to evaluate what is not there", "distillab evaluate run", 4),
    Wrong("to evaluate a folder without weights", "distillab evaluate run", 4, empty_folder("run")),
    Wrong("to evaluate a damaged run", "distillab evaluate run", 4, damaged_run),
    Wrong("to evaluate a run that lost its weights", "distillab evaluate run", 4, lost_weights),
    Wrong("to evaluate on nobody knows what", "distillab evaluate teacher.pth", 2, weights()),
    Wrong("to evaluate on other classes", "distillab evaluate teacher.pth --data ./photos", 2, with_images),
    Wrong("an evaluation in batches of none", "distillab evaluate teacher.pth --batch-size 0", 2, weights()),
    Wrong("to predict without images", "distillab predict teacher.pth", 2, weights()),
    Wrong("to predict an empty folder", "distillab predict teacher.pth photos", 3, with_empty_folder),
    Wrong("to predict what is not there", "distillab predict teacher.pth cat.png", 3, weights()),
    Wrong("to predict a text", "distillab predict teacher.pth letter.png", 3, with_a_letter),
    Wrong(
        "predictions to an unknown kind of file", "distillab predict teacher.pth photos --output p.xls", 2, with_images
    ),
    Wrong("train.py: a flag that is misspelt", "train.py --num_classes 10", 2),
    Wrong("train.py: an unknown size", "train.py --model_size tiny", 2),
    Wrong("train.py: classes that cannot be downloaded", "train.py --num_class 20", 2),
    Wrong("train.py: a folder with other classes", "train.py --data ./photos --num_class 10", 3, photos),
    Wrong("train.py: no place for the weights", "train.py --data digits", 4, text("logs", "a file")),
    Wrong("train_kd.py: an unknown method", "train_kd.py --kd mbd", 2),
    Wrong("train_kd.py: no teacher yet", "train_kd.py --model_type resnet --epoch 3 --kd multi", 4),
    Wrong(
        "train_kd.py: a teacher that is missing",
        "train_kd.py --teacher best.pth --data ./photos --num_class 2",
        4,
        photos,
    ),
    Wrong("compare: an axis without values", "distillab compare --axis --dry-run", 2),
    Wrong("compare: a method that is there twice", "distillab compare --methods st,st --dry-run", 2),
    Wrong("compare: a value that is there twice", "distillab compare --axis distill.temperature=2,2 --dry-run", 2),
    Wrong("compare: an axis that changes no result", "distillab compare --axis cache-gib=0,4 --dry-run", 2),
    Wrong(
        "train_kd.py: a teacher with other classes",
        "train_kd.py --teacher teacher.pth --data ./photos --num_class 2 --epoch 1",
        4,
        other_teacher,
    ),
)


@pytest.mark.parametrize("wrong", [pytest.param(wrong, id=wrong.name) for wrong in WRONG])
def test_a_wrong_use_is_answered(
    wrong: Wrong, command: shell.Command, tmp_path: Path, snapshot: SnapshotAssertion
) -> None:
    wrong.prepare(tmp_path)
    program, *words = wrong.line.split()
    outcome = command(*words, program=PROGRAMS[program])
    shown = outcome.err.replace(str(tmp_path), "<tmp>")
    assert outcome.out == ""
    assert "Traceback" not in shown
    assert "\x1b" not in shown
    error = shown[shown.index("error: ") :]
    assert error.count("\n") <= 6
    assert "  where: " in error or "  try:   " in error
    assert {"line": wrong.line, "code": outcome.code, "error": error.splitlines()} == snapshot
    assert outcome.code == wrong.code
