import pytest
import torch
from torch import nn

import tiny
from distillab import build_model, distill, train
from distillab.config import resolve_distill
from distillab.data.dataset import Dataset, ImageSet
from distillab.errors import DataError, GuardError, ShapeError
from distillab.models.weights import save_weights
from distillab.run import run_one
from distillab.runtime.events import EpochEnded, Note

SETTINGS = {"epochs": 1, "batch_size": 16, "device": "cpu", "threads": 1, "training": {"precision": "float32"}}


class Counting(tiny.TinyNet):
    """A teacher that counts its calls, in evaluation mode too."""

    def __init__(self):
        super().__init__(3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


class Deaf(tiny.TinyNet):
    """A student whose logits are always zero, so that no gradient moves it."""

    def forward(self, images):
        return super().forward(images) * 0.0


@pytest.mark.parametrize("role", ["teacher", "assistant", "student"])
def test_a_model_of_ones_own_with_other_classes_than_the_data_is_named(role):
    models = {
        "teacher": tiny.TinyNet(3),
        "assistant": tiny.TinyNet(3),
        "student": tiny.TinyNet(3),
        role: tiny.TinyNet(5),
    }
    with pytest.raises(ShapeError, match=f"the {role} knows 5 classes, the data has 3"):
        distill(data=tiny.dataset(), method="takd", **models, **SETTINGS)


def test_a_model_that_is_trained_alone_must_know_the_classes_too():
    with pytest.raises(ShapeError, match="the teacher knows 2 classes, the data has 3"):
        train(tiny.TinyNet(2), tiny.dataset(), role="teacher", **SETTINGS)


def test_labels_that_are_all_equal_are_refused():
    images = tiny.dataset().train
    same = ImageSet(images.images, images.labels * 0)
    with pytest.raises(DataError, match="are of one class: red"):
        train(tiny.TinyNet(3), Dataset.from_arrays("same", tiny.CLASSES, same, same), **SETTINGS)


def test_an_untrained_teacher_is_told_and_used_all_the_same():
    teacher, events = tiny.TinyNet(3), []
    nn.init.zeros_(teacher.head.weight)
    distill(teacher, tiny.TinyNet(3), tiny.dataset(), observer=events.append, **SETTINGS)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.startswith("warning: the teacher is right on") for note in notes] == [True]


def test_normalisation_that_is_not_the_datas_is_told_by_role():
    teacher = build_model("tiny:build_wide", 3, image_size=tiny.SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)
    events = []
    student = build_model("tiny:build", 3, image_size=tiny.SIZE)
    distill(teacher, student, tiny.dataset(), observer=events.append, **SETTINGS)
    told = [event.text for event in events if isinstance(event, Note) and "normalises" in event.text]
    assert [note.split(":")[0] for note in told] == ["teacher"]


def test_a_teacher_that_changes_is_no_teacher():
    with pytest.raises(GuardError, match="the teacher changed while it taught: calls"):
        distill(Counting(), tiny.TinyNet(3), tiny.dataset(), **SETTINGS)


def test_a_student_that_nothing_reaches_has_not_learnt():
    with pytest.raises(GuardError, match="the student did not learn") as caught:
        train(Deaf(3), tiny.dataset(), optimizer={"weight_decay": 0.0}, **SETTINGS)
    assert caught.value.where == "student alone"


def test_the_share_of_each_term_is_in_the_numbers_of_an_epoch():
    events = []
    distill(tiny.TinyNet(3), tiny.TinyNet(3), tiny.dataset(), observer=events.append, **SETTINGS)
    (values,) = [event.values for event in events if isinstance(event, EpochEnded)]
    assert values["share/labels"] + values["share/soft_targets"] == pytest.approx(1.0)
    assert values["share/labels"] == pytest.approx(values["loss/labels"] / values["loss"])


def test_a_loaded_teacher_that_guesses_or_normalises_otherwise_is_told(tmp_path):
    teacher = build_model("tiny:build_wide", 3, image_size=tiny.SIZE, mean=(0.5,) * 3, std=(0.2,) * 3)
    nn.init.zeros_(teacher.inner.head.weight)
    save_weights(teacher, tmp_path / "t.safetensors", {})
    config = resolve_distill(tiny.RECIPE, {"teacher": str(tmp_path / "t.safetensors")})
    events = []
    run_one(config, allow_code=True, save_run=False, observer=events.append)
    told = " ".join(event.text for event in events if isinstance(event, Note))
    assert "warning: the teacher is right on 33.3% of" in told
    assert "t.safetensors: the model normalises images by mean 0.5, 0.5, 0.5 and std 0.2" in told
