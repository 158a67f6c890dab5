import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tiny
from distillab.config import regime_of, resolve_distill
from distillab.data.batches import TrainingBatches
from distillab.data.config import AugmentConfig
from distillab.data.loader import LoaderBatches
from distillab.errors import NonFiniteLossError
from distillab.evaluation.evaluate import Evaluator, collect_logits
from distillab.feeding import build_feed
from distillab.methods.cross_entropy import CrossEntropy
from distillab.models.catalog import build_model
from distillab.preparation import Workplace, baseline_stage
from distillab.runtime.capture import CannotCaptureError, Capture
from distillab.runtime.device import choose_compute
from distillab.runtime.events import EpochEnded, StageStarted
from distillab.runtime.reproducibility import seeded
from distillab.training import averaging, step_time
from distillab.training.averaging import (
    MovingAverage,
    has_batchnorm,
    recalibrate_batchnorm,
    recalibrated,
    recalibrated_inside,
)
from distillab.training.guards import describe_batch
from distillab.training.stage_run import StageRun, dropout_seed
from distillab.training.step import Tally
from distillab.training.step_time import seconds_per_step
from one_stage import fit

COMPUTE = choose_compute("cpu", "float32")


def ready(**settings):
    config = resolve_distill({**tiny.RECIPE, **settings}, {})
    feed = build_feed(config, tiny.dataset(), tiny.SIZE, COMPUTE)
    with seeded(0, "model"):
        model = build_model("tiny:build", 3, image_size=tiny.SIZE, mean=(0.3,) * 3, std=(0.2,) * 3)
    place = Workplace(feed, 0, COMPUTE)
    return baseline_stage(model, regime_of(config), place, role="student"), feed, regime_of(config)


def train(stage, feed, regime, **more):
    events, records = [], []
    report = fit(stage, feed, regime, seed=0, compute=COMPUTE, observer=events.append, record=records.append, **more)
    return report, events, records


def test_it_learns():
    report, _, _ = train(*ready(training={"epochs": 8, "batch_size": 16}))
    assert report.history[-1]["loss"] < 0.5 * report.history[0]["loss"]
    assert report.validation.top1 > 0.8


def test_what_is_told_is_what_is_recorded():
    report, events, records = train(*ready())
    started = [event for event in events if isinstance(event, StageStarted)]
    assert [(s.title, s.epochs, s.steps_per_epoch) for s in started] == [("student alone", 2, 4)]
    ended = [dict(event.values) for event in events if isinstance(event, EpochEnded)]
    assert ended == [dict(values) for values in report.history]
    assert [record["epoch"] for record in records] == [1, 2]
    assert {"loss", "loss/labels", "train_top1", "validation_top1", "validation_loss"} <= set(records[0])


