"""SIGKILL: nothing can be heard, nothing can be finished."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from distillab.stages import PLANS
from distillab.training.checkpoint import CheckpointDir
from faults.children import Board, Child, watch
from faults.outcome import Outcome
from faults.trials import TOGETHER, Trials

_PACE = 0.008


def in_training(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Kill runs of all plans in the middle of training, twice each, and let them go on to their end."""
    kills = Outcome("SIGKILL in training, resumed: the same files to the last bit")
    saves = Outcome("... of them while a checkpoint was being written")
    stages = Outcome("... stages of plans in which it happened")
    hit: set[tuple[str, int]] = set()
    plans = sorted(PLANS)
    while kills.tries < tries:
        plan = plans[kills.tries // 2 % len(plans)]
        found = _killed_twice(trials, rng, plan, hit, at_most=tries - kills.tries)
        for in_save in found.in_save:
            kills.add(found.trouble)
            if in_save:
                saves.add(found.trouble)
    for plan in plans:
        for number in range(len(trials.stages(plan))):
            stages.add("" if (plan, number) in hit else f"{plan}: stage {number + 1} was never hit")
    return [kills, saves, stages]


def in_groups(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Kill all plans at once, carried out together on the same batches, twice each."""
    kills = Outcome("SIGKILL of a group, all plans on the same batches, resumed: the same files to the last bit")
    while kills.tries < tries:
        found = _killed_twice(trials, rng, TOGETHER, set(), at_most=tries - kills.tries)
        for _ in found.in_save:
            kills.add(found.trouble)
    return [kills]


class _Found:
    def __init__(self) -> None:
        self.in_save: list[bool] = []  # of each kill in training
        self.trouble = ""


def _killed_twice(trials: Trials, rng: random.Random, plan: str, hit: set[tuple[str, int]], *, at_most: int) -> _Found:
    """One run: begun, killed, resumed, killed, resumed to its end."""
    stages = trials.stages(plan)
    total = stages[-1].stop - 1
    missed = [number for number in range(len(stages)) if (plan, number) not in hit]
    first = rng.choice(stages[missed[0]] if missed else range(1, total))
    targets = sorted({min(first, total - 1), rng.randrange(1, total)})[:at_most]
    folder, found = trials.new_folder(), _Found()
    begun = False
    for target in targets:
        wants_save = rng.random() < 0.4
        pace = _PACE if wants_save else 0.0
        saved = rng.choice([1.0, 0.3])
        own = random.Random(rng.random())
        child = (trials.go_on if begun else trials.begin)(
            *(() if begun else (plan,)), folder, own, saved=saved, pace=pace
        )
        begun = True
        is_there = child.reaches(
            lambda board, target=target, wants_save=wants_save: board.step >= target and board.saving >= wants_save
        )
        time.sleep(rng.uniform(0.0, 6 * pace if wants_save else 0.03))
        child.send(signal.SIGKILL)
        if child.end() == -signal.SIGKILL and is_there and child.board.step < total:
            found.in_save.append(bool(child.board.saving))
            hit.add((plan, next(n for n, steps in enumerate(stages) if child.board.step in steps)))
        elif child.code not in (0, -signal.SIGKILL):
            found.trouble = child.said
    last = trials.go_on(folder, random.Random(0))
    if last.end() != 0:
        found.trouble = found.trouble or last.said
    found.trouble = found.trouble or trials.trouble(plan, folder)
    return found


def in_saves(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Kill a process that saves again and again; each time the next one finds the newest whole checkpoint."""
    outcome = Outcome("SIGKILL while a checkpoint is written: the newest whole one is found")
    folder = trials.new_folder()
    saved = 0
    while outcome.tries < tries:
        child = Child(_saver(folder, at_least=saved, rng=random.Random(rng.random())))
        child.reaches(lambda board, before=saved: board.saved > before and board.saving == 1)
        time.sleep(rng.uniform(0.0, 0.03))
        child.send(signal.SIGKILL)
        code = child.end()
        if code != -signal.SIGKILL:
            outcome.add(child.said)
        elif child.board.saving:
            outcome.add("")
        saved = max(saved, child.board.saved)
    checked = Child(_reader(folder, at_least=saved))
    if checked.end() != 0:
        outcome.add(checked.said)
    return [outcome]


def _state(step: int) -> dict[str, object]:
    weights = torch.full((64, 64), float(step))
    return {"learner": weights, "optimizer": weights / 3, "ema": weights / 7, "history": [{"step": step}]}


def _check_newest(checkpoints: CheckpointDir, at_least: int) -> int:
    """The step of the newest checkpoint, which is good and no older than what was seen to be complete."""
    newest = checkpoints.newest()
    if newest is None:
        assert at_least == 0, "no checkpoint can be loaded"
        return 0
    assert newest.step >= at_least, f"{newest.step} is older than {at_least}"
    expected = _state(newest.step)
    for name in ("learner", "optimizer", "ema"):
        assert torch.equal(newest.state[name], expected[name]), name
    assert newest.state["history"] == expected["history"]
    return newest.step


def _reader(folder: Path, *, at_least: int) -> Callable[[Board], None]:
    def work(board: Board) -> None:
        checkpoints = CheckpointDir(folder, keep=1)
        step = _check_newest(checkpoints, at_least) + 1
        checkpoints.save(step, _state(step), {"numerics": 1})
        assert [path.name for path in folder.iterdir()] == [f"checkpoint-{step}"], list(folder.iterdir())

    return work


def _saver(folder: Path, *, at_least: int, rng: random.Random) -> Callable[[Board], None]:
    def work(board: Board) -> None:
        watch(board, rng, pace=0.004)
        checkpoints = CheckpointDir(folder, keep=rng.choice([1, 2]))
        if rng.random() < 0.5:  # as a run does that goes on; otherwise what is left is cleared by the next save
            checkpoints.tidy()
        step = _check_newest(checkpoints, at_least)
        while True:
            step += 1
            checkpoints.save(step, _state(step), {"numerics": 1})

    return work
