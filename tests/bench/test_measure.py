from __future__ import annotations

import sys

import pytest
import torch

from distillab.bench.measure import MIN_ROUNDS, MemoryMeter, Turn, make_schedule, take_turns, warm_up

CPU = torch.device("cpu")


class Clockwork:
    """A loop whose steps take as long as it is told; calls go into a shared record."""

    def __init__(self, name: str, step_seconds: float, record: list[object], warm_up_steps: int = 1) -> None:
        self.name = name
        self.step_seconds = step_seconds
        self.record = record
        self.warm_up_steps = warm_up_steps

    def seconds(self, steps: int, *, run_in: bool) -> float:
        self.record.append((self.name, steps, run_in))
        return steps * self.step_seconds


def test_paths_take_turns():
    record: list[object] = []
    loops = {name: Clockwork(name, seconds, record) for name, seconds in (("classic", 0.5), ("live", 0.1))}
    turns = {"classic": Turn(1, run_in=False), "live": Turn(9, run_in=True)}
    rates = take_turns(loops, turns, rounds=3, images_a_step={"classic": 10, "live": 20})
    assert record == [("classic", 1, False), ("live", 9, True)] * 3
    assert rates == {"classic": (20.0,) * 3, "live": (200.0,) * 3}


def test_turns_are_equally_long():
    rounds, turns = make_schedule({"classic": 0.5, "live": 0.1}, rounds=3, seconds=6.0)
    assert rounds == 3
    assert turns == {"classic": Turn(1, run_in=True), "live": Turn(9, run_in=True)}


def test_rounds_are_left_out_where_time_is_short_but_never_below_two():
    # One step each, and in the short one's turn one before it: a round takes 14 seconds.
    rounds, turns = make_schedule({"long": 10.0, "short": 2.0}, rounds=5, seconds=45.0)
    assert rounds == 3
    assert turns == {"long": Turn(1, run_in=False), "short": Turn(1, run_in=True)}
    assert make_schedule({"long": 10.0, "short": 2.0}, rounds=5, seconds=-1.0) == (MIN_ROUNDS, turns)


def test_a_turn_is_not_stretched_to_use_up_the_time():
    rounds, turns = make_schedule({"a": 0.5, "b": 0.001}, rounds=5, seconds=1e6)
    assert rounds == 5
    assert turns["a"].steps <= 10
    assert turns["b"].steps <= 1000


def test_a_warm_up_does_the_steps_that_are_unlike_the_others():
    record: list[object] = []
    assert warm_up(lambda: Clockwork("ours", 0.5, record, warm_up_steps=7), CPU).step_seconds == 0.5
    assert record == [("ours", 7, False), ("ours", 1, True)]


def test_a_long_step_is_not_done_again_to_know_how_long_it_takes():
    record: list[object] = []
    assert warm_up(lambda: Clockwork("classic", 50.0, record), CPU).step_seconds == 50.0
    assert record == [("classic", 1, False)]


@pytest.mark.skipif(sys.platform != "linux", reason="the resident set is read from /proc")
def test_the_meter_sees_what_was_given_back_already_but_not_what_was_there():
    kept = torch.ones(8 * 2**20)
    meter = MemoryMeter(CPU)
    torch.ones(64 * 2**20)
    rise = meter.peak()
    assert rise is not None
    assert 200e6 < rise < 400e6  # 268 MB, and what else went on
    later = MemoryMeter(CPU).peak()
    assert later is not None
    assert later < 100e6
    del kept


@pytest.mark.gpu
def test_the_meter_sees_the_gpus_memory():
    device = torch.device("cuda")
    kept = torch.ones(2**20, device=device)
    meter = MemoryMeter(device)
    torch.ones(4 * 2**20, device=device)
    assert meter.peak() == 16 * 2**20
    del kept
