import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tiny
from distillab.checks import (
    _probability_of_hits,
    check_assistant,
    check_classes,
    check_labels,
    check_normalization,
    check_teacher,
    check_trainable,
    count_classes,
)
from distillab.data.batch import Batch
from distillab.data.batches import LoaderBatches
from distillab.data.dataset import Dataset, ImageSet
from distillab.data.splits import validation_split
from distillab.errors import DataError, NonFiniteLossError, ShapeError
from distillab.feeding import check_fits
from distillab.models.catalog import build_model
from distillab.models.classifier import NormalizedModel
from distillab.runtime.device import choose_compute

COMPUTE = choose_compute("cpu", "float32")
NONE = np.array([], dtype=np.int64)
IMAGES = torch.zeros(1, 3, tiny.SIZE, tiny.SIZE)


def told(check, *args, **kwargs):
    """The notes of a check."""
    events = []
    check(*args, **kwargs, observer=events.append)
    return [event.text for event in events]


def labelled(labels):
    """A data set of blank images with such training labels."""
    labels = np.array(labels, dtype=np.int64)
    train = ImageSet(np.zeros((len(labels), 4, 4, 3), np.uint8), labels)
    return Dataset("pets", ("cat", "dog", "fish"), (0.3,) * 3, (0.2,) * 3, train, train, "")


def split(data, **settings):
    return validation_split(data.train.labels, **{"fraction": 0.25, "seed": 0, **settings})


def test_a_data_set_that_is_whole_brings_no_word():
    data = tiny.dataset()
    assert told(check_labels, data, *split(data)) == []


def test_labels_that_are_all_equal_are_refused_by_their_name():
    data = labelled([1] * 8)
    with pytest.raises(DataError, match="all 6 images to learn from are of one class: dog") as caught:
        told(check_labels, data, *split(data))
    assert caught.value.where == "pets: labels"
    with pytest.raises(DataError, match="of one class"):
        told(check_labels, tiny.dataset(), *split(tiny.dataset(), limit=1))


def test_classes_without_images_are_named_with_the_part_that_lacks_them():
    data = labelled([0] * 8 + [2])
    assert told(check_labels, data, *split(data)) == [
        "warning: no image to learn from is of class dog",
        "warning: no image held out for validation is of class dog, fish",
    ]


def test_without_validation_nothing_is_missing_from_it():
    assert told(check_labels, labelled([0, 1, 2]), np.arange(3), NONE) == []


def test_of_many_missing_classes_the_first_are_named():
    classes = tuple(f"class{number}" for number in range(20))
    data = replace(labelled([0, 1]), classes=classes)
    (note,) = told(check_labels, data, np.arange(2), NONE)
    assert note.endswith("class2, class3, class4, class5, class6, ... (18 of 20 classes)")


def test_models_that_know_the_classes_are_let_through_and_stay_as_they_are():
    own = tiny.TinyNet(3).train()
    own.first.eval()
    modes = [module.training for module in own.modules()]
    state = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    check_classes({"teacher": own, "student": build_model("tiny:build", 3, image_size=tiny.SIZE)}, 3, IMAGES)
    assert [module.training for module in own.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.state_dict().items())


@pytest.mark.parametrize("role", ["teacher", "assistant", "student"])
@pytest.mark.parametrize("wrong", [tiny.TinyNet(5), NormalizedModel(tiny.TinyNet(5), 5, image_size=tiny.SIZE)])
def test_a_model_of_other_classes_is_named_whoever_it_is(role, wrong):
    models = {"teacher": tiny.TinyNet(3), "assistant": tiny.TinyNet(3), "student": tiny.TinyNet(3), role: wrong}
    with pytest.raises(ShapeError, match=f"the {role} knows 5 classes, the data has 3") as caught:
        check_classes(models, 3, IMAGES)
    assert caught.value.where == role


def test_classes_of_a_half_precision_model_can_be_counted():
    assert count_classes(tiny.TinyNet(4).bfloat16(), IMAGES) == 4


def test_a_model_without_logits_is_refused():
    with pytest.raises(ShapeError, match=r"not floats \[N, C\]"):
        count_classes(nn.Conv2d(3, 3, 1), IMAGES)


