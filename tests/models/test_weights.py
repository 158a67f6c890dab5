"""Weight files: what was saved comes back, published ones load, and what they are is recognised."""

import json
import textwrap
from collections import OrderedDict

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from distillab.errors import CheckpointError, ConfigError, StorageError
from distillab.models.catalog import build_model
from distillab.models.classifier import NormalizedModel, get_normalization
from distillab.models.weight_files import read_weights
from distillab.models.weights import load_model, save_weights, weights_sha256
from saved_weights import SAVE, published_cnn16, published_resnet98, trained

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def assert_same_state(a, b):
    a, b = a.published().state_dict(), b.published().state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("suffix", SAVE)
def test_a_model_comes_back_whole(tmp_path, suffix):
    model = trained(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).to(memory_format=torch.channels_last)
    model.classes = tuple("abcdefghij")
    path = tmp_path / "runs" / f"model{suffix}"
    SAVE[suffix](model, path, {"source": "cifar10"})
    loaded = load_model(path, num_classes=10, spec="cnn16")
    assert_same_state(model, loaded)
    assert get_normalization(loaded) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (loaded.spec, loaded.num_classes, loaded.classes) == ("cnn16", 10, tuple("abcdefghij"))
    assert not any(module.training for module in loaded.modules())
    assert read_weights(path)[1]["source"] == "cifar10"


def test_metadata_is_one_sorted_json_string_under_one_key(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(build_model("cnn16", 3, mean=MEAN, std=STD), path, {"zebra": 1, "classes": ["a", "b", "c"]})
    with safetensors.safe_open(path, framework="pt") as stream:
        header = stream.metadata()
    assert list(header) == ["distillab"]
    metadata = json.loads(header["distillab"])
    assert header["distillab"] == json.dumps(metadata, sort_keys=True)
    digest = metadata.pop("sha256")
    assert len(digest) == 64
    assert metadata == {
        "classes": ["a", "b", "c"],
        "format_version": 1,
        "image_size": 32,
        "mean": list(MEAN),
        "model": "cnn16",
        "num_classes": 3,
        "std": list(STD),
        "zebra": 1,
    }


@pytest.mark.parametrize("suffix", SAVE)
def test_the_same_model_gives_the_same_bytes(tmp_path, suffix):
    model = trained()
    for name in ("one", "another"):
        SAVE[suffix](model, tmp_path / f"{name}{suffix}", {"b": 1, "a": [1, {"d": 0.1, "c": None}]})
    files = [sorted(tmp_path.glob(f"{name}.*")) for name in ("one", "another")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.parametrize("name", ["format_version", "model", "mean", "sha256"])
def test_metadata_cannot_contradict_the_model(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        save_weights(build_model("cnn16", 10), tmp_path / "model.safetensors", {name: "mine"})
    assert not list(tmp_path.iterdir())


def test_a_foreign_module_is_saved_under_its_own_names(tmp_path):
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 4))
    inner[2].weight = inner[1].weight = nn.Parameter(torch.rand(4, 4))  # tied
    save_weights(NormalizedModel(inner, 4, image_size=2), tmp_path / "model.safetensors", {})
    tensors, metadata = read_weights(tmp_path / "model.safetensors")
    assert set(tensors) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert metadata["model"] == "torch.nn.modules.container:Sequential"


def test_a_model_that_does_not_say_how_it_was_built_is_not_saved(tmp_path):
    for save in SAVE.values():
        with pytest.raises(ConfigError, match="NormalizedModel"):
            save(nn.Linear(2, 2), tmp_path / "model.pth", {})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for suffix, save in SAVE.items():
        with pytest.raises(StorageError) as caught:
            save(build_model("cnn16", 10), tmp_path / "file" / f"model{suffix}", {})
        assert "file" in caught.value.where


@pytest.mark.parametrize(
    ("make", "model"), [(published_cnn16, "cnn16"), (published_resnet98, "resnet98")], ids=["cnn16", "resnet98"]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_published_checkpoints_load_as_they_are(tmp_path, make, model, suffix, num_classes):
    state, path, notes = make(num_classes), tmp_path / f"published{suffix}", []
    if suffix == ".pth":
        torch.save(OrderedDict(state), path)
    else:
        safetensors.torch.save_file(state, path)
    loaded = load_model(path, observer=notes.append)
    assert (loaded.spec, loaded.num_classes, loaded.classes) == (model, num_classes, None)
    mine = loaded.state_dict()
    assert set(mine) == set(state)
    assert all(torch.equal(mine[name], state[name]) for name in state)
    published = {
        10: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        100: ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }
    assert get_normalization(loaded) == published[num_classes]
    assert len(notes) == 1
    assert str(path) in notes[0].text
    assert str(list(published[num_classes][0])) in notes[0].text


@pytest.mark.parametrize("name", ["cnn8", "cnn12", "cnn16", "resnet50", "resnet71", "resnet98"])
def test_each_of_the_six_is_recognised_by_its_weights(tmp_path, name):
    torch.save(build_model(name, 7).state_dict(), tmp_path / "bare.pth")
    notes = []
    loaded = load_model(tmp_path / "bare.pth", observer=notes.append)
    assert (loaded.spec, loaded.num_classes) == (name, 7)
    # Nobody published statistics for 7 classes: none are applied, and that is said.
    assert get_normalization(loaded) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert "none at all" in notes[0].text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"module." + name: value for name, value in state.items()},
        lambda state: {"state_dict": {"module._orig_mod." + name: value for name, value in state.items()}},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_common_wrappings_are_taken_off(tmp_path, wrap, suffix):
    model = trained()
    torch.save(wrap(model.state_dict()), tmp_path / f"wrapped{suffix}")
    assert_same_state(load_model(tmp_path / f"wrapped{suffix}"), model)


def test_loading_does_not_move_the_global_generator(tmp_path):
    save_weights(build_model("cnn16", 10), tmp_path / "model.safetensors", {})
    before = torch.get_rng_state()
    load_model(tmp_path / "model.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def small(num_classes):
                return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, num_classes))
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_models:small"


