import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from distillab.errors import ConfigError, ShapeError
from distillab.models.catalog import build_model
from distillab.models.classifier import NormalizedModel
from distillab.models.features import (
    default_hint_layer,
    forward_features,
    is_rectified,
    probe_features,
    tappable_layers,
)


class Foreign(nn.Module):
    """A small residual-free net with in-place activations, a shared ReLU and a layer that never runs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.auxiliary = nn.Linear(6, 2)
        self.head = nn.Linear(6, 5)

    def forward(self, images):
        x = self.relu(self.norm(self.stem(images)))
        x = self.relu(self.body(x))
        return self.head(x.mean((2, 3)))


def images(n=2, size=8):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def state_of(model):
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["cnn16", "resnet98"])
def test_links_of_our_models_are_tapped_without_moving_the_logits(name):
    model = build_model(name, 10).eval()
    batch = images(2, 32)
    with torch.no_grad():
        x, expected = batch, {}
        for link in model.links:
            x = getattr(model, link)(x)
            expected[link] = x.clone()
        layers = model.links
        output = forward_features(model, batch, layers)
        assert torch.equal(output.logits, model(batch))
    assert list(output.features) == list(layers)
    for link in layers:
        assert torch.equal(output.features[link], expected[link]), link


@pytest.mark.parametrize("name", ["cnn8", "resnet98"])
def test_any_layer_inside_our_models_can_be_tapped_beside_the_links(name):
    model = build_model(name, 10).eval()
    inside = {"cnn8": "layer1.0.bn", "resnet98": "conv2_x.0.residual_function.1"}[name]
    layers = (inside, model.hint_layer)
    with torch.no_grad():
        output = forward_features(model, images(2, 32), layers)
        alone = forward_features(model, images(2, 32), layers[1:])
    # BatchNorm's output has negative values; the ReLU after it works in place, and must not reach the tapped copy.
    assert (output.features[inside] < 0).any()
    assert torch.equal(output.features[model.hint_layer], alone.features[model.hint_layer])
    assert torch.equal(output.logits, alone.logits)


def test_layers_of_a_foreign_model_are_copies_that_later_operations_do_not_change():
    model = Foreign().eval()
    with torch.no_grad():
        output = forward_features(model, images(), ("norm", "body.1", "body"))
        stem = model.norm(model.stem(images()))
        assert torch.equal(output.features["norm"], stem)
        inner = model.body[1](model.body[0](stem.relu()))
        assert torch.equal(output.features["body.1"], inner)
        assert torch.equal(output.features["body"], inner.relu())
        assert torch.equal(output.logits, model(images()))


def test_a_wrapped_model_names_its_layers_as_the_module_inside_does():
    inner = Foreign().eval()
    model = NormalizedModel(inner, 5, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert tappable_layers(model) == tappable_layers(inner)
    output = forward_features(model, images(), ("stem",))
    assert torch.equal(output.features["stem"], inner.stem((images() - 0.5) / 0.2))
    assert output.logits.shape == (2, 5)


def test_gradients_flow_through_tapped_features():
    for model, layer in ((Foreign(), "norm"), (build_model("cnn16", 10), "pool2")):
        batch = images(4, 8 if isinstance(model, Foreign) else 32)
        forward_features(model, batch, (layer,)).features[layer].square().sum().backward()
        reached = [name for name, p in model.named_parameters() if p.grad is not None]
        assert reached[0] in ("stem.weight", "layer1.0.conv.weight")
        assert not [name for name in reached if name.startswith(("body", "head", "layer3", "layer4", "mlp"))]


@pytest.mark.parametrize(
    ("name", "layer", "early", "late"),
    [
        ("cnn16", "pool2", "layer2.3.bn", "layer3.0.bn"),
        ("resnet98", "hint_pool", "conv3_x.7.residual_function.9", "conv4_x.0.residual_function.1"),
        ("cnn16", "layer2.0.conv", "layer1.3.bn", "layer2.0.bn"),
        ("foreign", "norm", "norm", "body.1"),
    ],
)
def test_stopping_leaves_the_statistics_of_later_layers_untouched(name, layer, early, late):
    foreign = name == "foreign"
    model = NormalizedModel(Foreign(), 5) if foreign else build_model(name, 10)
    root = model.published().train()
    before = state_of(root)
    output = forward_features(model, images(4, 8 if foreign else 32), (layer,), stop=True)
    assert output.logits is None
    assert list(output.features) == [layer]
    after = state_of(root)
    assert not torch.equal(before[f"{early}.running_mean"], after[f"{early}.running_mean"])
    assert torch.equal(before[f"{late}.running_mean"], after[f"{late}.running_mean"])
    assert after[f"{late}.num_batches_tracked"] == 0


def test_stopping_runs_to_the_last_of_several_layers_in_whatever_order_they_are_named():
    output = forward_features(build_model("cnn16", 10), images(2, 32), ("pool3", "pool1", "pool3"), stop=True)
    assert set(output.features) == {"pool1", "pool3"}
    output = forward_features(Foreign(), images(), ("body", "stem"), stop=True)
    assert list(output.features) == ["body", "stem"]
    assert output.logits is None


@pytest.mark.parametrize("stop", [False, True])
def test_hooks_are_gone_afterwards_also_when_the_model_fails(stop):
    model = Foreign()
    forward_features(model, images(), ("stem", "body.0"), stop=stop)
    assert hook_count(model) == 0
    with pytest.raises(RuntimeError):
        forward_features(model, torch.rand(2, 7, 8, 8), ("stem", "body.0"), stop=stop)
    with pytest.raises(ShapeError):
        forward_features(model, images(), ("relu", "head"), stop=stop)
    assert hook_count(model) == 0


def test_a_model_that_catches_exceptions_is_stopped_all_the_same():
    class Catching(Foreign):
        def forward(self, images):
            try:
                return super().forward(images)
            except Exception:
                return torch.zeros(2, 5)

    assert forward_features(Catching(), images(), ("body",), stop=True).logits is None


def test_an_unknown_layer_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'pool2'"):
        forward_features(build_model("cnn16", 10), images(2, 32), ("pool_2",))
    with pytest.raises(ConfigError, match="no layer ''"):
        forward_features(Foreign(), images(), ("",))
    with pytest.raises(ConfigError, match=r"did you mean 'body\.1'"):
        forward_features(Foreign(), images(), ("body.11",))


def test_what_cannot_be_tapped_is_refused_by_name():
    class Tupled(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.LSTM(3, 4)

        def forward(self, images):
            return self.pair(images.mean((2, 3)))

    with pytest.raises(ShapeError, match="more than once"):
        forward_features(Foreign(), images(), ("relu",))
    with pytest.raises(ConfigError, match="does not run"):
        forward_features(Foreign(), images(), ("auxiliary",))
    with pytest.raises(ShapeError, match="'pair' gives a tuple"):
        forward_features(Tupled(), images(), ("pair",))
    with pytest.raises(ShapeError, match="returns a tuple"):
        forward_features(Tupled(), images())
    with pytest.raises(ConfigError, match="nothing to stop at"):
        forward_features(Foreign(), images(), stop=True)


def test_tappable_layers_are_all_named_modules():
    names = tappable_layers(build_model("resnet98", 10))
    assert {"normalize", "conv1", "conv5_x", "hint_pool", "pool", "fc", "conv2_x.0.residual_function.4"} <= set(names)
    assert "" not in names


def test_our_models_know_their_hint_layer():
    assert default_hint_layer(build_model("cnn12", 10), 32) == "pool2"
    assert default_hint_layer(build_model("resnet98", 10), 32) == "hint_pool"


def test_the_hint_layer_of_a_foreign_model_is_the_middle_one_that_gives_a_map():
    def conv():
        return nn.Conv2d(3, 3, 1)

    def net(*layers):
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))

    # Maps with parameters are 0, 2, 4: the middle is 2. Of two, the later.
    assert default_hint_layer(net(conv(), nn.ReLU(), conv(), nn.ReLU(), conv()), 8) == "2"
    assert default_hint_layer(net(conv(), nn.ReLU(), conv()), 8) == "2"
    # A single block is looked into; a single convolution is taken itself.
    assert default_hint_layer(net(nn.Sequential(conv(), conv(), conv())), 8) == "0.1"
    assert default_hint_layer(net(conv()), 8) == "0"
    assert default_hint_layer(Foreign(), 8) == "norm"
    # A body that ends in flat features holds its maps inside.
    body = nn.Sequential(conv(), nn.ReLU(), conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert default_hint_layer(nn.Sequential(body, nn.Linear(3, 5)), 8) == "0.2"
    with pytest.raises(ConfigError, match="no layer of this model gives a map"):
        default_hint_layer(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)), 8)


def test_probing_leaves_the_model_and_the_generator_as_they_were():
    model = Foreign().train()
    model.body.eval()
    before, modes = state_of(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    features = probe_features(model, ("stem", "body"), 8)
    assert {name: tuple(f.shape) for name, f in features.items()} == {"stem": (2, 4, 8, 8), "body": (2, 6, 4, 4)}
    assert not any(feature.requires_grad for feature in features.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert hook_count(model) == 0
    again = probe_features(copy.deepcopy(model), ("stem", "body"), 8)
    assert all(torch.equal(features[name], again[name]) for name in features)


def test_rectified_features_are_told_from_others():
    features = probe_features(Foreign(), ("stem", "norm", "body"), 8)
    assert [is_rectified(features[name]) for name in ("stem", "norm", "body")] == [False, False, True]
    for name in ("cnn16", "resnet98"):
        model = build_model(name, 10)
        assert is_rectified(probe_features(model, (model.hint_layer,), 32)[model.hint_layer])


@pytest.mark.parametrize("name", ["cnn16", pytest.param("resnet98", marks=pytest.mark.slow)])
def test_our_models_are_one_graph_tapped_or_not(name):
    model = build_model(name, 10).eval()
    explained = torch._dynamo.explain(forward_features)(model, images(2, 32), (model.hint_layer,))
    assert explained.graph_break_count == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "hint"), [("resnet18", "layer2"), ("mobilenet_v2", "features.9"), ("squeezenet1_0", "features.7")]
)
def test_torchvision_models_are_tapped_and_stopped(name, hint):
    model = build_model(f"torchvision:{name}", 10, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    assert default_hint_layer(model, 64) == hint
    output = forward_features(model, images(2, 64), (hint,))
    assert output.logits.shape == (2, 10)
    assert output.features[hint].ndim == 4
    assert forward_features(model, images(2, 64), (hint,), stop=True).logits is None
    assert not [key for key in model.published().state_dict() if key.startswith(("inner", "normalize"))]


def test_the_middle_is_found_inside_a_block_whose_own_map_is_one_pixel():
    blocks = [nn.Conv2d(3, 4, 3, stride=2, padding=1) for _ in range(1)]
    blocks += [nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(4)]
    net = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*blocks), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, 3)
        )
    )
    assert net.features(torch.rand(1, 3, 32, 32)).shape[-1] == 1
    assert default_hint_layer(net, 32) == "features.2"
