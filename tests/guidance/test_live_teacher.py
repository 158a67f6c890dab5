"""A teacher that is run on every batch is frozen, whatever happens around it."""

import torch

import tiny
from distillab.data.batch import UNCHANGED, Batch
from distillab.guidance.live import LiveTeacher
from distillab.models.catalog import build_model
from distillab.runtime.device import Compute

CPU = Compute(torch.device("cpu"), None)


def new(**settings):
    torch.manual_seed(0)
    return LiveTeacher(build_model("tiny:build", 3, image_size=tiny.SIZE), compute=CPU, **settings)


def batch(count=5):
    images = torch.rand(count, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros(count, dtype=torch.int64), torch.arange(count), UNCHANGED)


def test_logits_and_features_are_constants():
    output = new(layers=["first", "third"])(batch())
    assert output.logits.shape == (5, 3)
    assert list(output.features) == ["first", "third"]
    assert not any(tensor.requires_grad for tensor in (output.logits, *output.features.values()))


def test_its_answers_can_be_saved_for_a_students_backward_pass():
    student = torch.randn(5, 3, requires_grad=True)
    (student * new()(batch()).logits).sum().backward()
    assert student.grad is not None


def test_a_teacher_that_stops_at_a_layer_gives_no_logits():
    output = new(layers=["first"], stop=True)(batch())
    assert output.logits is None
    assert list(output.features) == ["first"]


def test_a_pass_leaves_the_teacher_as_it_is_to_the_last_bit():
    teacher = new()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    teacher.begin_epoch(0, None)
    first, second = teacher(batch()).logits, teacher(batch()).logits
    teacher.end_epoch([])
    assert torch.equal(first, second)  # no dropout
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_precision_is_that_of_the_run():
    teacher = new()
    teacher.compute = Compute(torch.device("cpu"), torch.bfloat16)
    assert teacher(batch()).logits.dtype == torch.bfloat16
