import json
import math

import pytest
import torch
from torch import nn

from distillab.data.batch import Batch
from distillab.errors import ConfigError, DataError, NonFiniteLossError, ShapeError
from distillab.evaluation.evaluate import collect_logits, evaluate, evaluate_logits


def batches(sizes=(4, 4, 3), num_classes=7, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [
        Batch(
            images=torch.rand(n, 3, 2, 2, generator=source),
            labels=torch.randint(num_classes, (n,), generator=source),
            indices=None,
            view=0,
        )
        for n in sizes
    ]


def model(num_classes=7, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, num_classes, bias=False))


def test_logits_and_labels_come_in_the_order_of_the_batches():
    parts, net = batches(), model()
    logits, labels = collect_logits(net, parts)
    net.eval()
    assert logits.shape == (11, 7)
    torch.testing.assert_close(logits, net(torch.cat([b.images for b in parts])).detach())
    assert labels.tolist() == [label for b in parts for label in b.labels.tolist()]


def test_nothing_of_the_model_changes_and_no_graph_is_built():
    net = model()
    net[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    logits, _ = collect_logits(net, batches())
    assert not logits.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True]


def test_every_module_returns_to_its_own_mode_also_after_an_error():
    net = model()
    net.train()
    net[0].eval()
    before = [module.training for module in net.modules()]
    collect_logits(net, batches())
    assert [module.training for module in net.modules()] == before
    with pytest.raises(ValueError, match="expected 4D input"):
        collect_logits(net, [Batch(torch.zeros(2, 5), torch.zeros(2).long(), None, 0)])
    assert [module.training for module in net.modules()] == before


def test_logits_of_mixed_precision_come_as_float32():
    logits, _ = collect_logits(model(), batches(), autocast_dtype=torch.bfloat16)
    exact, _ = collect_logits(model(), batches())
    assert logits.dtype == torch.float32
    assert torch.equal(logits, logits.bfloat16().float()), "the product ran in bfloat16"
    torch.testing.assert_close(logits, exact, atol=0.05, rtol=0.05)


def test_an_evaluation_without_a_teacher_has_no_comparison():
    result = evaluate(model(), batches())
    logits, labels = collect_logits(model(), batches())
    assert result.num_samples == 11
    assert result.top1 == pytest.approx((logits.argmax(dim=1) == labels).float().mean().item())
    assert result.nll == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert 0.0 <= result.top1 <= result.top5 <= 1.0
    assert 0.0 <= result.ece <= 1.0
    assert result.teacher_agreement is result.teacher_divergence is result.top1_where_teacher_wrong is None


def test_a_model_agrees_with_itself_and_errs_where_it_errs():
    result = evaluate(model(), batches(), teacher=model())
    assert result.teacher_agreement == 1.0
    assert result.teacher_divergence == pytest.approx(0.0, abs=1e-12)
    assert result.top1_where_teacher_wrong == 0.0


def test_the_teachers_logits_do_as_well_as_the_teacher():
    teacher_logits, _ = collect_logits(model(seed=1), batches())
    by_logits = evaluate(model(), batches(), teacher_logits=teacher_logits)
    assert by_logits == evaluate(model(), batches(), teacher=model(seed=1))
    assert by_logits.teacher_divergence > 0.0


def test_a_teacher_and_its_logits_at_once_are_refused():
    with pytest.raises(ConfigError, match="both given"):
        evaluate(model(), batches(), teacher=model(), teacher_logits=torch.zeros(11, 7))


def test_a_teacher_without_mistakes_leaves_nothing_to_be_right_about():
    labels = torch.tensor([0, 1])
    perfect = nn.functional.one_hot(labels, 3).float()
    assert evaluate_logits(torch.zeros(2, 3), labels, perfect).top1_where_teacher_wrong is None


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top_5_of_fewer_than_six_classes_says_nothing(num_classes, has_top5):
    logits = torch.randn(4, num_classes, generator=torch.Generator().manual_seed(0))
    assert (evaluate_logits(logits, torch.zeros(4).long()).top5 is not None) == has_top5


def test_the_numbers_survive_json():
    numbers = evaluate(model(), batches(), teacher=model(seed=1)).as_dict()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert list(numbers)[:3] == ["num_samples", "top1", "top5"]


def test_no_batches_are_refused():
    with pytest.raises(DataError, match="no images"):
        evaluate(model(), [])


def test_a_spent_generator_is_refused_for_the_second_model():
    with pytest.raises(DataError, match="a list is not"):
        evaluate(model(), (batch for batch in batches()), teacher=model())


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ShapeError, match=r"teacher_logits \[11, 9\]"):
        evaluate(model(), batches(), teacher=model(num_classes=9))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused_with_their_number(bad):
    logits = torch.zeros(4, 3)
    broken = logits.clone()
    broken[1:3, :2] = bad  # four numbers of two images
    with pytest.raises(NonFiniteLossError, match="the model gives NaN or infinite logits for 2 of 4"):
        evaluate_logits(broken, torch.zeros(4).long())
    with pytest.raises(NonFiniteLossError, match="the teacher gives"):
        evaluate_logits(logits, torch.zeros(4).long(), broken)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_that_the_model_does_not_know_are_refused(label):
    with pytest.raises(DataError, match="the model knows 0 to 2"):
        evaluate_logits(torch.zeros(2, 3), torch.tensor([1, label]))


def test_batches_that_come_in_another_order_for_the_teacher_are_refused():
    class Shuffled:
        def __init__(self):
            self.parts = batches()

        def __iter__(self):
            self.parts = self.parts[::-1]
            return iter(self.parts)

    with pytest.raises(DataError, match="in another order"):
        evaluate(model(), Shuffled(), teacher=model(seed=1))


def test_the_divergence_is_the_teachers_from_the_student():
    student, teacher = torch.tensor([[0.0, 0.0, 3.0]]), torch.tensor([[2.0, 0.0, 0.0]])
    own, told = (one.double().softmax(dim=1) for one in (student, teacher))
    expected = sum(t * math.log(t / s) for s, t in zip(own[0].tolist(), told[0].tolist(), strict=True))
    assert evaluate_logits(student, torch.tensor([0]), teacher).teacher_divergence == pytest.approx(expected)
