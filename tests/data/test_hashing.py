import numpy as np
import pytest
import torch
from scipy import stats

from distillab.data.hashing import Stream, all_draws, below, draws

MASK = (1 << 64) - 1


def splitmix64(state):
    """Steele, Lea, Flood 2014 in Python integers: (next state, output)."""
    state = (state + 0x9E3779B97F4A7C15) & MASK
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return state, z ^ (z >> 31)


def reference(seed, view, index, stream):
    key = 0
    for part in (seed, view, stream):
        key = splitmix64((key + part) & MASK)[1]
    state = key
    for _ in range(index + 1):
        state, output = splitmix64(state)
    return output


def test_the_generator_of_the_reference_is_splitmix64():
    # The published first outputs for the seed 1234567.
    state, first = splitmix64(1234567)
    assert first == 6457827717110365317
    assert splitmix64(state)[1] == 3203168211198807973


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**63 + 5, -3])
def test_draws_are_outputs_of_splitmix64_from_a_key(seed):
    found = draws(seed, 12, torch.arange(20), Stream.FLIP)
    expected = [reference(seed, 12, index, int(Stream.FLIP)) for index in range(20)]
    assert [value & MASK for value in found.tolist()] == expected


def test_draws_of_other_seeds_views_and_streams_have_nothing_in_common():
    indices = torch.arange(1000)
    sets = [
        set(draws(seed, view, indices, stream).tolist())
        for seed in (0, 1)
        for view in (0, 1)
        for stream in (Stream.CROP_Y, Stream.CROP_X)
    ]
    assert len(set.union(*sets)) == 8 * 1000


def test_every_bit_is_set_in_half_of_the_draws():
    bits = draws(3, 1, torch.arange(20_000), Stream.ORDER).numpy().view(np.uint64)
    shares = [float(((bits >> np.uint64(place)) & np.uint64(1)).mean()) for place in range(64)]
    assert np.abs(np.array(shares) - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)


@pytest.mark.parametrize("bound", [1, 2, 9, 1000])
def test_whole_numbers_are_uniform_below_their_bound(bound):
    numbers = below(draws(0, 0, torch.arange(30_000), Stream.PARTNER), bound)
    counts = np.bincount(numbers.numpy(), minlength=bound)
    assert len(counts) == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("seed", [0, -3, 2**63 + 5])
@pytest.mark.parametrize("view", [0, 12, -1, 2**62])
def test_a_view_in_a_tensor_gives_the_same_draws(seed, view):
    indices, there = torch.arange(20), torch.tensor(view)
    assert torch.equal(draws(seed, there, indices, Stream.FLIP), draws(seed, view, indices, Stream.FLIP))
    assert torch.equal(all_draws(seed, there, indices), all_draws(seed, view, indices))


def test_all_draws_are_those_of_each_stream():
    indices = torch.tensor([5, 0, 123_456_789])
    table = all_draws(2**63 + 5, 9, indices)
    assert len(table) == len(Stream)
    for stream in Stream:
        assert torch.equal(table[stream], draws(2**63 + 5, 9, indices, stream))


@pytest.mark.gpu
def test_a_gpu_draws_the_same_and_a_graph_of_it_can_be_told_another_view():
    indices, view = torch.arange(1000, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    assert torch.equal(all_draws(5, 6, indices).cpu(), all_draws(5, 6, indices.cpu()))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = all_draws(5, view, indices)
    for number in (3, 2**40):
        view.fill_(number)
        graph.replay()
        assert torch.equal(found.cpu(), all_draws(5, number, indices.cpu()))


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    indices = torch.arange(10_000)
    assert torch.equal(draws(5, 6, indices.cuda(), Stream.FLIP).cpu(), draws(5, 6, indices, Stream.FLIP))
