import csv
import json
import shutil
import tomllib

import pytest
import torch
from PIL import Image
from safetensors import safe_open

import tiny
from comparing_runs import differing
from distillab import inference
from distillab.commands.evaluate import settings_of_run
from distillab.config import resolve_distill, resolve_train
from distillab.errors import CheckpointError, ConfigError, ShapeError
from distillab.inference import evaluate_file, predict_files
from distillab.models.catalog import MODELS, ModelInfo, build_model
from distillab.models.weights import load_model, save_weights
from distillab.preview import preview
from distillab.recipe import load_recipe
from distillab.run import run_one
from distillab.runtime.events import Note
from distillab.runtime.run_dir import RunDir


def distill(folder, **flags):
    config = resolve_distill(tiny.RECIPE, {"output": folder, **flags})
    return run_one(config, allow_code=True, command=["distillab", "distill"])


def train(folder, **flags):
    return run_one(resolve_train(tiny.RECIPE, {"output": folder, **flags}), allow_code=True)


def test_a_run_folder_holds_all_that_is_needed_to_repeat_and_use_the_run(tmp_path):
    result = distill(tmp_path / "run", method="takd")
    names = {path.name for path in result.run_dir.iterdir()}
    assert names >= {
        "config.toml",
        "env.json",
        "command.txt",
        "log.txt",
        "metrics.csv",
        "metrics.jsonl",
        "timing.jsonl",
        "teacher.safetensors",
        "assistant.safetensors",
        "student.safetensors",
        "result.json",
    }
    assert json.loads((result.run_dir / "result.json").read_text()) == json.loads(json.dumps(result.summary))
    lines = [json.loads(line) for line in (result.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        (stage, epoch) for stage in ("teacher alone", "assistant by takd", "student by takd") for epoch in (1, 2)
    ]
    with safe_open(result.run_dir / "student.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["distillab"])
    assert metadata["classes"] == list(tiny.CLASSES)
    assert metadata["model"] == "tiny:build"
    assert metadata["mean"] == [0.3, 0.3, 0.3]
    assert metadata["source"]["method"] == "takd"
    assert len(metadata["source"]["run_sha256"]) == 64
    assert metadata["source"]["run_sha256"] == result.summary["run_sha256"]


def test_the_same_settings_give_the_same_files_to_the_last_bit(tmp_path):
    first, second = (distill(tmp_path / name, method="multi", seed=7) for name in ("a", "b"))
    assert differing(first.run_dir, second.run_dir) == []


def test_where_the_teacher_lies_does_not_decide_what_the_student_file_holds(tmp_path):
    train(tmp_path / "teacher", role="teacher")
    here, there, other = (tmp_path / f"{name}.safetensors" for name in ("here", "there", "other"))
    for path in (here, there):
        shutil.copy(tmp_path / "teacher" / "teacher.safetensors", path)
    save_weights(build_model("tiny:build_wide", 3, image_size=tiny.SIZE), other, {})
    runs = [distill(tmp_path / path.stem, teacher=str(path)) for path in (here, there, other)]
    first, second = ((run.run_dir / "student.safetensors").read_bytes() for run in runs[:2])
    assert first == second
    identities = [run.summary["run_sha256"] for run in runs]
    assert identities[0] == identities[1] != identities[2]


def test_another_seed_gives_another_student(tmp_path):
    first, second = (distill(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    a, b = (r.models["student"].state_dict()["inner.head.weight"] for r in (first, second))
    assert not torch.equal(a, b)


def test_the_config_of_a_run_repeats_it(tmp_path):
    first = distill(tmp_path / "a", method="mbd-soft", distill={"temperature": 2.0})
    recipe = load_recipe(str(tmp_path / "a"), allow_code=True)
    again = run_one(resolve_distill(recipe, {"output": tmp_path / "b"}), allow_code=True)
    assert differing(again.run_dir, first.run_dir) == []
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["distill"]["temperature"] == 2.0


def test_a_teacher_from_a_run_folder_is_the_one_that_was_trained(tmp_path):
    teacher = train(tmp_path / "teacher", role="teacher")
    student = distill(tmp_path / "student", teacher=str(tmp_path / "teacher"))
    assert student.summary["teacher"]["test"]["top1"] == teacher.summary["test"]["top1"]
    assert student.summary["teacher"]["source"] == str(tmp_path / "teacher")
    assert not (tmp_path / "student" / "teacher.safetensors").exists()


def test_the_student_alone_and_the_distilled_one_start_from_the_same_weights(tmp_path):
    flags = {
        "training": {"epochs": 1, "batch_size": 16, "recalibrate_batchnorm": False},
        "optimizer": {"learning_rate": 1e-9},
    }
    alone = train(tmp_path / "alone", role="student", **flags).models["student"]
    distilled = distill(tmp_path / "st", **flags).models["student"]
    for a, b in zip(alone.parameters(), distilled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_best_on_validation_stands_beside_the_last(tmp_path):
    flags = {"training": {"epochs": 12, "batch_size": 16}, "optimizer": {"learning_rate": 0.6}}
    summary = train(tmp_path / "run", **flags).summary
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lowest = min(lines, key=lambda line: line["validation_loss"])
    assert summary["best"]["epoch"] == lowest["epoch"]
    file = tmp_path / "run" / summary["best"]["weights"]
    assert file.exists()
    assert file.name == ("student.safetensors" if lowest["epoch"] == 12 else "student-best.safetensors")


def test_the_last_steps_weights_stand_beside_their_average(tmp_path):
    training = {**tiny.RECIPE["training"], "ema_decay": 0.9}
    averaged = train(tmp_path / "averaged", training=training)
    plain = train(tmp_path / "plain")
    assert averaged.summary["last"]["weights"] == "student-last.safetensors"
    assert averaged.summary["last"]["test"] == plain.summary["test"]  # an average does not change what it follows
    last = load_model(tmp_path / "averaged" / "student-last.safetensors", allow_code=True).state_dict()
    wanted = load_model(tmp_path / "plain" / "student.safetensors", allow_code=True).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in last.items())
    assert plain.summary["last"] is None


def test_without_validation_nothing_is_chosen(tmp_path):
    summary = train(tmp_path / "run", split={"validation_fraction": 0.0}).summary
    assert summary["validation"] is None
    assert summary["best"] is None
    assert summary["test"]["num_samples"] == 30


def test_nothing_is_written_where_nothing_is_to_be_kept(tmp_path, monkeypatch):
    result = run_one(resolve_train(tiny.RECIPE, {}), allow_code=True, save_run=False)
    assert result.run_dir is None
    assert result.summary["weights"] is None
    assert result.summary["best"]["weights"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_with_the_classes_in_another_order_is_refused(tmp_path):
    model = build_model("tiny:build_wide", 3, image_size=tiny.SIZE)
    save_weights(model, tmp_path / "t.safetensors", {"classes": ["green", "red", "blue"]})
    with pytest.raises(ShapeError, match="another order"):
        distill(tmp_path / "run", teacher=str(tmp_path / "t.safetensors"))


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    save_weights(build_model("tiny:build_wide", 4, image_size=tiny.SIZE), tmp_path / "t.safetensors", {})
    with pytest.raises(CheckpointError, match="4 classes, 3 are asked for"):
        distill(tmp_path / "run", teacher=str(tmp_path / "t.safetensors"))


@pytest.mark.parametrize(
    ("classes", "says"), [(("green", "red", "blue"), "another order"), (tuple("abcd"), "4 classes")]
)
def test_what_is_evaluated_must_know_the_classes_of_the_data(tmp_path, classes, says):
    model = build_model("tiny:build", len(classes), image_size=tiny.SIZE)
    save_weights(model, tmp_path / "wrong.safetensors", {"classes": classes})
    save_weights(build_model("tiny:build", 3, image_size=tiny.SIZE), tmp_path / "right.safetensors", {})
    config = resolve_train(tiny.RECIPE, {})
    with pytest.raises(ShapeError, match=says):
        evaluate_file(str(tmp_path / "wrong.safetensors"), config, allow_code=True)
    with pytest.raises((ShapeError, CheckpointError), match=says):
        evaluate_file(
            str(tmp_path / "right.safetensors"), config, teacher=str(tmp_path / "wrong.safetensors"), allow_code=True
        )


def test_classes_of_other_names_are_told(tmp_path):
    model = build_model("tiny:build", 3, image_size=tiny.SIZE)
    save_weights(model, tmp_path / "m.safetensors", {"classes": ("rouge", "vert", "bleu")})
    notes = []
    evaluate_file(
        str(tmp_path / "m.safetensors"), resolve_train(tiny.RECIPE, {}), allow_code=True, observer=notes.append
    )
    assert any("rouge" in note.text for note in notes)


def test_a_teacher_of_images_of_another_size_is_refused(tmp_path):
    save_weights(build_model("tiny:build_wide", 3, image_size=24), tmp_path / "t.safetensors", {})
    with pytest.raises(ShapeError, match="24x24, not 16x16"):
        distill(tmp_path / "run", teacher=str(tmp_path / "t.safetensors"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ShapeError, match="24x24, not 16x16"):
        evaluate_file(str(tmp_path / "t.safetensors"), resolve_train(tiny.RECIPE, {}), allow_code=True)


def test_weights_that_say_nothing_are_used_as_what_they_are_said_to_be(tmp_path):
    torch.save(build_model("tiny:build", 3, image_size=tiny.SIZE).inner.state_dict(), tmp_path / "m.pth")
    config = resolve_train(tiny.RECIPE, {"image_size": tiny.SIZE})
    found = evaluate_file(str(tmp_path / "m.pth"), config, model="tiny:build", allow_code=True)
    assert found["test"]["num_samples"] == len(tiny.dataset().test)
    image = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(image)
    with pytest.raises(CheckpointError) as caught:
        predict_files(str(tmp_path / "m.pth"), [image], model="tiny:build", allow_code=True)
    assert "--num-classes" in caught.value.hint
    (seen,) = predict_files(str(tmp_path / "m.pth"), [image], model="tiny:build", num_classes=3, allow_code=True)
    assert len(seen["probabilities"]) == 3


def test_an_evaluation_uses_as_many_threads_as_it_is_given(tmp_path, monkeypatch):
    save_weights(build_model("tiny:build", 3, image_size=tiny.SIZE), tmp_path / "m.safetensors", {})
    seen = []
    real = inference.evaluate
    monkeypatch.setattr(inference, "evaluate", lambda *a, **k: seen.append(torch.get_num_threads()) or real(*a, **k))
    threads = torch.get_num_threads() + 1
    config = resolve_train(tiny.RECIPE, {"threads": threads})
    evaluate_file(str(tmp_path / "m.safetensors"), config, allow_code=True)
    assert seen == [threads]
    assert torch.get_num_threads() == threads - 1


def test_an_evaluation_computes_as_its_run_did(tmp_path):
    train(tmp_path / "run", training={"epochs": 1, "batch_size": 16, "precision": "bfloat16"})
    for source in (tmp_path / "run", tmp_path / "run" / "student.safetensors"):
        settings = settings_of_run(source, allow_code=True)
        assert settings["training"] == {"precision": "bfloat16"}
        assert settings["data"] == "tiny:dataset"


def test_a_run_folder_is_given_up_also_when_it_cannot_be_described(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError("the disk is gone")

    monkeypatch.setattr(RunDir, "describe", fail)
    with pytest.raises(OSError, match="gone"):
        train(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.parametrize("look", [preview, run_one])
def test_all_models_that_learn_decide_on_the_size_of_images(look, monkeypatch):
    small = ModelInfo("small", "assistant", "normal", "", parameters=0, macs=0, builder=tiny.build, input_size=16)
    monkeypatch.setitem(MODELS, "small", small)
    recipe = {key: value for key, value in tiny.RECIPE.items() if key != "image_size"}
    config = resolve_distill({**recipe, "assistant": "small"}, {"method": "takd"})
    with pytest.raises(ShapeError, match="images of different sizes"):
        look(config, allow_code=True)


def test_a_missing_teacher_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(CheckpointError, match="not there"):
        distill(tmp_path / "run", teacher=str(tmp_path / "none.pth"))


def test_a_preview_builds_everything_and_keeps_nothing(tmp_path, monkeypatch):
    found = preview(resolve_distill(tiny.RECIPE, {"method": "multi"}), allow_code=True)
    assert [stage["role"] for stage in found["stages"]] == ["teacher", "assistant", "assistant", "student", "student"]
    assert {model["role"] for model in found["models"]} == {"teacher", "assistant", "student"}
    assert all(model["parameters"] > 0 and model["macs"] > 0 for model in found["models"])
    assert found["seconds"] > 0
    assert found["data"]["train"] + found["data"]["validation"] == 72
    json.dumps(found)
    assert list(tmp_path.iterdir()) == []


def test_a_preview_of_a_baseline_is_one_stage(tmp_path):
    found = preview(resolve_train(tiny.RECIPE, {"role": "assistant"}), allow_code=True)
    assert [stage["title"] for stage in found["stages"]] == ["assistant alone"]


@pytest.fixture
def photos(tmp_path):
    from PIL import Image

    for split, images in (("train", tiny.dataset().train), ("test", tiny.dataset().test)):
        for number, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
            folder = tmp_path / "photos" / split / tiny.CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return tmp_path / "photos"


def test_from_a_folder_of_images_to_predictions(tmp_path, photos):
    flags = {"data": str(photos), "data_dir": tmp_path / "data", "training": {"epochs": 8, "batch_size": 16}}
    result = train(tmp_path / "run", **flags)
    config = resolve_train(tiny.RECIPE, {"data": str(photos), "data_dir": tmp_path / "data"})
    notes = []
    found = evaluate_file(
        str(tmp_path / "run"), config, teacher=str(tmp_path / "run"), allow_code=True, observer=notes.append
    )
    for key in ("top1", "nll", "ece"):
        assert found["test"][key] == pytest.approx(result.summary["test"][key], abs=1e-6)
    assert found["test"]["teacher_agreement"] == 1.0
    records = predict_files(str(tmp_path / "run"), [photos / "test"], device="cpu", allow_code=True)
    assert len(records) == 30
    right = sum(f"/{record['class']}/" in record["file"] for record in records)
    assert right / 30 == pytest.approx(result.summary["test"]["top1"])
    assert all(sum(record["probabilities"].values()) == pytest.approx(1.0) for record in records)
    assert all(isinstance(note, Note) for note in notes)
    json.dumps(records)


def test_weights_of_a_run_come_back_in_evaluation_mode(tmp_path):
    result = train(tmp_path / "run")
    loaded = load_model(tmp_path / "run", allow_code=True)
    images = torch.rand(4, 3, tiny.SIZE, tiny.SIZE)
    with torch.no_grad():
        assert torch.allclose(loaded(images), result.models["student"](images), atol=1e-6)


def test_a_layer_that_is_misspelt_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="the student has no layer 'secnd'") as caught:
        distill(tmp_path / "run", method="fitnet", distill={"guided_layer": "secnd"})
    assert "second" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_the_log_and_the_table_tell_what_the_json_lines_tell(tmp_path):
    folder = distill(tmp_path / "run", method="fitnet").run_dir
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert {name: value for name, value in row.items() if value} == {
            name: str(value) for name, value in line.items()
        }
    log = (folder / "log.txt").read_text().splitlines()
    epochs = [line for line in log if "  epoch " in line]
    assert len(epochs) == len(lines)
    assert "student by fitnet (hint)" in epochs[2]


def test_a_later_run_finds_the_teachers_logits_on_disk(tmp_path):
    teacher = train(tmp_path / "teacher", role="teacher").run_dir
    weights = []
    for name in ("first", "second"):
        flags = {
            "output": tmp_path / name,
            "teacher": str(teacher),
            "views": 1,
            "data_dir": tmp_path / "data",
            "cache_gib": 1.0,
        }
        result = run_one(resolve_distill(tiny.RECIPE, flags), allow_code=True)
        weights.append((result.run_dir / "student.safetensors").read_bytes())
        if name == "first":
            tables = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "logits").rglob("*.safetensors")}
    assert weights[0] == weights[1]
    assert len(tables) == 2  # of the training images in one view, and of the test images
    assert tables == {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "logits").rglob("*.safetensors")}


def test_a_set_above_the_limit_is_streamed_to_the_same_result(tmp_path):
    for name, limit in (("resident", None), ("streamed", 0.0)):
        flags = {"output": tmp_path / name, **({} if limit is None else {"resident_gib": limit})}
        run_one(resolve_train(tiny.RECIPE, flags), allow_code=True)
        said = (tmp_path / name / "log.txt").read_text()
        assert ("images streamed" if limit == 0.0 else "images on the device") in said
    assert differing(tmp_path / "resident", tmp_path / "streamed") == ["config.toml"]
