import pytest
import torch
from torch import nn

from distillab.adapters import build_regressor, match_size
from distillab.errors import ShapeError
from distillab.models.catalog import build_model
from distillab.models.features import probe_features

SIZES = (7, 8, 15, 16)


def hint_feature(name):
    model = build_model(name, 10)
    return probe_features(model, (model.hint_layer,), 32)[model.hint_layer]


def seeded(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("student", "teacher", "channels"),
    [
        ("cnn16", "cnn8", (32, 128)),
        ("resnet98", "resnet50", (128, 512)),
        ("cnn16", "resnet50", (32, 512)),
        ("resnet98", "cnn8", (128, 128)),
    ],
)
def test_regressors_lead_from_each_student_to_each_teacher(student, teacher, channels):
    features = hint_feature(student), hint_feature(teacher)
    assert (features[0].shape[1], features[1].shape[1]) == channels
    regressor = build_regressor(*features, rectified=True)
    out = regressor(features[0])
    assert out.shape == features[1].shape
    assert (out >= 0).all()
    # 3x3 weights without bias, and BatchNorm's scale and shift of the teacher's width.
    assert sum(p.numel() for p in regressor.parameters()) == 9 * channels[0] * channels[1] + 2 * channels[1]


def test_a_regressor_is_convolution_norm_and_rectifier_written_out():
    student, teacher = seeded(3, 2, 5, 5), seeded(3, 4, 5, 5)
    regressor = build_regressor(student, teacher, rectified=True)
    y = nn.functional.conv2d(student, regressor.project.weight, padding=1)
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(regressor(student), y.clamp(min=0))


def test_the_rectifier_is_dropped_where_the_teacher_is_negative():
    student, teacher = seeded(4, 2, 5, 5), seeded(4, 3, 5, 5)
    assert (build_regressor(student, teacher, rectified=False)(student) < 0).any()
    assert not (build_regressor(student, teacher, rectified=True)(student) < 0).any()


def test_vectors_get_a_linear_regressor():
    student, teacher = seeded(6, 5), seeded(6, 9)
    out = build_regressor(student, teacher, rectified=True)(student)
    assert out.shape == (6, 9)
    assert (out >= 0).all()
    assert (build_regressor(student, teacher, rectified=False)(student) < 0).any()


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 4, 4), (2, 3)), ((2, 3), (2, 3, 4, 4)), ((2, 5, 3), (2, 5, 3)), ((2,), (2,))]
)
def test_features_of_different_kinds_are_refused(student, teacher):
    with pytest.raises(ShapeError, match="no regressor"):
        build_regressor(torch.rand(student), torch.rand(teacher), rectified=True)
    with pytest.raises(ShapeError, match="cannot be compared"):
        match_size(torch.rand(student), torch.rand(teacher))


@pytest.mark.parametrize("teacher_size", SIZES)
@pytest.mark.parametrize("student_size", SIZES)
def test_the_larger_map_is_pooled_to_the_smaller(student_size, teacher_size):
    a, b = seeded(2, 3, student_size, student_size), seeded(2, 5, teacher_size, teacher_size)
    small = min(student_size, teacher_size)
    pooled = match_size(a, b)
    assert [tuple(x.shape) for x in pooled] == [(2, 3, small, small), (2, 5, small, small)]
    for before, after in zip((a, b), pooled, strict=True):
        n = before.shape[2]
        if n == small:
            assert after is before
            continue
        stride = n // small
        window = n - (small - 1) * stride
        for i in range(small):
            for j in range(small):
                patch = before[:, :, i * stride : i * stride + window, j * stride : j * stride + window]
                torch.testing.assert_close(after[:, :, i, j], patch.mean((2, 3)))
        assert (small - 1) * stride + window == n


def test_maps_that_are_larger_one_way_and_smaller_the_other_meet_in_the_middle():
    a, b = match_size(seeded(1, 2, 8, 4), seeded(1, 3, 4, 6))
    assert (a.shape, b.shape) == ((1, 2, 4, 4), (1, 3, 4, 4))


def test_pooling_by_halves_is_the_mean_of_four():
    a = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Rows 0..3 and 4..7: (0 + 1 + 4 + 5) / 4 = 2.5, (2 + 3 + 6 + 7) / 4 = 4.5; eight more in the rows below.
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]])
    assert torch.equal(match_size(a, torch.zeros(1, 1, 2, 2))[0][0, 0], expected)


def test_vectors_have_no_size():
    a, b = torch.rand(2, 3), torch.rand(2, 7)
    assert match_size(a, b) == (a, b)


@pytest.mark.parametrize(("student_size", "teacher_size"), [(7, 8), (15, 7), (16, 7), (8, 8), (16, 15)])
def test_gradients_of_regressor_and_pooling_are_right(student_size, teacher_size):
    student = seeded(2, 2, student_size, student_size).requires_grad_()
    teacher = seeded(2, 3, teacher_size, teacher_size)
    regressor = build_regressor(student, teacher, rectified=True)

    def loss(feature):
        return (torch.sub(*match_size(regressor(feature), teacher)) ** 2).mean()

    assert torch.autograd.gradcheck(loss, (student,))


def test_gradients_of_a_linear_regressor_are_right():
    student = seeded(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(build_regressor(student, seeded(4, 2), rectified=True), (student,))
