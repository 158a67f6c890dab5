import pytest
import torch
from pydantic import ValidationError

from distillab.errors import ShapeError
from distillab.methods.hint import Hint, HintConfig, hint_loss
from distillab.models.features import ModelOutput

NO_LABELS = torch.zeros(3).long()
START = torch.tensor(0.0)


def feature(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def reference(student, teacher):
    """Mean of the squared differences of a sample's elements, sample by sample."""
    losses = []
    for s, t in zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True):
        losses.append(sum((a - b) * (a - b) for a, b in zip(s, t, strict=True)) / len(s))
    return torch.tensor(losses, dtype=torch.float64)


def test_a_value_worked_by_hand():
    # ((1 - 0)^2 + (2 - 4)^2) / 2 = 2.5
    assert hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).item() == 2.5


@pytest.mark.parametrize("shape", [(3, 2, 4, 5), (3, 7)])
def test_it_equals_the_loop(shape):
    student, teacher = feature(0, *shape), feature(1, *shape)
    losses = hint_loss(student, teacher, reduction="none")
    torch.testing.assert_close(losses, reference(student, teacher), rtol=1e-12, atol=0)


def test_its_mean_equals_torchs_own():
    student, teacher = feature(0, 3, 2, 4, 5), feature(1, 3, 2, 4, 5)
    torch.testing.assert_close(hint_loss(student, teacher), torch.nn.MSELoss()(student, teacher))


def test_the_gradient_is_right():
    teacher = feature(1, 2, 2, 3, 3)
    assert torch.autograd.gradcheck(lambda f: hint_loss(f, teacher), feature(0, 2, 2, 3, 3).requires_grad_())


def test_no_gradient_flows_to_the_teacher():
    student, teacher = feature(0, 3, 7).requires_grad_(), feature(1, 3, 7).requires_grad_()
    hint_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        (torch.zeros(3, 2, 4, 4), torch.zeros(3, 5, 4, 4)),
        (torch.zeros(3, 2, 4, 4), torch.zeros(1, 2, 4, 4)),
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(0, 2), torch.zeros(0, 2)),
        (torch.zeros(3, 2).long(), torch.zeros(3, 2)),
    ],
)
def test_features_that_do_not_fit_are_refused_rather_than_broadcast(student, teacher):
    with pytest.raises(ShapeError, match="not floats of one shape"):
        hint_loss(student, teacher)


def test_the_term_is_the_weighted_loss_under_whatever_name_the_layers_have():
    student, teacher = feature(0, 3, 2, 4, 4), feature(1, 3, 2, 4, 4)
    found = Hint(HintConfig(hint_weight=2.0)).terms(
        ModelOutput(None, {"pool2": student}), ModelOutput(None, {"stage.1": teacher}), NO_LABELS, START
    )
    assert list(found) == ["hint"]
    torch.testing.assert_close(found["hint"], 2.0 * reference(student, teacher))


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8)])
def test_the_larger_map_is_averaged_down_to_the_smaller(sizes):
    # Every 2x2 block of the larger map is a constant plus noise of mean zero, so its average is that constant.
    noise = torch.tensor([[1.0, -1.0], [-2.0, 2.0]]).double().repeat(4, 4)
    small = feature(0, 3, 2, 4, 4)
    large = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) + noise
    maps = {4: small, 8: large}
    found = Hint(HintConfig()).terms(
        ModelOutput(None, {"a": maps[sizes[0]]}), ModelOutput(None, {"b": maps[sizes[1]]}), NO_LABELS, START
    )
    torch.testing.assert_close(found["hint"], torch.zeros(3, dtype=torch.float64))


def test_maps_of_half_precision_are_averaged_in_float32():
    large, small = feature(0, 3, 2, 8, 8).bfloat16(), feature(1, 3, 2, 4, 4).bfloat16()

    def term(a, b):
        return Hint(HintConfig()).terms(ModelOutput(None, {"a": a}), ModelOutput(None, {"b": b}), NO_LABELS, START)[
            "hint"
        ]

    torch.testing.assert_close(term(large, small), term(large.float(), small.float()), rtol=0, atol=0)


@pytest.mark.parametrize("features", [{}, {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2)}])
def test_another_number_of_layers_than_one_is_refused(features):
    one = ModelOutput(None, {"a": torch.zeros(3, 2)})
    with pytest.raises(ShapeError, match="one layer of the student"):
        Hint(HintConfig()).terms(ModelOutput(None, features), one, NO_LABELS, START)
    with pytest.raises(ShapeError, match="one layer of the teacher"):
        Hint(HintConfig()).terms(one, None, NO_LABELS, START)


def test_the_layers_are_the_teachers_and_the_students():
    method = Hint(HintConfig(hint_layer="layer3", guided_layer="layer2"))
    assert method.layers() == ("layer3", "layer2")
    assert Hint(HintConfig()).layers() == (None, None)
    assert method.stops_at_layer()


@pytest.mark.parametrize("rectified", [True, False])
def test_the_regressor_reaches_negative_targets_unless_there_are_none(rectified):
    student, teacher = feature(0, 4, 2, 6, 6).float(), feature(1, 4, 5, 6, 6).float()
    regressor = Hint(HintConfig()).adapter(student, teacher.relu() if rectified else teacher)
    mapped = regressor(student)
    assert mapped.shape == teacher.shape
    assert bool((mapped >= 0).all()) == rectified


def test_a_few_steps_bring_the_student_nearer_to_the_hint():
    student, teacher = feature(0, 4, 2, 6, 6).float(), feature(1, 4, 5, 3, 3).float()
    method = Hint(HintConfig())
    torch.manual_seed(0)
    regressor = method.adapter(student, teacher)
    optimizer = torch.optim.SGD(regressor.parameters(), lr=1.0)
    losses = []
    for _ in range(30):
        output = ModelOutput(None, {"a": regressor(student)})
        loss = method.terms(output, ModelOutput(None, {"b": teacher}), NO_LABELS, START)["hint"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("settings", [{"hint_weight": 0.0}, {"hint_weight": float("inf")}, {"layer": "pool2"}])
def test_settings_that_cannot_work_are_refused(settings):
    with pytest.raises(ValidationError):
        HintConfig(**settings)
