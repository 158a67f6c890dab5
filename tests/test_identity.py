"""What a run is: equal where results are equal, another wherever they may not be, and told in words."""

import dataclasses

import pytest
import torch

import tiny
from distillab.config import resolve_distill
from distillab.identity import changed_settings, differences, identity_sha256, made_by, run_identity
from distillab.models.catalog import build_model
from distillab.runtime.device import choose_compute


def teacher(seed=0):
    torch.manual_seed(seed)
    return build_model("tiny:build_wide", 3, image_size=tiny.SIZE)


def sha256(settings=None, *, data=tiny.dataset(), loaded=None):  # noqa: B008 - never changed
    return identity_sha256(run_identity(resolve_distill(tiny.RECIPE, settings or {}), data, loaded))


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"output": "somewhere/else"},
        {"data_dir": "somewhere/else"},
        {"data": "digits"},  # of another name, and with the same images
        {"device": "auto"},
        {"threads": 2},
        {"cache_gib": 1.0},
        {"checkpoint": {"minutes": 7.0}},
        {"track": ("tensorboard",)},
        {"training": {"execution": "eager"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_where_and_how_it_is_carried_out_does_not_make_another_run(elsewhere):
    assert sha256(elsewhere) == sha256()


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"method": "mbd-soft"},
        {"distill": {"temperature": 2.0}},
        {"student": "tiny:build_wide"},
        {"teacher": "tiny:build"},
        {"views": 2},
        {"split": {"train_limit": 16}},
        {"augment": {"horizontal_flip": True}},
        {"optimizer": {"learning_rate": 0.01}},
        {"training": {"precision": "bfloat16"}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_setting_that_a_result_depends_on_makes_another_run(other):
    assert sha256(other) != sha256()


def test_images_are_known_by_what_they_are():
    assert sha256(data=dataclasses.replace(tiny.dataset(), sha256="others")) != sha256()


def test_a_teacher_that_is_loaded_is_known_by_its_weights_and_not_by_where_they_lie(tmp_path):
    (tmp_path / "given.pth").touch()
    names = {"teacher": str(tmp_path / "given.pth"), "teacher_model": "tiny:build_wide"}
    assert sha256(names, loaded=teacher()) == sha256(loaded=teacher())
    assert sha256(loaded=teacher(1)) != sha256(loaded=teacher())
    assert sha256(loaded=teacher()) != sha256(), "one that is trained in the run is another"


def test_the_order_of_settings_does_not_matter():
    assert identity_sha256({"a": 1, "b": {"c": 2, "d": 3}}) == identity_sha256({"b": {"d": 3, "c": 2}, "a": 1})


def test_what_a_checkpoint_was_made_with_differs_in_words():
    compute = choose_compute("cpu", "float32")
    runs = [run_identity(resolve_distill(tiny.RECIPE, {"seed": seed}), tiny.dataset(), None) for seed in (0, 1)]
    saved = made_by(runs, compute)
    assert differences(saved, made_by(runs, compute)) == ([], [])
    other = [{**runs[0], "views": 2}, {**runs[1], "teacher": "0123456789abcdef" * 4}]
    now = {**made_by(other, compute), "threads": 99, "torch": "99.0", "more": True}
    threads, version = saved["threads"], torch.__version__
    decisive, told = differences(saved, now)
    assert sorted(decisive) == sorted(
        [
            "settings.1.views was not set, is 2",
            "settings.2.teacher was tiny:build_wide, is 0123456789ab...",
            f"threads was {threads}, is 99",
            "more was not set, is True",
        ]
    )
    assert told == [f"torch was {version}, is 99.0"]
    (single,) = differences(made_by(runs[:1], compute), made_by(other[:1], compute))[0]
    assert single == "settings.views was not set, is 2"


@pytest.mark.parametrize(
    "change", [{"execution": "captured"}, {"autocast_dtype": torch.bfloat16}], ids=["execution", "precision"]
)
def test_another_arithmetic_makes_another_trajectory(change):
    compute = choose_compute("cpu", "float32")
    decisive, told = differences(made_by([], compute), made_by([], dataclasses.replace(compute, **change)))
    assert (len(decisive), told) == (1, [])


def test_changed_settings_are_told_but_for_those_of_the_place():
    before = resolve_distill(tiny.RECIPE, {})
    after = resolve_distill(
        tiny.RECIPE, {"data": "digits", "threads": 2, "seed": 3, "distill": {"temperature": 2.5}, "output": "other"}
    )
    elsewhere = before.model_copy(update={"teacher": "./other.safetensors", "teacher_model": "cnn8", "data": "x"})
    assert changed_settings(before, elsewhere) == changed_settings(before, before) == []
    assert sorted(changed_settings(before, after)) == ["distill.temperature was 4.0, is 2.5", "seed was 0, is 3"]
