import pytest
import torch
from torch import nn

from distillab.training.config import OptimizerConfig
from distillab.training.optimizer import clip_gradients, make_optimizer, set_learning_rate

CONFIGS = [OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5) for name in ("sgd", "adam", "adamw")]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_sgd_follows_nesterovs_formula():
    # v = 0.9 v + g; p = p - lr (g + 0.9 v), with g = 1 twice: v 1, 1.9; steps 1.9 and 2.71 times 0.1
    parameter = nn.Parameter(torch.zeros(1, 1))
    optimizer = make_optimizer([parameter], OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.0))
    for expected in (-0.19, -0.461):
        parameter.grad = torch.ones(1, 1)
        optimizer.step()
        assert parameter.item() == pytest.approx(expected)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_only_weights_decay(config):
    model = net()
    optimizer = make_optimizer(model.parameters(), config)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]]
    assert {id(p) for p in decayed} == {id(model[0].weight), id(model[2].weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_a_bad_batch_does_not_reach_weights_or_state(config):
    model = net()
    optimizer = make_optimizer(model.parameters(), config)
    optimizer.found_inf = torch.zeros(())
    model(torch.rand(5, 3)).sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.found_inf.fill_(1.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    optimizer.found_inf.fill_(0.0)
    model(torch.rand(5, 3)).sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda c: c.name)
def test_an_optimizer_that_asks_for_leave_to_be_recorded_has_it(config):
    assert all(group["capturable"] for group in make_optimizer(net().parameters(), config).param_groups)


def test_the_learning_rate_takes_effect():
    parameter = nn.Parameter(torch.zeros(1, 1))
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.0)
    optimizer = make_optimizer([parameter], config)
    set_learning_rate(optimizer, 0.5)
    parameter.grad = torch.ones(1, 1)
    optimizer.step()
    assert parameter.item() == pytest.approx(-0.5)


def test_long_gradients_are_shortened_and_short_ones_left():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    assert clip_gradients([parameter], None).item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == [3.0, 4.0]
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(5.0)
    assert parameter.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)
    parameter.grad = torch.tensor([0.3, 0.4])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.tolist() == pytest.approx([0.3, 0.4])
