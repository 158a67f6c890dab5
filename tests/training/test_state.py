import pytest
import torch
from torch import nn

from distillab.errors import CheckpointError, ShapeError
from distillab.training.config import OptimizerConfig
from distillab.training.optimizer import make_optimizer
from distillab.training.state import (
    check_fits,
    load_optimizer_state,
    load_tensors,
    optimizer_state,
    reading_state,
    tensors_of,
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)).to(
        memory_format=torch.channels_last
    )


def copied(tensors):
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def train(module, optimizer, steps, first=0):
    for step in range(first, first + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        module(torch.randn(5, 3, 4, 4)).square().sum().backward()
        optimizer.step()


def test_parameters_and_all_buffers_are_saved():
    module = model()
    module.register_buffer("mean", torch.zeros(3), persistent=False)
    assert set(tensors_of(module)) == {*module.state_dict(), "mean"}


def test_values_are_copied_into_the_tensors_that_are_in_use():
    source, module = model(), model()
    train(source, torch.optim.SGD(source.parameters(), lr=0.1), 2)
    places = {name: tensor.data_ptr() for name, tensor in tensors_of(module).items()}
    load_tensors(tensors_of(module), copied(tensors_of(source)), what="a model")
    for name, tensor in tensors_of(module).items():
        assert torch.equal(tensor, tensors_of(source)[name])
        assert tensor.data_ptr() == places[name]
    assert module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in module.parameters())


MISFITS = {
    "a shape": (lambda saved: saved.update({"3.bias": torch.zeros(3)}), r"'3.bias' was saved as torch.float32 \[3\]"),
    "a shape that broadcasts": (lambda saved: saved.update({"3.bias": torch.zeros(1)}), "'3.bias' was saved as"),
    "a type": (lambda saved: saved.update({"3.bias": torch.zeros(2).double()}), "saved as torch.float64"),
    "one too few": (lambda saved: saved.pop("3.bias"), "'3.bias' is not saved"),
    "one too many": (lambda saved: saved.update({"4.bias": torch.zeros(2)}), "'4.bias' is only saved"),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_changed(change, message):
    module = model()
    before = copied(tensors_of(module))
    saved = {name: tensor + 1 for name, tensor in before.items()}
    change(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_tensors(tensors_of(module), saved, what="student")
    assert caught.value.message.startswith("the checkpoint is of another run: student: ")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(module).items())
    with pytest.raises(CheckpointError, match=message):
        check_fits(before, saved, what="student")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(name):
    config = OptimizerConfig(name=name, learning_rate=0.01)
    whole, first, second = model(), model(), model()
    optimizer = make_optimizer(whole.parameters(), config)
    train(whole, optimizer, 5)
    before = make_optimizer(first.parameters(), config)
    train(first, before, 3)
    saved = {number: copied(values) for number, values in optimizer_state(before).items()}
    after = make_optimizer(second.parameters(), config)
    load_tensors(tensors_of(second), copied(tensors_of(first)), what="a model")
    load_optimizer_state(after, saved)
    train(second, after, 2, first=3)
    for one, other in zip(tensors_of(whole).values(), tensors_of(second).values(), strict=True):
        assert torch.equal(one, other)
    moments = [value for state in after.state.values() for value in state.values() if value.ndim == 4]
    assert moments
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in moments)


def test_an_optimizer_that_has_not_stepped_has_nothing_to_remember():
    optimizer = make_optimizer(model().parameters(), OptimizerConfig())
    assert optimizer_state(optimizer) == {}
    load_optimizer_state(optimizer, {})
    assert not optimizer.state


@pytest.mark.parametrize(
    "saved",
    [{"99": {}}, {"x": {}}, {"-1": {}}, {"0": {"momentum_buffer": torch.zeros(7)}}],
    ids=["no such parameter", "no number", "a negative number", "another shape"],
)
def test_an_optimizer_of_other_parameters_is_refused_before_anything_is_changed(saved):
    module = model()
    optimizer = make_optimizer(module.parameters(), OptimizerConfig())
    train(module, optimizer, 1)
    before = {number: copied(values) for number, values in optimizer_state(optimizer).items()}
    with pytest.raises(CheckpointError, match="optimizer: "):
        load_optimizer_state(optimizer, saved)
    for number, values in optimizer_state(optimizer).items():
        assert all(torch.equal(value, before[number][name]) for name, value in values.items())


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), ValueError("x"), IndexError("x"), AttributeError("x")]
)
def test_a_part_that_is_missing_or_of_another_kind_is_an_error_by_name(error):
    with pytest.raises(CheckpointError, match="of another run") as caught, reading_state():
        raise error
    assert type(error).__name__ in caught.value.message


def test_our_own_errors_stay_what_they_are():
    with pytest.raises(ShapeError), reading_state():
        raise ShapeError("it does not fit")
