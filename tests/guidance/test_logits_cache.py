"""Tables of logits on disk and in memory: found again, never mistaken, never too many."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import tiny
from distillab.data.config import AugmentConfig
from distillab.errors import ShapeError
from distillab.guidance import cache as cache_module
from distillab.guidance.cache import teacher_sha256
from distillab.models.catalog import build_model
from distillab.models.classifier import set_normalization
from distillab.models.weight_files import write_safetensors
from distillab.runtime.device import Compute
from tables_of_logits import KEY, PLAIN, Told, opened, stored, table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_comes_back_in_another_process_in_the_type_that_it_had(tmp_path, dtype):
    opened(tmp_path).store(KEY, 4, table(dtype=dtype))
    found = opened(tmp_path).find(KEY, 4)
    assert found.dtype == dtype
    assert torch.equal(found, table(dtype=dtype))


def test_a_table_is_found_by_its_key_and_view_only(tmp_path):
    for folder in (tmp_path, None):
        cache = opened(folder)
        cache.store(KEY, 4, table())
        assert torch.equal(cache.find(KEY, 4), table())
        assert cache.find(KEY, 5) is None
        assert cache.find(replace(KEY, teacher="u" * 64), 4) is None
    assert opened(None).find(KEY, 4) is None


def test_a_folder_says_what_its_tables_belong_to(tmp_path):
    stored(tmp_path, PLAIN, 0)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", PLAIN.sha256}
    home = tmp_path / PLAIN.sha256
    assert sorted(path.name for path in home.iterdir()) == ["key.json", "view-0.safetensors"]
    assert json.loads((home / "key.json").read_text()) == {
        "format_version": 1,
        "teacher": "t" * 64,
        "data": "d" * 64,
        "images": "train",
        "num_samples": 7,
        "num_classes": 3,
        "image_size": 16,
        "device": "cpu",
        "precision": "float32",
        "augment": None,
        "seed": None,
    }


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "x"},
        {"data": "x"},
        {"images": "x"},
        {"num_samples": 8},
        {"num_classes": 4},
        {"image_size": 32},
        {"compute": Compute(torch.device("cpu"), torch.bfloat16)},
        {"compute": Compute(torch.device("cuda"), None)},
        {"augment": AugmentConfig(crop_padding=3)},
        {"augment": AugmentConfig(crop_padding=2, mixup=0.2)},
        {"seed": 6},
    ],
    ids=lambda change: " ".join(change),
)
def test_whatever_moves_a_logit_changes_the_key(change):
    assert replace(KEY, **change).sha256 != KEY.sha256


@pytest.mark.parametrize("name", AugmentConfig.model_fields)
def test_any_change_of_images_makes_views_and_seeds_matter(name):
    changed = replace(PLAIN, augment=AugmentConfig(**{name: 1}))
    assert changed.augmented
    assert changed.sha256 != replace(changed, seed=6).sha256


def test_without_augmentation_all_seeds_share_one_key():
    assert not PLAIN.augmented
    assert PLAIN.sha256 == replace(PLAIN, seed=6).sha256
    assert KEY.augmented


def test_a_newer_format_is_another_key(monkeypatch):
    before = KEY.sha256
    monkeypatch.setattr(cache_module, "FORMAT_VERSION", 2)
    assert replace(KEY).sha256 != before


def test_a_teachers_hash_names_weights_normalisation_layers_and_buffers():
    def teacher(spec="tiny:build"):
        torch.manual_seed(0)
        return build_model(spec, 3, image_size=tiny.SIZE)

    def changed(change):
        model = teacher()
        change(model)
        return teacher_sha256(model)

    def other_weight(model):
        with torch.no_grad():
            model.inner.head.bias[0] += 1e-6

    hashes = [
        teacher_sha256(teacher()),
        changed(other_weight),
        changed(lambda model: set_normalization(model, (0.5,) * 3, (0.2,) * 3)),
        changed(lambda model: setattr(model.inner.first[0], "stride", (2, 2))),
        changed(lambda model: model.inner.first.__setitem__(2, torch.nn.SiLU())),
        changed(lambda model: model.inner.register_buffer("unsaved", torch.ones(1), persistent=False)),
        teacher_sha256(teacher("tiny:build_wide")),
    ]
    assert len(set(hashes)) == len(hashes)
    assert changed(lambda model: model.eval().requires_grad_(False).to(memory_format=torch.channels_last)) == hashes[0]


def test_a_table_is_read_memory_mapped(tmp_path):
    path = stored(tmp_path)
    found = opened(tmp_path).find(KEY, 4)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    places = [[int(end, 16) for end in fields[0].split("-")] for fields in maps]
    assert any(start <= found.data_ptr() < end for start, end in places)


def test_a_cut_file_is_told_and_never_used(tmp_path):
    path = stored(tmp_path)
    whole = path.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        told = Told()
        assert opened(tmp_path, told).find(KEY, 4) is None
        assert len(told) == 1
        assert str(path) in told[0]
    path.write_bytes(whole)
    assert torch.equal(opened(tmp_path).find(KEY, 4), table())


def test_a_flipped_bit_is_told_and_never_used(tmp_path):
    path = stored(tmp_path)
    whole = path.read_bytes()
    for position in range(0, len(whole), 13):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        told = Told()
        found = opened(tmp_path, told).find(KEY, 4)
        # The header's padding and its spaces carry nothing: there a flip may do no harm.
        assert (found is None and len(told) == 1) or torch.equal(found, table()), position


def test_the_last_bit_of_a_logit_counts(tmp_path):
    path = stored(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole) - table().nbytes, len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert opened(tmp_path, Told()).find(KEY, 4) is None


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"logits": table()}, {"key": replace(KEY, teacher="stale").parts, "view": 4}),
        ({"logits": table()}, {"key": KEY.parts, "view": 5}),
        ({"logits": table()}, {"view": 4}),
        ({"logits": table(shape=(8, 3))}, {"key": KEY.parts, "view": 4}),
        ({"logits": table(shape=(7, 4))}, {"key": KEY.parts, "view": 4}),
        ({"logits": torch.zeros(7, 3, dtype=torch.int32)}, {"key": KEY.parts, "view": 4}),
        ({"logits": table(dtype=torch.float16)}, {"key": KEY.parts, "view": 4}),
        ({"others": table()}, {"key": KEY.parts, "view": 4}),
    ],
    ids=["teacher", "view", "no key", "samples", "classes", "integers", "type", "name"],
)
def test_a_sound_file_of_something_else_is_told_and_made_anew(tmp_path, tensors, metadata):
    path = tmp_path / KEY.sha256 / "view-4.safetensors"
    write_safetensors(path, tensors, metadata)
    told = Told()
    cache = opened(tmp_path, told)
    assert cache.find(KEY, 4, dtype=torch.float32) is None
    assert len(told) == 1
    cache.store(KEY, 4, table())
    assert torch.equal(opened(tmp_path).find(KEY, 4, dtype=torch.float32), table())


def test_a_file_of_another_tool_is_told_and_never_used(tmp_path):
    path = stored(tmp_path)
    safetensors.torch.save_file({"logits": table()}, path)
    told = Told()
    assert opened(tmp_path, told).find(KEY, 4) is None
    assert len(told) == 1


def test_a_table_that_contradicts_its_key_is_refused(tmp_path):
    for shape in [(8, 3), (7, 4), (21,)]:
        with pytest.raises(ShapeError, match=r"\[7, 3\]"):
            opened(tmp_path).store(KEY, 0, table(shape=shape))
    assert not list(tmp_path.iterdir())


def test_logits_of_images_as_they_are_are_asked_for_once(tmp_path):
    asked = []

    def ask():
        asked.append(1)
        return table()

    for folder in (tmp_path, tmp_path, None):
        cache = opened(folder)
        assert torch.equal(cache.recall(PLAIN, ask), table())
        assert torch.equal(cache.recall(PLAIN, ask), table())
    assert len(asked) == 2  # once for the folder, once for the cache without one


def test_what_is_kept_does_not_change_with_the_tensor_that_was_given():
    given = table()
    cache = opened(None)
    cache.store(KEY, 4, given)
    given.zero_()
    assert torch.equal(cache.find(KEY, 4), table())


@pytest.mark.parametrize("kept", ["in memory", "in a folder"])
def test_a_table_that_is_stored_again_takes_the_place_of_the_older_one(tmp_path, kept):
    cache = opened(tmp_path if kept == "in a folder" else None)
    for seed in (0, 1):
        cache.store(KEY, 4, table(seed))
        assert torch.equal(cache.find(KEY, 4), table(seed))


def test_memory_holds_the_tables_that_were_touched_last(monkeypatch):
    monkeypatch.setattr(cache_module, "_MEMORY_BYTES", 3 * table().nbytes)
    cache = opened(None)
    for view in (0, 1, 2):
        cache.store(KEY, view, table(view))
    cache.find(KEY, 0)
    cache.store(KEY, 3, table(3))
    assert [view for view in range(4) if cache.find(KEY, view) is not None] == [0, 2, 3]


def test_a_table_larger_than_the_memory_kept_for_them_is_kept_alone(monkeypatch):
    monkeypatch.setattr(cache_module, "_MEMORY_BYTES", 1)
    cache = opened(None)
    cache.store(KEY, 0, table(0))
    cache.store(KEY, 1, table(1))
    assert cache.find(KEY, 0) is None
    assert torch.equal(cache.find(KEY, 1), table(1))
