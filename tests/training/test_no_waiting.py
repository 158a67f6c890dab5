"""What is recorded on a GPU, gone through on a CPU: tensors that claim to lie on a GPU, and hold nothing."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from distillab.data.batches import TrainingBatches
from distillab.data.config import AugmentConfig
from distillab.guidance.live import LiveTeacher
from distillab.methods.base import method_class
from distillab.models.catalog import build_model
from distillab.runtime.device import Compute
from distillab.training import optimizer as home
from distillab.training.averaging import MovingAverage
from distillab.training.config import OptimizerConfig
from distillab.training.step import Learner, Step, trainable

GPU = torch.device("cuda")
COMPUTE = Compute(GPU, None)


class NothingOfTheHost(TorchDispatchMode):
    """Refuses to compute with tensors of the host: a graph would hold the numbers that they had when it was made."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        assert "cpu" not in devices, function
        return result


@pytest.fixture
def pretended(monkeypatch):
    """A GPU that is not there. What only a driver can do is left out: walking the graph back, and fused kernels."""
    learning = []

    def backward(loss):
        assert loss.shape == ()
        for parameter in learning:
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):
        monkeypatch.setattr(torch, name, lambda *args, **kwargs: None)
    with FakeTensorMode(), GPU:
        yield learning


def new_optimizer(parameters, name, monkeypatch):
    """The rate is a number to the constructor, which looks at it once, and a tensor on the device to the steps."""
    with monkeypatch.context() as patch:
        patch.setattr(home.torch, "tensor", lambda value, device: value)
        optimizer = home.make_optimizer(parameters, OptimizerConfig(name=name))
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), group["lr"], device=GPU)
    return optimizer


def new_average(student, monkeypatch):
    """Of weights of its own: tensors that hold nothing cannot be copied deeply."""
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", lambda model: build_model(model.spec, model.num_classes))
        return MovingAverage(student, 0.9)


def test_the_watch_sees_what_waits_and_what_lies_on_the_host(pretended):
    given = torch.ones(3)
    with pytest.raises(DataDependentOutputException):
        given.sum().item()
    with pytest.raises(AssertionError), NothingOfTheHost():
        given * torch.ones((), device="cpu")


CUT = AugmentConfig(crop_padding=2, horizontal_flip=True, cutout=4)
MIXED = AugmentConfig(crop_padding=2, mixup=0.5, cutmix=1.0)


def new_method(name):
    if name in ("delta", "hard", "soft"):
        kind = method_class("merit_based")
        return kind(kind.Config(variant=name))
    return method_class(name)(method_class(name).Config())


@pytest.mark.parametrize(
    ("name", "optimizer", "augment"),
    [
        ("cross_entropy", "sgd", AugmentConfig()),
        ("soft_target", "adamw", CUT),
        ("soft_target", "sgd", MIXED),
        ("hint", "sgd", MIXED),
        ("delta", "adam", MIXED),
        ("hard", "sgd", CUT),
        ("soft", "adamw", MIXED),
    ],
)
def test_nothing_that_is_recorded_waits_for_a_gpu_or_computes_on_the_host(
    name, optimizer, augment, pretended, monkeypatch
):
    method, images = new_method(name), tiny.dataset().train
    batches = TrainingBatches(
        images.images,
        images.labels,
        None,
        batch_size=8,
        num_classes=3,
        augment=augment,
        label_smoothing=0.1,
        seed=0,
        device=GPU,
        image_size=32,
    )
    teacher, student = build_model("cnn8", 3), build_model("cnn16", 3)
    layers = ("pool2",) if method.layers() else ()
    live = LiveTeacher(teacher, layers=layers, stop=method.stops_at_layer(), compute=COMPUTE)
    learner = Learner(student)
    if layers:
        regressor = nn.Sequential(nn.Conv2d(32, 128, 3, padding=1), nn.BatchNorm2d(128), nn.ReLU())
        learner = Learner(student, layer="pool2", adapter=regressor, stop=True)
    pretended.extend(trainable(learner))
    step = Step(
        learner.train(),
        method=method,
        optimizer=new_optimizer(pretended, optimizer, monkeypatch),
        gradient_clip=1.0,
        average=new_average(student, monkeypatch),
        compute=COMPUTE,
    )
    view = torch.zeros((), dtype=torch.int64)
    for raw, watch in zip(batches.raw(0), (contextlib.nullcontext(), NothingOfTheHost()), strict=False):
        with watch:  # tables and state are made in the first step
            batch = batches.make(raw, view)
            step(batch, live(batch) if method.needs_teacher else None)
