import pytest
import torch
from torch import nn

from distillab.errors import ShapeError
from distillab.models.catalog import build_model

COUNTS = {"resnet50": 23_520_842, "resnet71": 8_015_018, "resnet98": 2_831_578}
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet71": (4, 6, 9, 4), "resnet98": (6, 8, 12, 6)}
WIDTHS = {"resnet50": 64, "resnet71": 32, "resnet98": 16}
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def on_meta(name, num_classes=10):
    with torch.device("meta"):
        return build_model(name, num_classes)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("num_classes", [10, 100])
def test_parameter_counts_are_the_published_ones(name, num_classes):
    # Each class costs a weight for each of the 4 * 8 * width features, and a bias.
    more = (num_classes - 10) * (32 * WIDTHS[name] + 1)
    model = on_meta(name, num_classes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == COUNTS[name] + more


@pytest.mark.parametrize("name", COUNTS)
def test_state_dict_has_the_published_layout(name):
    expected = ["conv1.0.weight", *(f"conv1.1.{entry}" for entry in NORM)]
    for stage, blocks in enumerate(BLOCKS[name], start=2):
        for i in range(blocks):
            block = f"conv{stage}_x.{i}"
            for conv, norm in ((0, 1), (4, 5), (8, 9)):
                expected.append(f"{block}.residual_function.{conv}.weight")
                expected += [f"{block}.residual_function.{norm}.{entry}" for entry in NORM]
            if i == 0:
                expected.append(f"{block}.shortcut.0.weight")
                expected += [f"{block}.shortcut.1.{entry}" for entry in NORM]
    expected += ["fc.weight", "fc.bias"]
    state = on_meta(name).state_dict()
    assert list(state) == expected
    width = WIDTHS[name]
    assert state["conv1.0.weight"].shape == (width, 3, 3, 3)
    assert state["conv2_x.0.shortcut.0.weight"].shape == (4 * width, width, 1, 1)
    assert state["conv5_x.0.residual_function.4.weight"].shape == (8 * width, 8 * width, 3, 3)
    assert state["fc.weight"].shape == (10, 32 * width)


def test_the_stride_lies_on_the_3x3_convolution_and_the_shortcut():
    model = on_meta("resnet98")
    for stage, stride in zip((model.conv2_x, model.conv3_x, model.conv4_x, model.conv5_x), (1, 2, 2, 2), strict=True):
        first = stage[0]
        assert [first.residual_function[j].stride[0] for j in (0, 4, 8)] == [1, stride, 1]
        assert first.shortcut[0].stride[0] == stride
        assert all(len(block.shortcut) == 0 for block in stage[1:])


@pytest.mark.parametrize("name", COUNTS)
def test_dropout_follows_each_norm_of_the_residual_branch_and_precedes_the_classifier(name):
    model = on_meta(name)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) == 3 * sum(BLOCKS[name]) + 1
    assert {d.p for d in dropouts} == {0.3}
    assert [j for j, m in enumerate(model.conv3_x[0].residual_function) if isinstance(m, nn.Dropout)] == [2, 6, 10]
    assert not [m for m in model.conv3_x[0].shortcut if isinstance(m, nn.Dropout)]
    assert model.links[-2:] == ("dropout", "fc")


@pytest.mark.parametrize("name", COUNTS)
def test_hint_pool_is_the_pooled_second_stage_and_no_way_to_the_logits(name):
    model = build_model(name, 10)
    with torch.no_grad():
        logits, features = model.tap(torch.rand(1, 3, 32, 32), ["conv3_x", "hint_pool"], stop=True)
    assert logits is None
    assert features["conv3_x"].shape == (1, 8 * WIDTHS[name], 16, 16)
    assert features["hint_pool"].shape == (1, 8 * WIDTHS[name], 7, 7)
    assert "hint_pool" not in model.links


def test_the_side_branch_runs_only_when_it_is_tapped():
    model = build_model("resnet98", 10).eval()
    runs = []
    model.hint_pool.register_forward_hook(lambda *_: runs.append(1))
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        assert not runs
        tapped_logits, features = model.tap(images, ["conv3_x", "hint_pool"])
    assert len(runs) == 1
    assert torch.equal(logits, tapped_logits)
    assert torch.equal(features["hint_pool"], nn.functional.max_pool2d(features["conv3_x"], 3, 2))


def test_a_bottleneck_is_the_rectified_sum_of_branch_and_shortcut():
    model = build_model("resnet98", 10).eval()
    x = torch.randn(2, 64, 8, 8)
    before = x.clone()
    block = model.conv2_x[1]
    nn.init.ones_(block.residual_function[9].weight)
    torch.testing.assert_close(block(x), (block.residual_function(x) + x).clamp(min=0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", COUNTS)
def test_a_new_block_passes_its_shortcut_on(name):
    model = build_model(name, 10)
    x = torch.randn(2, 4 * WIDTHS[name], 4, 4)
    narrows, keeps = model.conv3_x[0], model.conv2_x[1]
    with torch.no_grad():
        assert torch.equal(keeps(x), x.relu())
        assert torch.equal(narrows(x), narrows.shortcut(x).relu())
    for stage in (model.conv2_x, model.conv3_x, model.conv4_x, model.conv5_x):
        for block in stage:
            assert not block.residual_function[9].weight.any()
            assert block.residual_function[5].weight.all()


def test_gradients_reach_every_parameter_once_the_residual_branches_take_part():
    model = build_model("resnet98", 10)
    for name, parameter in model.named_parameters():
        if name.endswith("residual_function.9.weight"):
            nn.init.ones_(parameter)
    model(torch.rand(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_another_image_size_is_refused():
    with pytest.raises(ShapeError, match="32"):
        build_model("resnet98", 10)(torch.rand(1, 3, 64, 64))
