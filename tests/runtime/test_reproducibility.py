import pytest
import torch

from distillab.runtime.reproducibility import derived_seed, isolated_generators, seeded


def test_seeds_of_different_purposes_differ_and_are_stable():
    assert derived_seed(0, "student", "weights") != derived_seed(0, "teacher", "weights")
    assert derived_seed(0, 1) != derived_seed(1, 0)
    # A fixed value: another one would change every trajectory, which the changelog has to tell.
    assert derived_seed(0, "student", "weights") == 7951485163153575738


def test_seeded_draws_are_the_same_and_the_callers_generator_goes_on_as_if_nothing_had_been():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(5, "x"):
        first = torch.rand(2)
    with seeded(5, "x"):
        second = torch.rand(2)
    with isolated_generators(torch.device("cpu")):
        torch.manual_seed(99)
    assert torch.equal(first, second)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.gpu
def test_seeded_leaves_the_accelerators_generator_alone():
    torch.cuda.manual_seed(3)
    torch.rand(2, device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(5, "x"):
        torch.rand(2)
    assert torch.equal(torch.cuda.get_rng_state(), before)
