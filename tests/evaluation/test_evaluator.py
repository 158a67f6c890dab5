import pytest
import torch
from torch import nn

import tiny
from distillab.data.batches import EvaluationBatches
from distillab.errors import DataError
from distillab.evaluation import evaluate as home
from distillab.evaluation.evaluate import Evaluator, collect_logits, evaluate
from distillab.runtime.capture import CannotCaptureError, Capture
from distillab.runtime.events import Note

CPU = torch.device("cpu")


def batches(device=CPU, batch_size=7):
    """30 images in batches of 7: the last one has 2."""
    images = tiny.dataset().test
    return EvaluationBatches(images.images, images.labels, batch_size=batch_size, device=device, image_size=tiny.SIZE)


def model(seed=0):
    torch.manual_seed(seed)
    net = tiny.build(len(tiny.CLASSES)).to(memory_format=torch.channels_last)
    net.first[1].running_mean.uniform_(-0.5, 0.5)
    return net


@pytest.fixture
def recordings(monkeypatch):
    """The recordings that are made."""
    made = []

    class Noted(Capture):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(home, "Capture", Noted)
    return made


@pytest.mark.parametrize("batch_size", [1, 7, 30, 64])
def test_replayed_passes_say_what_eager_ones_do(batch_size, recordings):
    net, images = model(), batches(batch_size=batch_size)
    logits, labels = Evaluator(net, images, captured=True).logits()
    expected_logits, expected_labels = collect_logits(net, images)
    assert len(recordings) == 1
    assert logits.shape == (30, 3)
    torch.testing.assert_close(logits, expected_logits)
    assert torch.equal(labels, expected_labels)
    assert labels.tolist() == tiny.dataset().test.labels.tolist()


def test_a_recording_follows_weights_that_change_in_place(recordings):
    net, images = model(), batches()
    evaluator = Evaluator(net, images, captured=True)
    before, _ = evaluator.logits()
    kept = before.clone()
    net.load_state_dict(model(seed=1).state_dict())
    after, _ = evaluator.logits()
    assert len(recordings) == 1
    assert torch.equal(before, kept), "a later pass does not write into the logits of an earlier one"
    torch.testing.assert_close(after, collect_logits(model(seed=1), images)[0])


def test_weights_that_have_moved_are_recorded_anew(recordings):
    net, images = model(), batches()
    evaluator = Evaluator(net, images, captured=True)
    evaluator.logits()
    net.load_state_dict(model(seed=1).state_dict(), assign=True)
    torch.testing.assert_close(evaluator.logits()[0], collect_logits(model(seed=1), images)[0])
    assert len(recordings) == 2


def test_a_model_is_recorded_in_evaluation_and_left_in_its_mode():
    net = model().train()
    statistics = net.first[1].running_mean.clone()
    evaluator = Evaluator(net, batches(), captured=True)
    assert torch.equal(evaluator.logits()[0], evaluator.logits()[0]), "no dropout is drawn"
    assert all(module.training for module in net.modules())
    assert torch.equal(net.first[1].running_mean, statistics)


def test_precision_is_that_of_an_eager_pass():
    net, images = model(), batches()
    logits, _ = Evaluator(net, images, autocast_dtype=torch.bfloat16, captured=True).logits()
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float()), "the product ran in bfloat16"
    torch.testing.assert_close(logits, collect_logits(net, images)[0], atol=0.05, rtol=0.05)


def test_measuring_again_and_again_gives_the_numbers_of_evaluate():
    net, images = model(), batches()
    teacher_logits, _ = collect_logits(model(seed=1), images)
    evaluator = Evaluator(net, images)
    assert evaluator() == evaluate(net, images)
    assert evaluator(teacher_logits) == evaluate(net, images, teacher_logits=teacher_logits)


def test_a_model_that_cannot_be_recorded_runs_eagerly_and_it_is_said_once(monkeypatch):
    def refuse(*args, **options):
        raise CannotCaptureError("it waits for the device")

    monkeypatch.setattr(home, "Capture", refuse)
    net, images, notes = model(), batches(), []
    evaluator = Evaluator(net, images, captured=True, observer=notes.append)
    for _ in range(2):
        assert torch.equal(evaluator.logits()[0], collect_logits(net, images)[0])
    assert notes == [Note("the evaluation cannot be captured and runs eagerly: it waits for the device")]


def test_batches_of_a_users_own_run_eagerly(recordings):
    net, images = model(), list(batches())
    assert torch.equal(Evaluator(net, images, captured=True).logits()[0], collect_logits(net, images)[0])
    assert not recordings
    with pytest.raises(DataError, match="no images"):
        Evaluator(net, [], captured=True).logits()


class Waiting(nn.Module):
    """Reads a number off the device in its forward pass, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.inner = model()

    def forward(self, images):
        return self.inner(images) * (1.0 if images.sum().item() >= 0.0 else 2.0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_on_a_gpu_a_graph_follows_the_weights_and_nothing_waits(dtype):
    net, images = model().cuda(), batches(torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        evaluator = Evaluator(net, images, autocast_dtype=dtype, captured=True)
        evaluator.logits()
        net.load_state_dict(model(seed=1).state_dict())
        torch.cuda.set_sync_debug_mode("error")
        try:
            logits, labels = evaluator.logits()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected, expected_labels = collect_logits(net, images, autocast_dtype=dtype)
    tolerance = 2e-2 if dtype else 1e-4  # the last batch is padded, so other kernels may be chosen for it
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(labels, expected_labels)


@pytest.mark.gpu
def test_on_a_gpu_a_model_that_waits_for_the_device_runs_eagerly():
    net, images, notes = Waiting().cuda(), batches(torch.device("cuda")), []
    evaluator = Evaluator(net, images, captured=True, observer=notes.append)
    torch.testing.assert_close(evaluator.logits()[0], collect_logits(net, images)[0])
    assert len(notes) == 1