def test_a_model_of_the_user_loads_only_when_its_code_is_allowed(tmp_path, user_module):
    model = build_model(user_module, 4, mean=MEAN, std=STD, image_size=4)
    path, notes = tmp_path / "model.safetensors", []
    save_weights(model, path, {})
    with pytest.raises(ConfigError, match="--allow-code"):
        load_model(path, observer=notes.append)
    assert not notes
    loaded = load_model(path, allow_code=True, observer=notes.append)
    assert_same_state(loaded, model)
    assert loaded.image_size == 4
    assert user_module in notes[0].text


def test_foreign_weights_without_metadata_load_with_a_spec_and_a_number_of_classes(tmp_path, user_module):
    model = build_model(user_module, 10, image_size=4)
    torch.save(model.published().state_dict(), tmp_path / "foreign.pth")
    with pytest.raises(CheckpointError, match="how many classes"):
        load_model(tmp_path / "foreign.pth", spec=user_module, allow_code=True)
    loaded = load_model(tmp_path / "foreign.pth", spec=user_module, num_classes=10, allow_code=True)
    assert_same_state(loaded, model)
    assert get_normalization(loaded) == (MEAN, STD)


def test_a_run_folder_is_loaded_by_its_result(tmp_path):
    save_weights(build_model("cnn12", 4), tmp_path / "student.safetensors", {})
    save_weights(build_model("cnn16", 4), tmp_path / "best.safetensors", {})
    assert load_model(tmp_path).spec == "cnn12"
    (tmp_path / "result.json").write_text('{"weights": "best.safetensors"}')
    assert load_model(tmp_path).spec == "cnn16"
    (tmp_path / "result.json").write_text('{"weights": "../elsewhere.safetensors"}')
    assert load_model(tmp_path).spec == "cnn12"
    (tmp_path / "result.json").write_text('{"weights": "gone.safetensors"}')
    with pytest.raises(CheckpointError, match="no such weight file"):
        load_model(tmp_path)
    (tmp_path / "result.json").write_text('{"weights": ')
    with pytest.raises(CheckpointError, match="damaged"):
        load_model(tmp_path)


def test_a_folder_without_a_result_is_loaded_by_the_name_of_its_weights(tmp_path):
    with pytest.raises(CheckpointError, match="no weights in this folder") as caught:
        load_model(tmp_path)
    assert caught.value.where == str(tmp_path)
    save_weights(build_model("cnn16", 3), tmp_path / "one.safetensors", {})
    assert load_model(tmp_path).num_classes == 3
    save_weights(build_model("cnn16", 4), tmp_path / "two.safetensors", {})
    with pytest.raises(CheckpointError, match=r"one\.safetensors, two\.safetensors"):
        load_model(tmp_path)
    save_weights(build_model("cnn16", 5), tmp_path / "teacher.safetensors", {})
    assert load_model(tmp_path).num_classes == 5
    save_weights(build_model("cnn16", 6), tmp_path / "student.safetensors", {})
    assert load_model(tmp_path).num_classes == 6


def test_the_hash_follows_everything_that_decides_the_logits(tmp_path):
    model = trained(mean=MEAN, std=STD)
    first = weights_sha256(model)
    assert len(first) == 64
    save_weights(model, tmp_path / "model.safetensors", {"classes": list("abcdefghij")})
    assert weights_sha256(load_model(tmp_path / "model.safetensors")) == first
    assert weights_sha256(model.to(memory_format=torch.channels_last)) == first
    hashes = {first}
    with torch.no_grad():
        model.mlp.fc2.bias[0] += 1e-3
        hashes.add(weights_sha256(model))
        model.layer1[0].bn.running_mean[0] += 1e-3
        hashes.add(weights_sha256(model))
    model.normalize.assign((0.4, 0.4, 0.4), STD)
    hashes.add(weights_sha256(model))
    model.spec = "another"
    hashes.add(weights_sha256(model))
    assert len(hashes) == 5
