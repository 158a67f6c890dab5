import math

import pytest
import torch
from pydantic import ValidationError

from distillab.errors import ShapeError
from distillab.methods.cross_entropy import cross_entropy_loss
from distillab.methods.merit_based import MeritBased, MeritBasedConfig, merit_based_loss, merit_weights
from distillab.methods.soft_target import soft_target_loss
from distillab.models.features import ModelOutput

VARIANTS = ("delta", "hard", "soft")
LABELS = torch.tensor([0, 3, 1, 2, 0, 1])


def scores(seed, n=6, c=4):
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def softmax(row, temperature):
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def reference_merit(teacher_row, label, variant, temperature, delta):
    right = all(teacher_row[label] >= z for z in teacher_row)
    if variant == "delta":
        return 0.5 + delta if right else 0.5 - delta
    if variant == "hard":
        return 0.5 if right else 0.0
    return softmax(teacher_row, temperature)[label]


def reference_loss(student_logits, teacher_logits, labels, variant, temperature, delta):
    losses = []
    for student, teacher, label in zip(student_logits.tolist(), teacher_logits.tolist(), labels.tolist(), strict=True):
        a = reference_merit(teacher, label, variant, temperature, delta)
        surprise = -math.log(softmax(student, 1.0)[label])
        pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
        losses.append((1 - a) * surprise + a * temperature**2 * sum(p * math.log(p / q) for p, q in pairs))
    return torch.tensor(losses, dtype=torch.float64)


