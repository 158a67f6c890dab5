import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distillab.data.catalog import DATASETS, Dataset, ImageSet, open_dataset
from distillab.data.cifar import CIFAR10
from distillab.errors import ConfigError, DataError


def test_the_catalog_is_read_without_torch_or_numpy():
    code = "import sys, distillab.data.catalog; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_digits_are_as_the_catalog_says(tmp_path):
    data, info = open_dataset("digits", data_dir=tmp_path, offline=True), DATASETS["digits"]
    assert (data.name, data.num_classes, data.image_size) == (info.name, info.num_classes, info.image_size)
    assert (len(data.train), len(data.test)) == (info.num_train, info.num_test)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_asked_for_by_name(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is not in"):
        open_dataset(name, data_dir=tmp_path, offline=True)


def test_a_file_of_the_right_name_and_wrong_content_is_refused(tmp_path):
    path = tmp_path / CIFAR10.file.name
    path.write_bytes(b"not it")
    for spec in (str(path), str(tmp_path)):
        with pytest.raises(DataError, match="has 6 bytes instead of 170,052,171"):
            open_dataset(spec, data_dir=tmp_path / "data", offline=True)


def test_a_folder_of_images_is_opened(tmp_path, notes):
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (12, 9), (index,) * 3).save(tmp_path / "own" / name / f"{index}.png")
    data = open_dataset(str(tmp_path / "own"), data_dir=tmp_path / "data", image_size=16, observer=notes)
    assert data.train.images.shape == (8, 16, 16, 3)
    assert notes


@pytest.mark.parametrize("spec", ["./none", "some/where", "~/surely/not/there", "/none"])
def test_a_path_that_does_not_exist_is_named(spec, tmp_path):
    with pytest.raises(DataError, match="no such file or folder") as caught:
        open_dataset(spec, data_dir=tmp_path)
    assert caught.value.where == spec


@pytest.mark.parametrize(("spec", "near"), [("cifar-10", "cifar10"), ("digit", "digits")])
def test_an_unknown_name_gets_the_nearest_one(spec, near):
    with pytest.raises(ConfigError, match=f"did you mean '{near}'"):
        open_dataset(spec)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(DataError, match="no archive"):
        open_dataset(str(tmp_path / "data.zip"))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_sets.py").write_text(
        "from test_data_catalog import toy\n\ndef nothing():\n    return 3\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_sets", None)


def toy():
    part = ImageSet(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2)
    return Dataset.from_arrays("toy", ("a", "b"), part, part)


@pytest.mark.usefixtures("own_module")
def test_code_runs_only_when_it_is_allowed_and_is_announced(notes):
    with pytest.raises(ConfigError, match="--allow-code"):
        open_dataset("my_sets:toy")
    assert "my_sets" not in sys.modules
    assert open_dataset("my_sets:toy", allow_code=True, observer=notes).name == "toy"
    assert "my_sets:toy" in notes[0]


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("my_sets:toi", "did you mean 'toy'"),
        ("my_sets:nothing", "returned a int"),
        ("no_such_module:toy", "cannot be imported"),
    ],
)
def test_code_that_does_not_work_is_named(spec, words):
    with pytest.raises(ConfigError, match=words):
        open_dataset(spec, allow_code=True)
