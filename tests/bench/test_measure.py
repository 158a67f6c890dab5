from __future__ import annotations

import sys

import pytest
import torch

from distillab.bench.measure import MIN_ROUNDS, MemoryMeter, make_schedule, take_turns, warm_up

CPU = torch.device("cpu")


class Clockwork:
    """A loop whose steps take as long as it is told; calls go into a shared record."""

    def __init__(self, name: str, step_seconds: float, record: list[tuple[str, int]], warm_up_steps: int = 0) -> None:
        self.name = name
        self.step_seconds = step_seconds
        self.record = record
        self.warm_up_steps = warm_up_steps

    def seconds(self, steps: int) -> float:
        self.record.append((self.name, steps))
        return steps * self.step_seconds


def test_paths_take_turns():
    record: list[tuple[str, int]] = []
    loops = {name: Clockwork(name, seconds, record) for name, seconds in (("classic", 0.5), ("live", 0.1))}
    schedule = make_schedule({"classic": 0.5, "live": 0.1}, rounds=3, seconds=6.0)
    rates = take_turns(loops, schedule, batch_size=10)
    assert record == [("classic", 1), ("live", 9)] * 3
    assert rates == {"classic": (20.0,) * 3, "live": (100.0,) * 3}


def test_rounds_are_left_out_where_time_is_short_but_never_below_two():
    # One step each, and one before it: a round takes 24 seconds.
    assert make_schedule({"a": 10.0, "b": 2.0}, rounds=5, seconds=80.0).rounds == 3
    short = make_schedule({"a": 10.0, "b": 2.0}, rounds=5, seconds=-1.0)
    assert (short.rounds, dict(short.steps)) == (MIN_ROUNDS, {"a": 1, "b": 1})


def test_a_turn_is_not_stretched_to_use_up_the_time():
    schedule = make_schedule({"a": 0.5, "b": 0.001}, rounds=5, seconds=1e6)
    assert schedule.rounds == 5
    assert schedule.steps["a"] <= 10
    assert schedule.steps["b"] <= 1000


def test_a_warm_up_does_the_steps_that_are_unlike_the_others():
    record: list[tuple[str, int]] = []
    assert warm_up(lambda: Clockwork("ours", 0.5, record, warm_up_steps=7), CPU).step_seconds == 0.5
    assert record == [("ours", 6), ("ours", 1)]  # and one more each time, which is not timed
    record.clear()
    assert warm_up(lambda: Clockwork("classic", 50.0, record), CPU).step_seconds == 50.0
    assert record == [("classic", 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_the_meter_sees_what_was_given_back_already_but_not_what_was_there():
    kept = torch.ones(8 * 2**20)
    meter = MemoryMeter(CPU)
    for _ in range(2):
        torch.ones(16 * 2**20)
    rise = meter.peak()
    assert rise is not None
    assert 50e6 < rise < 110e6
    later = MemoryMeter(CPU).peak()
    assert later is not None
    assert later < 20e6
    del kept


@pytest.mark.gpu
def test_the_meter_sees_the_gpus_memory():
    device = torch.device("cuda")
    kept = torch.ones(2**20, device=device)
    meter = MemoryMeter(device)
    torch.ones(4 * 2**20, device=device)
    assert meter.peak() == 16 * 2**20
    del kept