class Auxiliary(nn.Module):
    """Says more while it is trained, as some models from elsewhere do; takes images of 8x8."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.linear = nn.Linear(3 * 8 * 8, 4)

    def forward(self, images):
        logits = self.linear(nn.functional.dropout(self.norm(images)).flatten(1))
        return (logits, logits) if self.training else logits


def wrapped(output=lambda said: said, size=8):
    return NormalizedModel(Auxiliary(), 4, image_size=size, output=output)


def first(said):
    return said[0] if isinstance(said, tuple) else said


def test_a_model_that_gives_something_else_in_training_is_refused():
    with pytest.raises(ShapeError, match="returns a tuple, not a tensor of logits"):
        check_trainable(wrapped(), COMPUTE)


def test_a_model_that_gives_something_else_afterwards_is_refused():
    with pytest.raises(ShapeError, match="returns a list"):
        check_trainable(wrapped(lambda said: said[0] if isinstance(said, tuple) else [said]), COMPUTE)


def test_a_model_that_cannot_take_the_images_is_refused_with_their_size():
    with pytest.raises(ShapeError, match=r"fails on images of 16x16: RuntimeError: mat1 and mat2") as caught:
        check_trainable(wrapped(size=16), COMPUTE)
    assert (caught.value.where, "--image-size" in caught.value.hint) == ("model", True)


def test_a_bug_in_a_model_of_ones_own_keeps_its_traceback():
    with pytest.raises(KeyError, match="no such thing"):
        check_trainable(wrapped(lambda said: {}["no such thing"]), COMPUTE)


def test_a_model_is_tried_without_a_trace():
    model = wrapped(first)
    model.inner.linear.eval()
    state, before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    check_trainable(model, COMPUTE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.inner.linear.training) == (True, False)


def test_a_model_that_asks_for_gradients_of_its_own_or_cannot_be_copied_is_let_through():
    def sloped(said):
        logits = first(said)
        if not logits.requires_grad:
            return logits
        (slope,) = torch.autograd.grad(logits.sum(), logits, create_graph=True)
        return logits * slope

    check_trainable(wrapped(sloped), COMPUTE)
    model = wrapped(first)
    model.inner.by_hand = model.inner.linear.weight * 2  # no leaf: `deepcopy` refuses it
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    check_trainable(model, COMPUTE)


def with_widths(**widths):
    """Linear models, 10,001 parameters for each of their outputs."""
    return {role: nn.Linear(10_000, width) for role, width in widths.items()}


@pytest.mark.parametrize("widths", [(8, 4, 2), (8, 8, 2), (8, 2, 2), (2, 4, 8)])
def test_an_assistant_between_teacher_and_student_brings_no_word(widths):
    models = with_widths(**dict(zip(("teacher", "assistant", "student"), widths, strict=True)))
    assert told(check_assistant, models) == []
    del models["assistant"]
    assert told(check_assistant, models) == []


@pytest.mark.parametrize("assistant", [40, 1])
def test_an_assistant_that_is_not_between_the_others_is_told_with_all_sizes(assistant):
    (text,) = told(check_assistant, with_widths(teacher=20, assistant=assistant, student=10))
    size = {40: "0.40", 1: "0.010"}[assistant]
    assert f"({size} M parameters, teacher 0.20, student 0.10): --assistant names another" in text


@pytest.mark.parametrize("by", [0.0, 5e-4])
def test_statistics_that_differ_by_rounding_bring_no_word(by):
    data = tiny.dataset()
    model = NormalizedModel(nn.Identity(), 3, mean=[0.3 + by] * 3, std=data.std, image_size=tiny.SIZE)
    assert told(check_normalization, model, data, where="teacher") == []


@pytest.mark.parametrize(
    ("mean", "std"), [((0.3, 0.3, 0.32), (0.2,) * 3), ((0.3,) * 3, (0.25, 0.2, 0.2)), ((0.0,) * 3, (1.0,) * 3)]
)
def test_other_statistics_are_told_with_both_values(mean, std):
    model = NormalizedModel(nn.Identity(), 3, mean=mean, std=std, image_size=tiny.SIZE)
    (note,) = told(check_normalization, model, tiny.dataset(), where="teacher: t.pth")
    assert note.startswith("teacher: t.pth: the model normalises images by mean ")
    assert f"{mean[2]:g} and std {std[0]:g}" in note
    assert "those of the data are mean 0.3, 0.3, 0.3 and std 0.2, 0.2, 0.2" in note


def test_a_loaded_model_is_let_through_with_a_word_on_its_statistics():
    model = build_model("tiny:build", 3, image_size=tiny.SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    (note,) = told(check_fits, model, tiny.dataset(), tiny.SIZE, where="t.pth")
    assert "normalises images by mean 0.5, 0.5, 0.5" in note


class Scripted(nn.Module):
    """Says what it is told to: image i has its answer in its first pixel."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return nn.functional.one_hot(images[:, 0, 0, 0].long(), self.num_classes).float()


