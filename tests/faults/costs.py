"""What a checkpoint costs."""

from __future__ import annotations

import copy
import json
import random
import statistics
import time

import torch

from distillab.models.catalog import build_model
from distillab.training.checkpoint import CheckpointDir
from distillab.training.config import CheckpointConfig
from distillab.training.state import optimizer_state, tensors_of
from faults.children import Board, Child
from faults.outcome import Outcome
from faults.trials import Trials

_MOST = 0.02  # of the time


def of_saves(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Save what training a small and the largest classic model has to remember, and hold it against the interval."""
    return [_saved(trials, model, tries) for model in ("cnn16", "resnet50")]


def _saved(trials: Trials, name: str, tries: int) -> Outcome:
    folder = trials.new_folder()

    def work(board: Board) -> None:
        torch.set_num_threads(1)
        model = build_model(name, 10)
        optimizer = torch.optim.Adam(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        average, best = copy.deepcopy(model), copy.deepcopy(model).state_dict()
        state = {
            "learner": tensors_of(model),
            "optimizer": optimizer_state(optimizer),
            "ema": tensors_of(average),
            "best": best,
        }
        checkpoints = CheckpointDir(folder, keep=2)
        for step in range(tries):
            wall, core = time.perf_counter(), time.process_time()
            place = checkpoints.save(step, state, {})
            seconds = [time.process_time() - core, time.perf_counter() - wall]
            print(json.dumps([*seconds, sum(file.stat().st_size for file in place.iterdir())]))

    child = Child(work)
    if child.end() != 0:
        return Outcome(f"a save of {name}", tries, troubles=[child.said])
    core, wall, sizes = zip(*map(json.loads, child.said.splitlines()), strict=True)
    interval = 60.0 * CheckpointConfig().minutes
    share = f"{statistics.median(core) / interval:.2%} of the interval, {statistics.median(wall):.2f} s by the clock"
    what = (
        f"save of {sizes[0] >> 20} MiB ({name}, Adam, average, best): a core is busy below {_MOST:.0%}; median {share}"
    )
    outcome = Outcome(what)
    for seconds in core:
        outcome.add("" if seconds <= _MOST * interval else f"{name}: a save took {seconds:.1f} s of a core")
    return outcome
