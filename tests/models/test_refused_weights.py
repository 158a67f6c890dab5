"""Files that are damaged, cut, no weights, or those of another model: refused by name, and none is ever run."""

import json
import random

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from distillab.errors import CheckpointError
from distillab.models.catalog import build_model
from distillab.models.weight_files import read_weights, write_pickle, write_safetensors
from distillab.models.weights import load_model, save_classic, save_weights
from saved_weights import SAVE, published_cnn16, published_resnet98, tiny, trained


def tiny_metadata():
    return {"model": "cnn16", "num_classes": 2, "mean": [0.5, 0.5, 0.5], "note": 'a "quoted" é'}


def test_any_flipped_bit_of_a_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "tiny.safetensors"
    write_safetensors(path, tiny(), tiny_metadata())
    whole = path.read_bytes()
    assert read_weights(path)[1]["num_classes"] == 2
    draw = random.Random(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_weights(path)


def test_any_flipped_bit_of_a_pth_with_its_json_is_refused(tmp_path):
    path = tmp_path / "tiny.pth"
    write_pickle(path, tiny(), tiny_metadata())
    assert read_weights(path)[1]["num_classes"] == 2
    draw = random.Random(0)
    for file in (path, path.with_suffix(".json")):
        whole = file.read_bytes()
        for position in range(0, len(whole), 1 if file.suffix == ".json" else 5):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                read_weights(path)
        file.write_bytes(whole)
    assert read_weights(path)[1]["num_classes"] == 2


def test_a_flipped_bit_of_a_saved_model_is_refused_on_load(tmp_path):
    for suffix, save in SAVE.items():
        path = tmp_path / f"model{suffix}"
        save(build_model("cnn16", 10), path, {})
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="SHA-256") as caught:
            load_model(path)
        assert caught.value.where == str(path)


def test_a_json_of_another_file_is_refused_and_one_of_another_tool_is_left_alone(tmp_path):
    for name in ("one", "two"):
        save_classic(trained(), tmp_path / f"{name}.pth", {})
    (tmp_path / "one.json").write_bytes((tmp_path / "two.json").read_bytes())
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_model(tmp_path / "one.pth")
    (tmp_path / "two.json").write_text('{"learning_rate": 0.1}')
    assert read_weights(tmp_path / "two.pth")[1] == {}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    "content",
    [b"", b"not weights at all\n", b"\x00" * 64, b"\xff" * 64, b"\x80\x02}q\x00", b"PK\x03\x04 cut", b"{}"],
    ids=["empty", "text", "zeros", "ones", "cut pickle", "cut zip", "json"],
)
def test_what_is_no_weight_file_is_refused_by_name(tmp_path, suffix, content):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert caught.value.where == str(path)
    assert len(str(caught.value).splitlines()) <= 6
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("suffix", SAVE)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"model{suffix}"
    SAVE[suffix](build_model("cnn16", 10), path, {})
    path.with_suffix(".json").unlink(missing_ok=True)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError):
        load_model(path)


def test_missing_files_folders_and_other_suffixes_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such weight file"):
        load_model(tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="folder"):
        read_weights(tmp_path)
    (tmp_path / "weights.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"'\.txt'"):
        load_model(tmp_path / "weights.txt")
    torch.save({}, tmp_path / "empty.pth")
    safetensors.torch.save_file({}, tmp_path / "empty.safetensors")
    for name in ("empty.pth", "empty.safetensors"):
        with pytest.raises(CheckpointError, match="no weights"):
            load_model(tmp_path / name)


class Executes:
    ran = False

    def __reduce__(self):
        return (setattr, (Executes, "ran", True))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"fc.weight": torch.zeros(2)}, "optimizer": Executes()},
        Executes(),
        nn.Linear(2, 2),
        torch.zeros(3),
        [torch.zeros(3)],
        {"fc.weight": torch.zeros(2), "epoch": 3},
        {3: torch.zeros(2)},
    ],
    ids=["code beside", "code", "module", "tensor", "list", "number", "number as name"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_anything_but_tensors_is_refused_and_never_run(tmp_path, content, zipped):
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"state_dict\(\)") as caught:
        load_model(path)
    assert "weights_only" not in str(caught.value)
    assert not Executes.ran


def test_a_newer_format_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "model.pth"
    save_classic(build_model("cnn16", 10), path, {})
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**record, "format_version": 2}))
    with pytest.raises(CheckpointError, match="upgrade"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_classes": "many"}, "num_classes"),
        ({"num_classes": 1}, "num_classes"),
        ({"mean": [0.5]}, "mean"),
        ({"std": [1, 1, 0]}, "std"),
        ({"model": None}, "model"),
        ({"image_size": 0}, "image_size"),
    ],
)
def test_metadata_that_make_no_sense_are_refused_by_name(tmp_path, change, field):
    whole = {"model": "cnn16", "num_classes": 10, "mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 32}
    write_safetensors(tmp_path / "model.safetensors", published_cnn16(10), whole)
    assert load_model(tmp_path / "model.safetensors").num_classes == 10
    write_safetensors(tmp_path / "model.safetensors", published_cnn16(10), whole | change)
    with pytest.raises(CheckpointError, match=field):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", SAVE)
def test_another_number_of_classes_than_asked_is_refused_with_both(tmp_path, suffix):
    SAVE[suffix](build_model("cnn16", 100), tmp_path / f"model{suffix}", {})
    with pytest.raises(CheckpointError, match=r"100 classes, 10 are asked"):
        load_model(tmp_path / f"model{suffix}", num_classes=10)


def test_another_model_than_asked_is_refused(tmp_path):
    save_weights(build_model("cnn16", 10), tmp_path / "model.safetensors", {})
    with pytest.raises(CheckpointError, match="holds a cnn16, a cnn8 is asked for"):
        load_model(tmp_path / "model.safetensors", spec="cnn8")


def test_weights_of_no_known_model_ask_for_one(tmp_path):
    for state in ({"fc.weight": torch.zeros(10, 3), "fc.bias": torch.zeros(10)}, {"w": torch.zeros(2)}):
        torch.save(state, tmp_path / "foreign.pth")
        with pytest.raises(CheckpointError, match="--teacher-model"):
            load_model(tmp_path / "foreign.pth")


def test_weights_that_do_not_fit_are_listed_with_both_shapes(tmp_path):
    state = published_cnn16(10)
    state["layer1.0.conv.weight"] = torch.zeros(32, 3, 3, 3)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv\.weight is \[32, 3, 3, 3\].*\[16, 3, 3, 3\]"):
        load_model(tmp_path / "odd.pth")
    del state["layer2.0.bn.running_var"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"running_var is missing; extra is not of this model"):
        load_model(tmp_path / "odd.pth", spec="cnn16", num_classes=10)
    torch.save(published_resnet98(10), tmp_path / "many.pth")
    write_safetensors(
        tmp_path / "many.safetensors",
        published_resnet98(10),
        {"model": "cnn16", "num_classes": 10, "mean": [0, 0, 0], "std": [1, 1, 1], "image_size": 32},
    )
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        load_model(tmp_path / "many.safetensors")
    assert len(str(caught.value)) < 400