def test_the_reported_loss_is_the_mean_over_the_epochs_samples():
    stage, feed, regime = ready(
        optimizer={"learning_rate": 1e-12, "weight_decay": 0.0}, training={"epochs": 1, "batch_size": 16}
    )
    stage.learner.student.inner.second[1].p = 0.0
    report, _, _ = train(stage, feed, regime)
    model = stage.learner.student.train()
    losses = [nn.functional.cross_entropy(model(b.images), b.labels).item() for b in feed.training.epoch(0)]
    assert report.history[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_accuracy_counts_the_samples_that_were_trained_on_and_no_others():
    tally = Tally(torch.device("cpu"))
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    norm = torch.ones(())
    tally.add({"labels": torch.ones(3)}, norm, logits, torch.tensor([0, 1, 1]), torch.tensor(0))
    tally.add({"labels": torch.zeros(1)}, norm, logits[:1], torch.tensor([[0.9, 0.1]]), torch.tensor(1))
    found = tally.read()
    assert found["train_top1"] == pytest.approx(3 / 4)
    assert found["loss"] == pytest.approx(3 / 4)


def test_nan_stops_the_run_names_the_term_and_spares_the_weights():
    stage, feed, regime = ready()
    poison = stage.learner.student.inner.head.bias
    with torch.no_grad():
        poison.fill_(math.inf)
    before = {n: p.detach().clone() for n, p in stage.learner.student.named_parameters()}
    with pytest.raises(NonFiniteLossError) as caught:
        train(stage, feed, regime)
    assert "labels" in caught.value.message
    assert "epoch 1, step 1" in caught.value.where
    assert "learning_rate" in caught.value.hint
    assert caught.value.exit_code == 5
    assert all(torch.equal(before[n], p) for n, p in stage.learner.student.named_parameters())


def test_the_first_bad_step_is_found_even_when_read_late():
    tally = Tally(torch.device("cpu"))
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    for step, (a, b) in enumerate([(good, good), (good, bad), (bad, bad)]):
        tally.add({"a": a, "b": b}, torch.ones(()), None, torch.zeros(2, dtype=torch.long), torch.tensor(step))
    assert tally.first_bad() == ("the loss term 'b'", 1)
    assert tally.found_inf.item() == 1.0


def test_a_bad_step_is_not_forgotten_after_good_ones():
    tally = Tally(torch.device("cpu"))
    good, bad = torch.ones(2), torch.tensor([1.0, float("inf")])
    for step, terms in enumerate((good, bad, good, good)):
        tally.add({"a": terms}, torch.ones(()), None, torch.zeros(2, dtype=torch.long), torch.tensor(step))
        tally.reset()
    assert tally.first_bad() == ("the loss term 'a'", 1)


def test_each_epoch_is_counted_anew():
    tally = Tally(torch.device("cpu"))
    for labels, loss, top1 in ((torch.tensor([0, 0]), 2.0, 1.0), (torch.tensor([1, 0]), 3.0, 0.5)):
        tally.reset()
        logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
        tally.add({"labels": torch.full((2,), loss)}, torch.ones(()), logits, labels, torch.tensor(0))
        assert tally.read() == {"loss": loss, "loss/labels": loss, "train_top1": top1}


class Noting(CrossEntropy):
    """Learns from labels, writes down how far the stage has come, and says NaN at one of its steps."""

    def __init__(self, bad_step=None):
        super().__init__(CrossEntropy.Config())
        self.bad_step = bad_step
        self.progress = []

    def terms(self, student, teacher, labels, progress):
        (term,) = super().terms(student, teacher, labels, progress).values()
        self.progress.append(progress.item())
        return {"labels": term * math.nan if len(self.progress) - 1 == self.bad_step else term}


def test_progress_is_the_share_of_the_stages_steps_that_is_done():
    stage, feed, regime = ready()
    method = Noting()
    train(replace(stage, method=method), feed, regime)
    assert method.progress == [step / 8 for step in range(8)]


def test_the_images_of_a_bad_step_are_those_of_the_students_epoch_over_all_its_stages():
    stage, feed, regime = ready()
    with pytest.raises(NonFiniteLossError) as caught:
        train(replace(stage, method=Noting(bad_step=6), first_epoch=3), feed, regime)
    batch = feed.training.replay(3 + 1, 2)
    assert caught.value.where == f"student alone, epoch 2, step 7, {describe_batch(batch)}"
    assert describe_batch(batch) != describe_batch(feed.training.replay(1, 2))


def test_dropout_differs_from_run_to_run_role_to_role_and_step_to_step():
    places = [(0, "student", 0), (1, "student", 0), (0, "assistant", 0), (0, "student", 1)]
    assert len({dropout_seed(*place) for place in places}) == 4


def test_a_bad_gradient_of_a_good_loss_is_caught_too():
    """The square root's slope is infinite at zero, and zero times it is NaN."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1, 3))

        def forward(self, images):
            return images.mean(dim=(2, 3)) * (self.scale * self.scale).sqrt()

    stage, feed, regime = ready()
    stage.learner.student = Root()
    with pytest.raises(NonFiniteLossError, match="the gradient became NaN"):
        train(stage, feed, regime)
    assert torch.equal(stage.learner.student.scale, torch.zeros(1, 3))


def test_early_stopping_returns_the_best_weights_not_the_last():
    stage, feed, regime = ready(
        training={"epochs": 40, "batch_size": 16, "early_stop_patience": 2, "recalibrate_batchnorm": False},
        optimizer={"learning_rate": 0.5},
        split={"validation_fraction": 0.3},
    )
    report, _, _ = train(stage, feed, regime)
    losses = [record["validation_loss"] for record in report.history]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert report.epochs == len(losses) < 40
    assert report.steps == report.epochs * feed.training.steps_per_epoch
    assert len(losses) - 1 - best == 2
    assert report.best.epoch == best + 1
    assert report.validation.nll == pytest.approx(losses[best], rel=1e-6)


def test_validation_is_never_learnt_from():
    _, feed, _ = ready()
    held_out = {image.numpy().tobytes() for batch in feed.validation for image in batch.images}
    clean = {image.numpy().tobytes() for batch in feed.sample for image in batch.images}
    shown = {image.numpy().tobytes() for batch in feed.training.epoch(0) for image in batch.images}
    assert held_out.isdisjoint(clean | shown)
    assert feed.training.num_samples + feed.validation.num_samples == len(tiny.dataset().train)


def test_the_moving_average_is_the_formula():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, 0.9)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, -1.0], start=1):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(0.9, (1 + step) / (3 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_moving_average_takes_the_statistics_along_and_counts_their_batches():
    model = nn.BatchNorm1d(1)
    average = MovingAverage(model, 0.9)
    model.running_mean.fill_(1.0)
    model.num_batches_tracked.fill_(7)
    average.update(model)
    assert average.model.running_mean.item() == pytest.approx(0.5)
    assert average.model.num_batches_tracked.item() == 7


def test_an_average_is_judged_with_statistics_of_its_own_weights():
    report, _, _ = train(*ready(training={"epochs": 3, "batch_size": 16, "ema_decay": 0.9}))
    assert report.validation.nll < report.validation_before_recalibration.nll
    assert report.history[-1]["validation_loss"] == pytest.approx(report.validation.nll, rel=1e-5)


def test_the_student_ends_with_the_average_of_its_weights_after_every_step():
    stage, *rest = ready()
    head, weights = stage.learner.student.inner.head, []

    class Watched(CrossEntropy):
        def terms(self, *args):
            weights.append(head.weight.detach().clone())
            return super().terms(*args)

    train(replace(stage, method=Watched(CrossEntropy.Config())), *rest)
    weights.append(head.weight.detach().clone())
    expected, *later = weights
    assert len(later) == 8
    for step, latest in enumerate(later, start=1):
        decay = min(0.9, (1 + step) / (3 + step))
        expected = decay * expected + (1 - decay) * latest
    averaged = ready(training={"epochs": 2, "batch_size": 16, "ema_decay": 0.9})
    train(*averaged)
    torch.testing.assert_close(averaged[0].learner.student.inner.head.weight.detach(), expected)


def test_a_stage_that_another_one_follows_chooses_nothing_and_takes_no_statistics_anew():
    stage, feed, regime = ready(training={"epochs": 2, "batch_size": 16, "ema_decay": 0.9})
    report, _, _ = train(replace(stage, final=False), feed, regime)
    assert (report.best, report.last, report.validation_before_recalibration) == (None, None, None)
    assert report.validation is not None


def test_with_a_moving_average_the_student_ends_with_it():
    plain, averaged = ready(), ready(training={"epochs": 2, "batch_size": 16, "ema_decay": 0.9})
    train(*plain)
    train(*averaged)
    a, b = plain[0].learner.student.inner.head.weight, averaged[0].learner.student.inner.head.weight
    assert not torch.equal(a, b)
    assert torch.allclose(a, b, atol=0.2)


@pytest.mark.parametrize("sizes", [(8, 8, 8), (8, 2), (8, 1)])
def test_batchnorm_statistics_are_the_mean_over_the_images_dropout_off(sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    batches = [torch.rand(size, 3, 4, 4) * (k + 1) for k, size in enumerate(sizes)]
    recalibrate_batchnorm(model, batches, COMPUTE)
    norm = model[1]
    counted = [b for b in batches if len(b) > 1]
    num_images = sum(len(b) for b in counted)
    mean = sum(len(b) * b.mean(dim=(0, 2, 3)) for b in counted) / num_images
    var = sum(len(b) * b.transpose(0, 1).flatten(1).var(dim=1) for b in counted) / num_images
    assert torch.allclose(norm.running_mean, mean, atol=1e-6)
    assert torch.allclose(norm.running_var, var, atol=1e-6)
    assert norm.momentum == 0.1
    assert all(module.training for module in model.modules())
    assert has_batchnorm(model)
    assert not has_batchnorm(nn.Linear(1, 1))


def test_statistics_of_one_image_at_a_time_are_those_of_the_first():
    norm = nn.BatchNorm2d(3)
    images = [torch.rand(1, 3, 4, 4) for _ in range(2)]
    recalibrate_batchnorm(norm, images, COMPUTE)
    assert torch.allclose(norm.running_mean, images[0].mean(dim=(0, 2, 3)))
    assert not has_batchnorm(nn.BatchNorm2d(3, track_running_stats=False))


@pytest.mark.parametrize(("num_images", "asked"), [(640, 128), (2000, 200), (16_000, 1024)])
def test_between_epochs_statistics_are_those_of_a_tenth_of_the_images_within_bounds(num_images, asked):
    shape = (num_images, 4, 4, 3)
    images = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    labels = np.zeros(num_images, dtype=np.int64)
    options = {"batch_size": 8, "num_classes": 3, "augment": AugmentConfig(), "label_smoothing": 0.0, "seed": 0}
    source = TrainingBatches(images, labels, None, device=COMPUTE.device, image_size=4, **options)
    model, seen = nn.BatchNorm2d(3), []
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    regime = ready()[2]
    with recalibrated_inside(model, source, regime, COMPUTE):
        assert sum(seen) == asked
    seen.clear()
    assert recalibrated(model, source, regime, COMPUTE)
    assert sum(seen) == min(num_images, 4096), "at the end of a training"


def test_recalibration_sees_images_as_training_shows_them(monkeypatch):
    """Statistics of plain images do not fit weights that have seen augmented ones only."""
    monkeypatch.setattr(averaging, "STATISTICS_IMAGES", 24)
    _, feed, regime = ready(augment={"crop_padding": 4, "horizontal_flip": True})
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))
    assert recalibrated(model, feed.training, regime, COMPUTE)
    batches = [feed.training.replay(0, step).images for step in range(2)]
    assert [len(batch) for batch in batches] == [16, 16]
    mean = torch.cat(batches).mean(dim=(0, 2, 3))
    assert torch.allclose(model[0].running_mean, mean, atol=1e-6)
    plain = torch.cat([batch.images for batch in feed.sample]).mean(dim=(0, 2, 3))
    assert not torch.allclose(model[0].running_mean, plain, atol=1e-2)


def test_recalibration_rescues_a_short_run():
    """After very few steps the moving statistics lag far behind the weights."""
    report, _, _ = train(*ready(training={"epochs": 3, "batch_size": 32}))
    assert report.validation_before_recalibration.nll > report.validation.nll


def test_an_epoch_is_judged_with_statistics_of_its_weights_and_goes_on_with_its_own():
    settings = {"epochs": 3, "batch_size": 16, "label_smoothing": 0.1}
    anew, _, _ = train(*ready(training=settings))
    stage, *rest = ready(training={**settings, "recalibrate_batchnorm": False})
    as_left, _, _ = train(stage, *rest)
    for one, other in zip(anew.history, as_left.history, strict=True):
        assert (one["loss"], one["train_top1"]) == (other["loss"], other["train_top1"])
    assert anew.history[0]["validation_loss"] < as_left.history[0]["validation_loss"]
    assert anew.validation_before_recalibration == as_left.validation


def test_statistics_are_anew_inside_only():
    stage, feed, regime = ready(augment={"crop_padding": 4, "horizontal_flip": True})
    model = stage.learner.student.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with recalibrated_inside(model, feed.training, regime, COMPUTE):
        inside = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], inside[name])}
    assert changed == {name for name in before if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    recalibrate_batchnorm(model, (batch.images for batch in feed.training.epoch(0)), COMPUTE)
    assert all(torch.equal(inside[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.gpu
def test_on_a_gpu_a_recording_sees_the_statistics_inside_and_the_old_ones_afterwards():
    compute = choose_compute("cuda", "float32")
    config = resolve_distill(tiny.RECIPE, {})
    feed, regime = build_feed(config, tiny.dataset(), tiny.SIZE, compute), regime_of(config)
    model = compute.take(build_model("tiny:build", 3, image_size=tiny.SIZE)).train()
    evaluator = Evaluator(model, feed.validation, captured=True)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        left = evaluator.logits()[0]
        for mode in ("default", "error"):  # the first chooses kernels
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with recalibrated_inside(model, feed.training, regime, compute):
                    inside = evaluator.logits()[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        with recalibrated_inside(model, feed.training, regime, compute):
            expected = collect_logits(model, feed.validation)[0]
    torch.testing.assert_close(inside, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(left, inside, atol=1e-2)
    torch.testing.assert_close(evaluator.logits()[0], left)


def test_a_stage_that_is_over_waits_for_no_collector(monkeypatch):
    """On a GPU it holds recordings and moments, and Python does not collect for want of the device's memory."""
    stages = []
    begin = StageRun.__init__

    def begun(self, *stage, **more):
        stages.append(weakref.ref(self))
        begin(self, *stage, **more)

    monkeypatch.setattr(StageRun, "__init__", begun)
    gc.collect()
    gc.disable()
    try:
        train(*ready())
        assert [stage() for stage in stages] == [None]
    finally:
        gc.enable()


def test_a_loader_is_not_asked_for_more_epochs_than_there_are():
    stage, _, regime = ready()
    asked = []

    class Loader(LoaderBatches):
        def epoch(self, epoch, **more):
            asked.append(epoch)
            return super().epoch(epoch, **more)

    loader = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 3), batch_size=4)
    with recalibrated_inside(stage.learner.student, Loader(loader, device=COMPUTE.device), regime, COMPUTE):
        pass
    assert asked == []


