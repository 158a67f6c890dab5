"""What validation says of a stage, epoch by epoch: which weights are the best, and when it is enough."""

import contextlib

import torch
from torch import nn

from distillab.evaluation.evaluate import Evaluation
from distillab.training.watch import Watch


def watching(*told, model=None, as_used=contextlib.nullcontext, patience=None):
    """A watch to whom the images tell these losses and accuracies, epoch by epoch."""
    left = iter(told)

    def evaluator():
        nll, top1 = next(left)
        return Evaluation(num_samples=10, top1=top1, top5=None, nll=nll, ece=0.0)

    return Watch(evaluator, model or nn.Linear(1, 1), as_used, patience=patience)


def test_the_best_epoch_is_the_first_with_the_lowest_loss_whatever_its_accuracy():
    watch = watching((0.9, 0.5), (0.4, 0.6), (0.4, 0.7), (0.7, 0.9))
    told = [watch.look(epoch) for epoch in (1, 2, 3, 4)]
    assert watch.best.epoch == 2
    assert (watch.best.validation.nll, watch.best.validation.top1) == (0.4, 0.6)
    assert told[3] == {"validation_top1": 0.9, "validation_loss": 0.7}


def test_the_best_weights_are_kept_as_they_are_used_and_do_not_learn_on():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)

    @contextlib.contextmanager
    def as_used():
        with torch.no_grad():
            model.weight += 10.0
            yield
            model.weight -= 10.0

    watch = watching((0.4, 0.5), (0.9, 0.5), model=model, as_used=as_used)
    watch.look(1)
    nn.init.constant_(model.weight, 2.0)
    watch.look(2)
    assert watch.best.state["weight"].item() == 11.0


def test_patience_is_over_when_so_many_epochs_were_no_better():
    watch = watching((0.9, 0.5), (0.5, 0.5), (0.6, 0.5), (0.5, 0.5), patience=2)
    over = []
    for epoch in (1, 2, 3, 4):
        watch.look(epoch)
        over.append(watch.patience_is_over(epoch))
    assert over == [False, False, False, True]


def test_without_validation_images_nothing_is_looked_at_and_nobody_stops():
    watch = Watch(None, nn.Linear(1, 1), contextlib.nullcontext, patience=1)
    assert [watch.look(epoch) for epoch in (1, 2)] == [{}, {}]
    assert (watch.patience, watch.best, watch.patience_is_over(100)) == (None, None, False)
