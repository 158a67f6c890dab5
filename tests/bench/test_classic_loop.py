"""The classic loop computes what ours computes, in the classic way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from distillab.bench.classic import LOSSES, ClassicImages, ClassicLoop, with_stock_pieces
from distillab.models.catalog import build_model
from distillab.models.features import ModelOutput
from distillab.stages import PLANS, stage_method

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def images(count: int = 24) -> ClassicImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)
    return ClassicImages(pixels, np.arange(count) % 3, mean=MEAN, std=STD, image_size=tiny.SIZE)


def loop(teacher: nn.Module | None = None, *, method: str = "alone", num_workers: int = 0) -> ClassicLoop:
    student = with_stock_pieces(tiny.build(3))
    return ClassicLoop(
        student, teacher, method=method, images=images(), batch_size=8, num_workers=num_workers, device=CPU
    )


def test_there_is_a_loss_for_every_plan_of_one_stage():
    assert set(LOSSES) == {plan.name for plan in PLANS.values() if len(plan.stages) == 1}


@pytest.mark.parametrize("method", LOSSES)
def test_the_loss_and_its_gradient_are_ours(method):
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(16, 5) * 3, torch.randn(16, 5) * 3, torch.randint(0, 5, (16,))
    plan = PLANS[method]
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    terms = stage_method(plan.stages[0], {}).terms(ModelOutput(ours), ModelOutput(teacher), labels, torch.zeros(()))
    our_loss = sum(term.mean() for term in terms.values())
    their_loss = LOSSES[method](theirs, teacher, labels)
    torch.testing.assert_close(their_loss, our_loss, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(
        torch.autograd.grad(their_loss, theirs), torch.autograd.grad(our_loss, ours), atol=1e-5, rtol=0.0
    )


@pytest.mark.parametrize("method", LOSSES)
def test_models_of_stock_pieces_give_the_loss_of_ours_on_the_same_images(method):
    plan = PLANS[method]
    pixels = torch.rand(8, 3, tiny.SIZE, tiny.SIZE)
    labels = torch.arange(8) % 3
    models = [build_model(spec, 3, mean=MEAN, std=STD, image_size=tiny.SIZE).eval() for spec in TINY_PAIR]
    teacher, student = models
    output = [ModelOutput(model(pixels)) for model in (student, teacher)]
    terms = stage_method(plan.stages[0], {}).terms(*output, labels, torch.zeros(()))
    teacher, student = (with_stock_pieces(copy.deepcopy(model)) for model in models)
    normalized = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    loss = LOSSES[method](student(normalized), teacher(normalized), labels)
    torch.testing.assert_close(loss, sum(term.mean() for term in terms.values()), atol=1e-5, rtol=0.0)


TINY_PAIR = ("tiny:build_wide", "tiny:build")


def test_stock_pieces_are_torchs_own_and_images_come_normalised():
    model = with_stock_pieces(build_model("cnn8", 10))
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert len(dropouts) == 8
    assert {(type(module), module.p) for module in dropouts} == {(nn.Dropout, 0.2)}
    assert isinstance(model.normalize, nn.Identity)


def test_images_are_changed_as_torchvision_changes_them():
    transforms = pytest.importorskip("torchvision.transforms")
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    ours = ClassicImages(pixels, np.zeros(6, dtype=np.int64), mean=MEAN, std=STD, image_size=32)
    theirs = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    for index in range(6):
        torch.manual_seed(index)
        expected = theirs(Image.fromarray(pixels[index]))
        torch.manual_seed(index)
        found, _ = ours[index]
        assert torch.equal(found, expected)


def test_images_of_another_size_are_resized():
    pixels = np.zeros((1, 48, 48, 3), dtype=np.uint8)
    found, label = ClassicImages(pixels, np.array([2]), mean=MEAN, std=STD, image_size=32)[0]
    assert found.shape == (3, 32, 32)
    assert label == 2


def test_the_backward_pass_runs_through_the_teacher():
    teacher = with_stock_pieces(tiny.build_wide(3))
    loop(teacher, method="st").seconds(1, run_in=False)
    assert not teacher.training
    assert all(parameter.grad is not None for parameter in teacher.parameters())


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where one core is all there is
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loop_goes_on_over_the_ends_of_epochs(num_workers, monkeypatch):
    running = loop(num_workers=num_workers)
    sizes = []
    step = running._step
    monkeypatch.setattr(running, "_step", lambda *batch: (sizes.append(len(batch[1])), step(*batch)))
    assert running.seconds(4, run_in=True) > 0  # an epoch has three batches
    assert running.seconds(1, run_in=False) > 0
    assert sizes == [8] * (5 + 1)


def test_a_student_alone_learns_by_cross_entropy():
    running = loop()
    images, labels = torch.rand(8, 3, tiny.SIZE, tiny.SIZE), torch.arange(8) % 3
    torch.manual_seed(3)
    expected = F.cross_entropy(copy.deepcopy(running._student)(images), labels).item()
    torch.manual_seed(3)
    running._step(images, labels)
    assert running._running_loss == pytest.approx(expected, abs=1e-6)