@pytest.mark.parametrize("execution", ["eager", "captured", "refused"])
def test_a_time_estimate_leaves_everything_as_it_was(execution, monkeypatch):
    """Captured, its stand-in on a CPU is timed."""
    captures = []

    def capture(*args, **options):
        captures.append(options)
        if execution == "refused":
            raise CannotCaptureError("it waits for the device")
        return Capture(*args, **options)

    monkeypatch.setattr(step_time, "Capture", capture)
    stage, feed, regime = ready()
    before = {name: tensor.clone() for name, tensor in stage.learner.state_dict().items()}
    compute = COMPUTE if execution == "eager" else replace(COMPUTE, execution="captured")
    own, teachers = seconds_per_step(stage, feed, regime, compute)
    assert own > 0.0 <= teachers
    assert len(captures) == {"eager": 0, "captured": 1, "refused": 1}[execution]
    assert all(torch.equal(before[n], t) for n, t in stage.learner.state_dict().items())


def test_float32_and_bfloat16_take_about_the_same_way():
    losses = []
    for precision in ("float32", "bfloat16"):
        stage, feed, regime = ready()
        report = fit(stage, feed, regime, seed=0, compute=choose_compute("cpu", precision), observer=lambda event: None)
        losses.append([record["loss"] for record in report.history])
        assert all(p.dtype is torch.float32 for p in stage.learner.parameters())
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_contiguous_and_channels_last_take_the_same_way():
    losses = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        stage, feed, regime = ready()
        stage.learner.to(memory_format=memory_format)
        report = fit(stage, feed, regime, seed=0, compute=COMPUTE, observer=lambda event: None)
        losses.append([record["loss"] for record in report.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
