import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillab.training.config import ScheduleConfig
from distillab.training.schedule import multiplier

SHAPES = [
    ScheduleConfig(name="constant", warmup_fraction=0.0),
    ScheduleConfig(name="linear", warmup_fraction=0.2),
    ScheduleConfig(name="cosine", warmup_fraction=0.1),
    ScheduleConfig(name="multi_step", warmup_fraction=0.0, milestones=(2, 5)),
]


def curve(config: ScheduleConfig, total: int, steps_per_epoch: int = 1) -> list[float]:
    return [multiplier(config, step, total, steps_per_epoch) for step in range(total)]


@given(config=st.sampled_from(SHAPES), total=st.integers(1, 300))
def test_the_rate_is_positive_and_never_above_the_peak(config, total):
    assert all(0.0 < value <= 1.0 for value in curve(config, total))


def test_linear_warms_up_to_the_peak_and_falls_to_almost_nothing():
    # 10 steps, 2 of warm-up: 1/3, 2/3, then 8/8, 7/8, ..., 1/8
    expected = [1 / 3, 2 / 3] + [k / 8 for k in range(8, 0, -1)]
    assert curve(ScheduleConfig(name="linear", warmup_fraction=0.2), 10) == pytest.approx(expected)


def test_cosine_is_half_way_down_in_the_middle():
    values = curve(ScheduleConfig(name="cosine", warmup_fraction=0.0), 100)
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_multi_step_falls_after_its_epochs():
    config = ScheduleConfig(name="multi_step", warmup_fraction=0.0, milestones=(2, 3), factor=0.1)
    assert curve(config, 8, steps_per_epoch=2) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_constant_stays():
    assert curve(ScheduleConfig(name="constant", warmup_fraction=0.0), 5) == [1.0] * 5


def test_a_warm_up_takes_the_nearest_number_of_steps():
    # 0.1 of 17 steps are 1.7, so 2: 1/3 and 2/3 of the peak.
    assert curve(ScheduleConfig(name="constant", warmup_fraction=0.1), 17)[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_without_a_factor_each_milestone_leaves_a_tenth():
    config = ScheduleConfig(name="multi_step", warmup_fraction=0.0, milestones=(1, 2))
    assert curve(config, 3) == pytest.approx([1.0, 0.1, 0.01])
