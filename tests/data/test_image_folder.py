import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from distillab.data.config import SplitConfig
from distillab.data.image_folder import open_image_folder
from distillab.errors import ConfigError, DataError


def write_image(path, seed=0, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def pets(tmp_path):
    """train/ with 4 cats and 4 dogs, test/ with 2 of each."""
    root = tmp_path / "pets"
    seed = 0
    for part, number in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            for index in range(number):
                write_image(root / part / name / f"{index}.png", seed=(seed := seed + 1))
    return root


@pytest.fixture
def flat(tmp_path):
    """One folder a class, 10 images each, image i of class c filled with 20 * c + i."""
    root = tmp_path / "flat"
    for label, name in enumerate(("a", "b", "c")):
        for index in range(10):
            path = root / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (20 * label + index,) * 3).save(path)
    return root


@pytest.fixture
def open_it(tmp_path, notes):
    def open_it(folder, *, image_size=8, **split):
        return open_image_folder(
            folder,
            data_dir=tmp_path / "data",
            image_size=image_size,
            split=SplitConfig(**split),
            observer=notes,
        )

    return open_it


def times_decoded(notes):
    return sum("storing" in text for text in notes)


def stored_files(tmp_path):
    return [path for path in (tmp_path / "data").rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_train_and_test_folders_are_the_parts(pets, open_it):
    data = open_it(pets)
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    assert data.test.labels.tolist() == [0] * 2 + [1] * 2
    expected = np.asarray(Image.open(pets / "train" / "dog" / "2.png"))
    assert np.array_equal(data.train.images[6], expected)


def test_statistics_are_those_of_the_training_images(pets, open_it):
    data = open_it(pets)
    assert data.mean == pytest.approx((data.train.images / 255).mean((0, 1, 2)), abs=1e-14)
    assert data.std == pytest.approx((data.train.images / 255).std((0, 1, 2)), abs=1e-14)


def test_val_is_the_test_where_there_is_no_test(pets, open_it):
    (pets / "test").rename(pets / "val")
    assert len(open_it(pets).test) == 4


def test_val_beside_test_is_left_alone_and_said(pets, open_it, notes):
    write_image(pets / "val" / "bird" / "0.png")
    assert len(open_it(pets).test) == 4
    assert any("val/" in text for text in notes)


def test_one_folder_is_split_by_class_and_seed(flat, open_it):
    data = open_it(flat, test_fraction=0.2, seed=1)
    assert np.bincount(data.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(data.test.labels).tolist() == [2, 2, 2]
    shades = [*data.train.images[:, 0, 0, 0], *data.test.images[:, 0, 0, 0]]
    assert sorted(shades) == [20 * label + index for label in range(3) for index in range(10)]
    assert [shade // 20 for shade in shades] == [*data.train.labels, *data.test.labels]
    assert open_it(flat, test_fraction=0.2, seed=1).sha256 == data.sha256
    assert open_it(flat, test_fraction=0.2, seed=2).sha256 != data.sha256
    assert len(open_it(flat, test_fraction=0.5, seed=1).test) == 15


def test_train_alone_is_split_too(flat, open_it, tmp_path, notes):
    (tmp_path / "whole").mkdir()
    flat.rename(tmp_path / "whole" / "train")
    assert len(open_it(tmp_path / "whole").test) == 6
    assert any("no test/" in text for text in notes)


def test_images_deeper_inside_a_class_are_found(pets, open_it):
    write_image(pets / "train" / "cat" / "images" / "deep" / "9.png")
    assert np.bincount(open_it(pets).train.labels).tolist() == [5, 4]


def test_a_folder_is_decoded_once(pets, open_it, notes):
    first, second = open_it(pets), open_it(pets)
    assert times_decoded(notes) == 1
    assert first.sha256 == second.sha256
    assert isinstance(second.train.images.base, np.memmap)


def change_content(root):
    write_image(root / "train" / "cat" / "0.png", seed=999)


def change_time(root):
    path = root / "train" / "cat" / "0.png"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize(
    "change",
    [
        change_content,
        change_time,
        lambda root: write_image(root / "train" / "cat" / "9.png"),
        lambda root: (root / "train" / "cat" / "0.png").unlink(),
        lambda root: (root / "train" / "cat" / "0.png").rename(root / "train" / "cat" / "00.png"),
    ],
)
def test_a_folder_that_changed_is_decoded_again(pets, open_it, notes, change):
    open_it(pets)
    change(pets)
    open_it(pets)
    assert times_decoded(notes) == 2


def test_sizes_are_stored_side_by_side(pets, open_it, notes):
    assert [open_it(pets, image_size=size).image_size for size in (8, 4, 8, 4)] == [8, 4, 8, 4]
    assert times_decoded(notes) == 2


def test_that_images_are_scaled_is_said_with_their_size(pets, open_it, notes):
    open_it(pets)
    assert not any("is scaled to" in text for text in notes)
    open_it(pets, image_size=4)
    said = f"{pets.resolve()}: the middle square of each image is scaled to 4x4 pixels; the first file has 8x8"
    assert said in notes


def test_the_manifest_tells_files_and_sizes(pets, open_it, tmp_path):
    open_it(pets)
    (path,) = (tmp_path / "data" / "image_folders").glob("pets-????????/manifest.json")
    manifest = json.loads(path.read_text())
    name, size, _ = manifest["origin"]["files"][0]
    assert name == "train/cat/0.png"
    assert size == (pets / name).stat().st_size


def test_a_corrupt_image_is_named_and_nothing_is_left_behind(pets, open_it, tmp_path):
    path = pets / "train" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError) as caught:
        open_it(pets)
    assert caught.value.where == str(path)
    assert stored_files(tmp_path) == []


def test_hidden_and_other_files_are_ignored_and_counted(pets, open_it, notes):
    plain = open_it(pets).sha256
    (pets / "train" / "cat" / "notes.txt").write_text("x")
    (pets / "train" / "dog" / "README").write_text("x")
    (pets / "train" / "labels.csv").write_text("x")
    (pets / "train" / ".cache").mkdir()
    (pets / "train" / "cat" / "._0.png").write_text("x")
    assert open_it(pets).sha256 == plain
    assert "1 .csv" in notes[-1]
    assert "1 .txt" in notes[-1]
    assert "1 without extension" in notes[-1]


@pytest.mark.parametrize(
    ("spoil", "words", "where"),
    [
        (lambda root: shutil.rmtree(root / "train") or shutil.rmtree(root / "test"), "no class folders", ""),
        (lambda root: shutil.rmtree(root / "train"), "no train/", ""),
        (lambda root: (root / "train" / "fish").mkdir(), "'fish' has no images", "train/fish"),
        (lambda root: shutil.rmtree(root / "train" / "dog"), "one class only: cat", "train"),
        (lambda root: write_image(root / "test" / "fish" / "0.png"), "'fish' is only in the test", "test"),
        (lambda root: write_image(root / "train" / "fish" / "0.png"), "'fish' is only in the train", "test"),
        (lambda root: (root / "train" / "x.png").symlink_to("/etc/hosts"), "leaves", "train/x.png"),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("/etc/hosts"), "leaves", "train/cat/x.png"),
        (lambda root: (root / "train" / "cat" / "x.png").symlink_to("none"), "nothing", "train/cat/x.png"),
        (lambda root: (root / "train" / "fish").symlink_to("/usr"), "leaves", "train/fish"),
        (lambda root: (root / "train" / "cat" / "loop").symlink_to(".."), "link to a folder", "train/cat/loop"),
    ],
)
def test_a_layout_that_cannot_be_used_is_an_error_that_names_the_path(pets, open_it, spoil, words, where):
    spoil(pets)
    with pytest.raises(DataError, match=words) as caught:
        open_it(pets)
    assert caught.value.where == str(pets / where)


def test_links_inside_the_folder_are_followed(pets, open_it):
    shutil.rmtree(pets / "test")
    (pets / "test").symlink_to("train")
    (pets / "train" / "cat" / "again.png").symlink_to("0.png")
    data = open_it(pets)
    assert np.array_equal(data.train.images, data.test.images)
    assert np.bincount(data.train.labels).tolist() == [5, 4]


def test_nothing_to_test_with_is_an_error(flat, open_it):
    with pytest.raises(ConfigError) as caught:
        open_it(flat, test_fraction=0.0)
    assert caught.value.where == "split.test_fraction"
    for path in flat.glob("*/*.png"):
        if path.name != "0.png":
            path.unlink()
    with pytest.raises(DataError, match="one image only"):
        open_it(flat)


@pytest.mark.slow
def test_two_processes_that_build_at_once_are_both_right(pets, tmp_path, open_it):
    code = (
        "import sys; from distillab import open_dataset;"
        "print(open_dataset(sys.argv[1], data_dir=sys.argv[2], image_size=8).sha256)"
    )
    command = [sys.executable, "-c", code, str(pets), str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    hashes = {process.communicate()[0].strip() for process in processes}
    assert hashes == {open_it(pets).sha256}


def test_names_of_any_language_and_blanks_work(tmp_path, open_it):
    for name in ("Käse & Brot", "犬 [x]"):
        for index in range(5):
            write_image(tmp_path / "my pets" / name / f"bild {index}.PNG", seed=index)
    assert open_it(tmp_path / "my pets").classes == ("Käse & Brot", "犬 [x]")
