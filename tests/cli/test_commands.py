"""The verbs on real files: a model that is trained, evaluated, asked and distilled, small enough to be quick."""

from __future__ import annotations

import csv
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import shell
from distillab.classic import run_train_kd_py, run_train_py

QUICK = ("--training.epochs", "1", "--training.batch-size", "8")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for shade, label in ((60, "cat"), (190, "dog [bold]")):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(20):
            pixels = (shade + generator.integers(-50, 50, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture
def trained(photos: Path, command: shell.Command, tmp_path: Path) -> Path:
    outcome = command("train", "--data", "./photos", "--model", "cnn16", "--output", "trained", *QUICK)
    assert outcome.code == 0, outcome.err
    return tmp_path / "trained"


def test_a_run_ends_in_a_table_and_a_folder(photos: Path, command: shell.Command, tmp_path: Path) -> None:
    outcome = command("train", "--data", "./photos", "--role", "student", "--output", "run", *QUICK)
    assert outcome.code == 0
    head, row, *_ = outcome.out.splitlines()
    assert head.split()[:2] == ["method", "model"]
    assert row.split()[:2] == ["student", "cnn16"]
    assert outcome.out.splitlines()[-1] == "run folder: run"
    assert "epoch 1/1" in outcome.err
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["training"]["epochs"] == 1


def test_json_of_a_run_is_its_result(photos: Path, command: shell.Command, tmp_path: Path) -> None:
    outcome = command("train", "--data", "./photos", "--output", "run", "--json", "--quiet", *QUICK)
    shown = json.loads(outcome.out)
    assert shown.pop("run_dir") == "run"
    assert shown == json.loads((tmp_path / "run" / "result.json").read_text())
    assert outcome.err == ""


def test_a_dry_run_trains_nothing(photos: Path, command: shell.Command, tmp_path: Path) -> None:
    words = ("distill", "--data", "./photos", "--method", "fitnet", "--training.epochs", "4", "--output", "run")
    outcome = command(*words, "--dry-run", "--json")
    plan = json.loads(outcome.out)
    assert [stage["method"] for stage in plan["stages"]] == ["cross_entropy", "hint", "soft_target"]
    assert not (tmp_path / "run").exists()
    shown = command(*words, "--dry-run").out
    assert "705,402" not in shown  # two classes, not ten
    assert "cnn8" in shown
    assert "nothing was trained" in shown


def test_distilling_shows_teacher_and_student(trained: Path, command: shell.Command) -> None:
    words = ("distill", "--data", "./photos", "--teacher", "trained", "--method", "mbd-soft", "--output", "student")
    outcome = command(*words, *QUICK)
    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()[:3]] == ["method", "teacher", "mbd-soft"]


def test_a_run_folder_is_a_recipe_and_flags_override_it(trained: Path, command: shell.Command) -> None:
    plan = json.loads(command("train", "--recipe", "trained", "--seed", "5", "--dry-run", "--json").out)
    assert plan["config"]["seed"] == 5
    assert plan["config"]["data"] == str(trained.parent / "photos")  # from whatever folder it is read
    assert plan["config"]["training"]["batch_size"] == 8


def test_a_run_is_evaluated_on_its_own_test_images(trained: Path, command: shell.Command) -> None:
    result = json.loads((trained / "result.json").read_text())
    outcome = command("evaluate", "trained", "--json")
    assert json.loads(outcome.out)["test"]["top1"] == pytest.approx(result["test"]["top1"])
    shown = command("evaluate", "trained", "--teacher", "trained").out
    assert "agreement %" in shown.splitlines()[0]
    assert "100.0" in shown.splitlines()[1]


def test_predictions_are_csv_or_json(trained: Path, command: shell.Command, tmp_path: Path) -> None:
    outcome = command("predict", "trained", "photos", "photos/cat/0.png", "--quiet")
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert len(rows) == 41
    assert {row["class"] for row in rows} <= {"cat", "dog [bold]"}
    found = json.loads(command("predict", "trained", "photos", "--json").out)["predictions"]
    assert [record["file"] for record in found] == [row["file"] for row in rows[:-1]]
    assert all(sum(record["probabilities"].values()) == pytest.approx(1.0) for record in found)


@pytest.mark.parametrize("name", ["p.csv", "p.json"])
def test_predictions_are_written_to_a_file(name: str, trained: Path, command: shell.Command, tmp_path: Path) -> None:
    outcome = command("predict", "trained", "photos/cat", "--output", name)
    assert outcome.out == f"20 predictions: {name}\n"
    text = (tmp_path / name).read_text()
    records = json.loads(text) if name == "p.json" else list(csv.DictReader(text.splitlines()))
    assert [Path(record["file"]).name for record in records] == sorted(f"{number}.png" for number in range(20))


CLASSIC = ("--num_class", "2", "--data", "./photos", "--epoch", "1", "--batch_size", "8")


def test_the_classic_commands_leave_their_files(photos: Path, command: shell.Command, tmp_path: Path) -> None:
    outcome = command(*CLASSIC, program=run_train_py)
    assert outcome.code == 0, outcome.err
    weights = tmp_path / "logs" / "teacher" / "normal_1_8_2_param.pth"
    assert outcome.out.endswith("saved: logs/teacher/normal_1_8_2_param.pth\n")
    assert "layer1.0.conv.weight" in torch.load(weights, weights_only=True)
    assert json.loads(weights.with_suffix(".json").read_text())["classes"] == ["cat", "dog [bold]"]
    outcome = command("--kd", "takd", *CLASSIC, program=run_train_kd_py)
    assert outcome.code == 0, outcome.err
    for size in ("ta", "student"):
        assert (tmp_path / "logs" / size / "normal_1_8_2_takd_param.pth").is_file()
        assert (tmp_path / "logs" / size / "normal_1_8_2_takd_param.json").is_file()
    assert not (tmp_path / "runs").exists()


def test_a_classic_teacher_may_have_any_name(photos: Path, command: shell.Command, tmp_path: Path) -> None:
    assert command("--model_size", "ta", *CLASSIC, program=run_train_py).code == 0
    (tmp_path / "logs" / "ta" / "normal_1_8_2_param.pth").rename(tmp_path / "best.pth")  # its .json stays behind
    outcome = command("--teacher", "best.pth", "--kd", "mbd-hard", *CLASSIC, program=run_train_kd_py)
    assert outcome.code == 0, outcome.err
    assert [line.split()[:2] for line in outcome.out.splitlines()[1:3]] == [["teacher", "cnn12"], ["mbd-hard", "cnn16"]]


def test_a_classic_teacher_that_is_called_like_a_model_is_the_file(command: shell.Command, tmp_path: Path) -> None:
    (tmp_path / "cnn8").write_text("no weights")
    outcome = command("--teacher", "./cnn8", "--num_class", "10", "--data", "digits", program=run_train_kd_py)
    assert outcome.code == 4
    assert f"{tmp_path / 'cnn8'}" in outcome.err


def test_each_weight_file_of_a_run_is_evaluated_as_the_run_was(trained: Path, command: shell.Command) -> None:
    result = json.loads((trained / "result.json").read_text())
    outcome = command("evaluate", "trained/student.safetensors", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["data"] == result["data"]
    assert found["test"]["top1"] == pytest.approx(result["test"]["top1"])


def test_weights_without_a_run_are_evaluated_on_data_that_is_named(trained: Path, command: shell.Command) -> None:
    (trained / "student.safetensors").rename(trained.parent / "mine.safetensors")
    outcome = command("evaluate", "mine.safetensors")
    assert outcome.code == 2
    assert "--data" in outcome.err
    assert command("evaluate", "mine.safetensors", "--data", "./photos", "--split.train-limit", "8").code == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("distill", "--student", "cnn99", "--training.epochs", "1"), 2),
        (("distill", "--teacher", "./none.pth"), 4),
        (("distill", "--teacher", "cnn99"), 2),
        (("train", "--model", "cnn99"), 2),
        (("train", "--model", "tiny:build_flat"), 2),  # of images of another size
    ],
)
def test_a_run_that_cannot_start_leaves_no_folder(
    words: tuple[str, ...], code: int, command: shell.Command, tmp_path: Path
) -> None:
    assert command(*words, "--output", "run").code == code
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_a_folder_that_the_run_would_refuse(command: shell.Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    outcome = command("train", "--output", "run", "--dry-run")
    assert outcome.code == 4
    assert "not empty" in outcome.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