def shown(answers, labels, size=64):
    """Batches on which `Scripted` gives these answers."""
    images = torch.as_tensor(answers, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)
    labels = torch.as_tensor(labels)
    return [Batch(i, y, None, 0) for i, y in zip(images.split(size), labels.split(size), strict=True)]


def of_teacher(answers, labels, num_classes=10):
    return told(check_teacher, Scripted(num_classes), shown(answers, labels), compute=COMPUTE)


RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 10, 512)


def test_a_teacher_that_guesses_is_told_with_its_accuracy_and_that_of_a_guess():
    (note,) = of_teacher(np.zeros(512, int), LABELS)
    share = f"{(LABELS == 0).mean():.1%}"
    assert note.startswith(
        f"warning: the teacher is right on {share} of 512 training images, a guess would be on {share}"
    )
    assert len(of_teacher(RANDOM.integers(0, 10, 512), LABELS)) == 1


def test_a_teacher_whose_classes_are_in_another_order_is_told():
    (note,) = of_teacher((LABELS + 1) % 10, LABELS)
    assert "right on 0.0% of 512" in note
    assert "the order of its classes" in note


@pytest.mark.parametrize("accuracy", [0.25, 0.6, 1.0])
def test_a_teacher_that_knows_something_brings_no_word(accuracy):
    knows = RANDOM.random(512) < accuracy
    assert of_teacher(np.where(knows, LABELS, (LABELS + 3) % 10), LABELS) == []


def test_the_larger_class_alone_is_no_knowledge():
    labels = (np.arange(512) % 10 == 0).astype(int)
    (note,) = of_teacher(np.zeros(512, int), labels, num_classes=2)
    assert "right on 89.8% of 512 training images, a guess would be on 89.8%" in note
    assert of_teacher(labels, labels, num_classes=2) == []


def test_images_of_one_class_say_nothing():
    assert of_teacher(np.zeros(64, int), np.zeros(64, int)) == []
    assert of_teacher(np.ones(64, int), np.zeros(64, int)) == []


def test_guessing_teachers_seldom_pass():
    random = np.random.default_rng(1)
    warned = sum(len(of_teacher(random.integers(0, 10, 512), LABELS)) for _ in range(100))
    assert warned >= 95  # of 100, at one in a hundred


def test_a_few_hundred_images_are_enough_and_no_more_are_made():
    teacher, batches = Scripted(10), iter(shown(np.zeros(2000, int), RANDOM.integers(0, 10, 2000), size=200))
    told(check_teacher, teacher, batches, compute=COMPUTE)
    assert teacher.seen == 600
    assert len(list(batches)) == 7


def test_mixed_labels_count_as_their_largest():
    batches = [replace(b, labels=nn.functional.one_hot(b.labels, 10) * 0.9 + 0.01) for b in shown(LABELS, LABELS)]
    assert told(check_teacher, Scripted(10), batches, compute=COMPUTE) == []


def test_a_teacher_whose_logits_are_not_finite_is_refused():
    teacher = tiny.TinyNet(3)
    nn.init.constant_(teacher.head.bias, float("nan"))
    batches = [Batch(IMAGES.expand(4, -1, -1, -1), torch.arange(4) % 3, None, 0)]
    with pytest.raises(NonFiniteLossError, match="the teacher's logits are NaN or infinite"):
        told(check_teacher, teacher, batches, compute=COMPUTE)


def test_ones_own_teacher_is_looked_at_on_ones_own_loader():
    train = tiny.dataset().train
    images = torch.from_numpy(train.images).permute(0, 3, 1, 2)
    loader = DataLoader(TensorDataset(images, torch.from_numpy(train.labels)), batch_size=16, shuffle=True)
    batches = LoaderBatches(loader, device=torch.device("cpu"), num_classes=3)
    teacher = tiny.TinyNet(3)
    nn.init.zeros_(teacher.head.weight)
    before = torch.get_rng_state()
    (note,) = told(check_teacher, teacher, batches, compute=COMPUTE)
    assert "of 72 training images" in note
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 600), st.floats(0.0, 1.0), st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_probability_of_luck_is_that_of_the_binomial_test(count, chance, data):
    hits = data.draw(st.integers(0, count))
    expected = binomtest(hits, count, chance, alternative="greater").pvalue
    assert _probability_of_hits(hits, count, chance) == pytest.approx(expected, rel=1e-6, abs=1e-12)
