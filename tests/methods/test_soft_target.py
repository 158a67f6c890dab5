import math

import pytest
import torch
from pydantic import ValidationError

from distillab.errors import ShapeError
from distillab.methods.soft_target import SoftTarget, SoftTargetConfig, soft_target_loss
from distillab.models.features import ModelOutput


def softened(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def reference(student_logits, teacher_logits, temperature):
    """T^2 times sum_c p_c log(p_c / q_c), p the teacher's and q the student's softened shares."""
    losses = []
    for student, teacher in zip(student_logits.tolist(), teacher_logits.tolist(), strict=True):
        pairs = zip(softened(teacher, temperature), softened(student, temperature), strict=True)
        losses.append(temperature**2 * sum(p * math.log(p / q) for p, q in pairs))
    return torch.tensor(losses, dtype=torch.float64)


def scores(seed, n=5, c=4):
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def test_a_value_worked_by_hand():
    # T = 2 softens (2 ln 3, 0) to (3/4, 1/4) and (0, 0) to (1/2, 1/2):
    # 4 * (3/4 ln(3/2) + 1/4 ln(1/2)) = 4 * (0.304099 - 0.173287) = 0.523248
    loss = soft_target_loss(torch.zeros(1, 2), torch.tensor([[2 * math.log(3), 0.0]]), temperature=2.0)
    assert loss.item() == pytest.approx(0.523248, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_it_equals_the_loop(temperature):
    losses = soft_target_loss(scores(0), scores(1), temperature=temperature, reduction="none")
    torch.testing.assert_close(losses, reference(scores(0), scores(1), temperature), rtol=1e-10, atol=0)


def test_it_equals_torchs_own_divergence_with_the_batch_mean():
    expected = 9 * torch.nn.KLDivLoss(reduction="batchmean")(
        (scores(0) / 3).log_softmax(dim=1), (scores(1) / 3).softmax(dim=1)
    )
    torch.testing.assert_close(soft_target_loss(scores(0), scores(1), temperature=3.0), expected)


def test_the_gradient_is_right():
    assert torch.autograd.gradcheck(
        lambda z: soft_target_loss(z, scores(1), temperature=4.0), scores(0).requires_grad_()
    )


def test_no_gradient_flows_to_the_teacher():
    student, teacher = scores(0).requires_grad_(), scores(1).requires_grad_()
    soft_target_loss(student, teacher, temperature=4.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_at_high_temperature_it_becomes_the_squared_distance_of_centred_logits():
    student, teacher = scores(0), scores(1)
    gap = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        differences = [a - sum(s) / 4 - (b - sum(t) / 4) for a, b in zip(s, t, strict=True)]
        gap += sum(d * d for d in differences) / (2 * 4) / 5
    assert soft_target_loss(student, teacher, temperature=1e4).item() == pytest.approx(gap, rel=1e-3)


def test_rows_that_differ_by_a_constant_agree():
    losses = soft_target_loss(scores(0) + 7.0, scores(0), temperature=4.0, reduction="none")
    torch.testing.assert_close(losses, torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_a_student_of_half_precision_is_compared_in_float32():
    student, teacher = scores(0).half(), scores(1).float()
    loss = soft_target_loss(student, teacher, temperature=4.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, soft_target_loss(student.float(), teacher, temperature=4.0))


def test_a_teacher_of_other_classes_is_refused():
    with pytest.raises(ShapeError, match=r"student_logits \[5, 4\] and teacher_logits \[5, 3\]"):
        soft_target_loss(scores(0), scores(1, c=3), temperature=4.0)


@pytest.mark.parametrize("temperature", [0.0, -4.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(temperature):
    with pytest.raises(ValueError, match="not positive and finite"):
        soft_target_loss(scores(0), scores(1), temperature=temperature)


def terms(progress=0.0, **settings):
    student, teacher = ModelOutput(scores(0)), ModelOutput(scores(1))
    labels = torch.tensor([0, 3, 1, 2, 0])
    return SoftTarget(SoftTargetConfig(**settings)).terms(student, teacher, labels, torch.tensor(progress))


def test_the_terms_are_the_weighted_losses():
    found = terms(temperature=2.0, label_weight=0.3, distill_weight=0.6)
    assert list(found) == ["labels", "soft_targets"]
    raw = torch.nn.functional.cross_entropy(scores(0), torch.tensor([0, 3, 1, 2, 0]), reduction="none")
    torch.testing.assert_close(found["labels"], 0.3 * raw)
    torch.testing.assert_close(found["soft_targets"], 0.6 * reference(scores(0), scores(1), 2.0))


def test_labels_without_weight_are_left_out():
    assert list(terms(label_weight=0.0)) == ["soft_targets"]


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 4.0), (0.5, 2.5), (1.0, 1.0)])
def test_the_weight_moves_evenly_from_its_start_to_its_end(progress, weight):
    annealed = terms(progress, distill_weight_start=4.0, distill_weight=1.0)["soft_targets"]
    torch.testing.assert_close(annealed, weight * terms(distill_weight=1.0)["soft_targets"])


def test_without_a_start_progress_makes_no_difference():
    torch.testing.assert_close(terms(0.9), terms(0.0), rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"label_weight": -0.1},
        {"distill_weight": math.nan},
        {"distill_weight": 0.0},
        {"distill_weight": 0.0, "distill_weight_start": 0.0},
        {"tempreature": 4.0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValidationError):
        SoftTargetConfig(**settings)


def test_the_soft_targets_may_fade_out():
    assert SoftTargetConfig(distill_weight=0.0, distill_weight_start=1.0).distill_weight == 0.0
