import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillab.data.splits import evenly_spread, validation_split
from distillab.errors import ConfigError

labels_of = st.lists(st.integers(0, 5), min_size=1, max_size=120)
fractions = st.floats(0.0, 0.95)
seeds = st.integers(0, 2**32)
properties = settings(derandomize=True, deadline=None, max_examples=60)


def round_half_up(count, fraction):
    return int(np.floor(fraction * count + 0.5))


@properties
@given(labels_of, fractions, seeds)
def test_the_parts_are_disjoint_and_cover_all_images(labels, fraction, seed):
    train, held = validation_split(labels, fraction=fraction, seed=seed)
    assert sorted([*train, *held]) == list(range(len(labels)))
    assert train.dtype == held.dtype == np.int64
    assert list(train) == sorted(train)
    assert list(held) == sorted(held)


@properties
@given(labels_of, fractions, seeds)
def test_each_class_gives_its_rounded_share_and_keeps_an_image(labels, fraction, seed):
    _, held = validation_split(labels, fraction=fraction, seed=seed)
    for label in set(labels):
        count = labels.count(label)
        share = min(max(round_half_up(count, fraction), 1), count - 1) if fraction > 0 else 0
        assert sum(labels[index] == label for index in held) == share


@properties
@given(labels_of, fractions, seeds, st.integers(1, 130))
def test_a_limit_thins_the_training_part_alone(labels, fraction, seed, limit):
    train, held = validation_split(labels, fraction=fraction, seed=seed)
    fewer, same = validation_split(labels, fraction=fraction, seed=seed, limit=limit)
    assert np.array_equal(held, same)
    assert set(fewer) <= set(train)
    assert len(fewer) == min(limit, len(train))
    if limit >= len(set(labels)):
        assert {labels[index] for index in fewer} == set(labels)


def test_a_limit_keeps_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    train, _ = validation_split(labels, fraction=0.1, seed=0, limit=90)
    assert np.abs(np.bincount(labels[train]) - [54, 27, 9]).max() <= 1


def test_a_smaller_limit_keeps_a_subset():
    labels = np.arange(200) % 7
    kept = [set(validation_split(labels, fraction=0.2, seed=3, limit=limit)[0]) for limit in (10, 50, 120)]
    assert kept[0] < kept[1] < kept[2]


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    labels = np.arange(300) % 10
    split = [validation_split(labels, fraction=0.2, seed=seed)[1].tolist() for seed in (1, 1, 2)]
    assert split[0] == split[1]
    assert split[0] != split[2]


def test_the_split_is_the_one_that_it_always_was():
    # Results of years hang on it: a change of these numbers is a change of every split.
    train, held = validation_split([0] * 10 + [1] * 10, fraction=0.2, seed=0, limit=6)
    assert held.tolist() == [2, 7, 10, 12]
    assert train.tolist() == [1, 3, 5, 13, 15, 16]


@pytest.mark.parametrize("wrong", [{"fraction": 1.0}, {"fraction": -0.1}, {"fraction": 0.1, "limit": 0}])
def test_shares_out_of_bounds_are_refused(wrong):
    with pytest.raises(ConfigError):
        validation_split([0, 1], **{"seed": 0, **wrong})


@pytest.mark.parametrize(("num_rows", "most"), [(0, 3), (1, 3), (3, 3), (19, 10), (20, 10), (1000, 7)])
def test_some_rows_are_taken_from_the_whole_length(num_rows, most):
    rows = np.arange(num_rows) * 2
    taken = evenly_spread(rows, most)
    assert len(taken) == min(num_rows, most)
    assert set(taken.tolist()) <= set(rows.tolist())
    assert all(np.diff(taken) > 0)
    if num_rows > most:
        assert np.diff(taken).max() - np.diff(taken).min() <= 2, "as far apart as whole rows allow"
        assert taken[-1] >= rows[-1] - 2 * num_rows / most