def test_a_value_worked_by_hand():
    # Teacher (ln 3, 0) says (3/4, 1/4) and is right; the student says (1/2, 1/2). CE = ln 2 = 0.693147,
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2) = 0.130812.
    # delta, a = 0.6: 0.4 * 0.693147 + 0.6 * 0.130812 = 0.355746
    # hard,  a = 0.5: 0.5 * 0.693147 + 0.5 * 0.130812 = 0.411980
    # soft,  a = 3/4: 0.25 * 0.693147 + 0.75 * 0.130812 = 0.271396
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    found = [merit_based_loss(student, teacher, torch.tensor([0]), variant=v).item() for v in VARIANTS]
    assert found == pytest.approx([0.355746, 0.411980, 0.271396], abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_equals_the_loop(variant, temperature):
    student, teacher = scores(0), scores(1)
    right = teacher.argmax(dim=1) == LABELS
    assert 0 < right.sum() < len(right), "the case must hold both a right and a wrong teacher"
    losses = merit_based_loss(
        student, teacher, LABELS, variant=variant, temperature=temperature, delta=0.2, reduction="none"
    )
    expected = reference_loss(student, teacher, LABELS, variant, temperature, 0.2)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("labels", [LABELS, scores(2).softmax(dim=1)], ids=["integers", "probabilities"])
def test_the_gradient_is_right(variant, labels):
    def loss(logits):
        return merit_based_loss(logits, scores(1), labels, variant=variant, temperature=2.0)

    assert torch.autograd.gradcheck(loss, scores(0).requires_grad_())


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_flows_to_the_teacher(variant):
    student, teacher = scores(0).requires_grad_(), scores(1).requires_grad_()
    merit_based_loss(student, teacher, LABELS, variant=variant).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_merit_under_mixed_labels_is_the_average_over_them(variant):
    mixed = scores(2).softmax(dim=1)
    for n, row in enumerate(scores(1).tolist()):
        expected = sum(share * reference_merit(row, c, variant, 2.0, 0.1) for c, share in enumerate(mixed[n].tolist()))
        found = merit_weights(scores(1), mixed, variant=variant, temperature=2.0, delta=0.1)[n]
        assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_hot_labels_equal_integers(variant):
    one_hot = torch.nn.functional.one_hot(LABELS, 4).float()
    found = merit_based_loss(scores(0), scores(1), one_hot, variant=variant)
    torch.testing.assert_close(found, merit_based_loss(scores(0), scores(1), LABELS, variant=variant))


def test_a_delta_of_zero_weighs_labels_and_teacher_alike():
    assert merit_weights(scores(1), LABELS, variant="delta", delta=0.0).tolist() == [0.5] * 6


def test_a_delta_of_a_half_takes_the_teacher_where_right_and_the_labels_where_wrong():
    right = scores(1).argmax(dim=1) == LABELS
    losses = merit_based_loss(scores(0), scores(1), LABELS, variant="delta", delta=0.5, reduction="none")
    by_teacher = soft_target_loss(scores(0), scores(1), temperature=1.0, reduction="none")
    by_labels = cross_entropy_loss(scores(0), LABELS, reduction="none")
    torch.testing.assert_close(losses, torch.where(right, by_teacher, by_labels))


def test_hard_merit_leaves_labels_alone_where_the_teacher_is_wrong():
    wrong = (scores(1).argmax(dim=1) + 1) % 4
    found = merit_based_loss(scores(0), scores(1), wrong, variant="hard", temperature=4.0)
    torch.testing.assert_close(found, cross_entropy_loss(scores(0), wrong))


@pytest.mark.parametrize(("sign", "merit"), [(1.0, 1.0), (-1.0, 0.0)])
def test_soft_merit_of_a_teacher_that_is_sure_is_one_or_nothing(sign, merit):
    teacher = sign * 1e3 * torch.nn.functional.one_hot(LABELS, 4).double()
    assert merit_weights(teacher, LABELS, variant="soft").tolist() == [merit] * 6


def test_temperature_softens_soft_merit_towards_chance():
    merit = merit_weights(scores(1), LABELS, variant="soft", temperature=1e6)
    torch.testing.assert_close(merit, torch.full((6,), 0.25, dtype=torch.float64), atol=1e-5, rtol=0)


def test_of_tied_classes_the_first_is_the_teachers_choice():
    merit = merit_weights(torch.zeros(2, 3), torch.tensor([0, 1]), variant="hard")
    assert merit.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("delta", [-0.01, 0.51, math.nan])
def test_a_delta_outside_its_range_is_refused(delta):
    with pytest.raises(ValueError, match=r"not in 0\.\.0\.5"):
        merit_weights(scores(1), LABELS, variant="delta", delta=delta)


def test_an_unknown_variant_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'soft'"):
        merit_weights(scores(1), LABELS, variant="sotf")


def test_labels_of_another_length_are_refused():
    with pytest.raises(ShapeError, match="labels are"):
        merit_based_loss(scores(0), scores(1), LABELS[:3], variant="hard")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_terms_are_the_two_parts_of_the_loss(variant):
    method = MeritBased(MeritBasedConfig(variant=variant, temperature=2.0))
    found = method.terms(ModelOutput(scores(0)), ModelOutput(scores(1)), LABELS, torch.tensor(0.0))
    merit = merit_weights(scores(1), LABELS, variant=variant, temperature=2.0, delta=0.1)
    surprise = cross_entropy_loss(scores(0), LABELS, reduction="none")
    assert list(found) == ["merit_labels", "merit_soft_targets"]
    torch.testing.assert_close(found["merit_labels"], (1 - merit) * surprise)
    total = merit_based_loss(scores(0), scores(1), LABELS, variant=variant, temperature=2.0, reduction="none")
    torch.testing.assert_close(sum(found.values()), total, rtol=0, atol=0)


def test_a_given_delta_is_used():
    method = MeritBased(MeritBasedConfig(delta=0.5))
    found = method.terms(ModelOutput(scores(0)), ModelOutput(scores(1)), LABELS, torch.tensor(0.0))
    right = scores(1).argmax(dim=1) == LABELS
    assert (found["merit_labels"][right] == 0).all()
    assert (found["merit_labels"][~right] > 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "firm"},
        {"delta": 0.6},
        {"delta": -0.1},
        {"variant": "hard", "delta": 0.1},
        {"variant": "soft", "delta": 0.1},
        {"temperature": 0.0},
    ],
)
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValidationError):
        MeritBasedConfig(**settings)


def test_a_delta_of_zero_that_is_given_is_not_taken_for_none():
    outputs = ModelOutput(scores(0)), ModelOutput(scores(1))
    found = MeritBased(MeritBasedConfig(variant="delta", delta=0.0)).terms(*outputs, LABELS, torch.tensor(0.0))
    torch.testing.assert_close(
        found["merit_labels"], 0.5 * torch.nn.functional.cross_entropy(scores(0), LABELS, reduction="none")
    )
