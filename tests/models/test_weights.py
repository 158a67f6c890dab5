import json
import random
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
from distillab.models.weight_files import read_weights, write_pickle, write_safetensors
from distillab.models.weights import load_model, save_classic, save_weights, weights_sha256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SAVE = {".safetensors": save_weights, ".pth": save_classic}
BN = ("weight", "bias", "running_mean", "running_var")


def tiny():
    """A tensor of each awkward sort: matrix, scalar integer, half precision, empty."""
    return {
        "fc.weight": torch.arange(6.0).reshape(2, 3),
        "fc.bias": torch.tensor([0.5, -0.5], dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }


def conv_entries(prefix, out_channels, in_channels, size):
    return {f"{prefix}.weight": torch.randn(out_channels, in_channels, size, size)}


def norm_entries(prefix, channels):
    entries = {f"{prefix}.{name}": torch.rand(channels) for name in BN}
    return {**entries, f"{prefix}.num_batches_tracked": torch.tensor(3)}


def published_cnn16(num_classes):
    """A state dict in the published layout, written from its description and not from the model."""
    state, before = {}, 3
    for stage, width in ((1, 16), (2, 32), (3, 64), (4, 128)):
        for i in range(4):
            state |= conv_entries(f"layer{stage}.{i}.conv", width, before, 3)
            state[f"layer{stage}.{i}.conv.bias"] = torch.randn(width)
            state |= norm_entries(f"layer{stage}.{i}.bn", width)
            before = width
    state |= {"mlp.fc1.weight": torch.randn(128, 128), "mlp.fc1.bias": torch.randn(128)}
    return state | {"mlp.fc2.weight": torch.randn(num_classes, 128), "mlp.fc2.bias": torch.randn(num_classes)}


def published_resnet98(num_classes):
    """As `published_cnn16`, for ResNet98."""
    state = conv_entries("conv1.0", 16, 3, 3) | norm_entries("conv1.1", 16)
    before = 16
    for stage, blocks, width in ((2, 6, 16), (3, 8, 32), (4, 12, 64), (5, 6, 128)):
        for i in range(blocks):
            block = f"conv{stage}_x.{i}.residual_function"
            state |= conv_entries(f"{block}.0", width, before, 1) | norm_entries(f"{block}.1", width)
            state |= conv_entries(f"{block}.4", width, width, 3) | norm_entries(f"{block}.5", width)
            state |= conv_entries(f"{block}.8", 4 * width, width, 1) | norm_entries(f"{block}.9", 4 * width)
            if i == 0:
                shortcut = f"conv{stage}_x.{i}.shortcut"
                state |= conv_entries(f"{shortcut}.0", 4 * width, before, 1) | norm_entries(f"{shortcut}.1", 4 * width)
            before = 4 * width
    return state | {"fc.weight": torch.randn(num_classes, 512), "fc.bias": torch.randn(num_classes)}


def trained(name="cnn16", num_classes=10, **kwargs):
    """A model whose every tensor differs from a new one's."""
    model = build_model(name, num_classes, **kwargs)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1 if tensor.dtype == torch.int64 else torch.rand_like(tensor)
    return model


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


# --- damage -----------------------------------------------------------------------------------------------------


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


# --- the wrong model --------------------------------------------------------------------------------------------


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


# --- run folders ------------------------------------------------------------------------------------------------


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


# --- the hash of a teacher --------------------------------------------------------------------------------------


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
