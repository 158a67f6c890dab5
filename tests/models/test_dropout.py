import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from distillab.models.catalog import build_model
from distillab.models.dropout import Dropout

SIZE = 40_003  # no multiple of the four masks of a draw


def drop(x, p=0.3, seed=0):
    torch.manual_seed(seed)
    return Dropout(p).train()(x)


@pytest.mark.parametrize("p", [0.001, 0.2, 0.3, 0.5, 0.97])
def test_each_element_is_kept_with_the_probability_that_was_asked_for(p):
    num_kept = int(drop(torch.ones(SIZE), p).count_nonzero())
    assert binomtest(num_kept, SIZE, 1.0 - p).pvalue > 1e-4


@pytest.mark.parametrize("p", [0.2, 0.3, 1 / 3])
def test_the_mean_is_kept(p):
    y = drop(torch.ones(SIZE, dtype=torch.float64), p)
    kept = 1 - round(p * 65536) / 65536  # worked out from the bits: 0.2 is 13107 / 65536
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 1.0 / kept], rel=1e-15)
    assert y.mean().item() == pytest.approx(1.0, abs=5 * (p / (1 - p) / SIZE) ** 0.5)


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 8])
def test_neighbours_are_dropped_independently_of_each_other(distance):
    y = drop(torch.ones(SIZE, dtype=torch.float64))
    correlation = torch.corrcoef(torch.stack([y[:-distance], y[distance:]]))[0, 1]
    assert abs(correlation.item()) < 5 / SIZE**0.5


def test_each_of_the_four_masks_of_a_draw_is_as_likely_as_the_others():
    kept = drop(torch.ones(4 * 10_000)).view(-1, 4).count_nonzero(dim=0)
    assert all(binomtest(count, 10_000, 0.7).pvalue > 1e-4 for count in kept.tolist())


def test_equal_seeds_give_equal_masks_and_each_call_another():
    x = torch.ones(1000)
    layer = Dropout(0.5).train()
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)


def test_the_number_of_threads_changes_nothing():
    x = torch.ones(200_000)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(drop(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_masks_are_dealt_out_in_the_order_of_memory():
    x = torch.ones(2, 5, 3, 3)
    planes, pixels = drop(x), drop(x.contiguous(memory_format=torch.channels_last))
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pixels.permute(0, 2, 3, 1).flatten(), planes.flatten())


@pytest.mark.parametrize(
    "x",
    [torch.ones(6, 8)[:, ::2], torch.ones(1, 4).expand(6, 4), torch.ones(()), torch.ones(0, 3)],
    ids=["with gaps", "expanded", "a number", "empty"],
)
def test_any_layout_is_dropped_out(x):
    before = x.clone()
    y = drop(x, 0.5)
    assert y.shape == x.shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_type_stays_and_does_not_move_the_mask(dtype):
    y = drop(torch.ones(1000, dtype=dtype), 0.5)
    assert y.dtype == dtype
    assert torch.equal(y.double(), drop(torch.ones(1000, dtype=torch.float64), 0.5))


def test_the_gradient_is_the_scaled_mask():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    drop(x).sum().backward()
    assert torch.equal(x.grad, drop(torch.ones(50, dtype=torch.float64)))
    assert torch.autograd.gradcheck(drop, [x])


def test_evaluation_changes_nothing_and_draws_nothing():
    x = torch.randn(10)
    state = torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("p", "expected"), [(0.0, 1.0), (1e-9, 1.0), (1.0, 0.0)])
def test_probabilities_beyond_16_bits_are_torchs(p, expected):
    assert torch.equal(drop(torch.ones(1000), p), nn.functional.dropout(torch.full((1000,), expected), 0.0))


def test_a_compiled_model_drops_out_as_torch_does():
    def outputs(layer):
        torch.compiler.reset()
        torch.manual_seed(0)
        return torch.compile(layer.train(), backend="eager", fullgraph=True)(torch.ones(100))

    assert torch.equal(outputs(Dropout(0.5)), outputs(nn.Dropout(0.5)))


def test_it_looks_like_torchs_own():
    assert isinstance(Dropout(0.2), nn.Dropout)
    assert repr(Dropout(0.2)) == repr(nn.Dropout(0.2))
    assert not Dropout(0.2).state_dict()
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)


@pytest.mark.parametrize("name", ["cnn8", "resnet98"])
def test_our_models_use_it(name):
    dropouts = [module for module in build_model(name, 10).modules() if isinstance(module, nn.Dropout)]
    assert dropouts
    assert all(type(module) is Dropout for module in dropouts)
