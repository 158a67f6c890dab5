"""Ctrl-C and SIGTERM, through the real program."""

from __future__ import annotations

import random
import shlex
import signal
import time

from distillab.runtime.run_dir import checkpoints_of
from faults.children import Child, command
from faults.outcome import Outcome
from faults.trials import Trials, every_plan

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def stops(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Stop runs that are not saved otherwise, and do what they say."""
    outcomes = {
        number: Outcome(
            f"{number.name} in training: saved, exit code {code}, the printed command leads to the same bits"
        )
        for number, code in _CODES.items()
    }
    plan = every_plan(rng)
    while min(outcome.tries for outcome in outcomes.values()) < (tries + 1) // 2:
        number = min(outcomes, key=lambda one: outcomes[one].tries)
        trouble = _stopped(trials, rng, plan(), number)
        if trouble is not None:
            outcomes[number].add(trouble)
    return list(outcomes.values())


def _stopped(trials: Trials, rng: random.Random, plan: str, number: signal.Signals) -> str | None:
    """One run, stopped and gone on with; None where its last step was made before the signal came."""
    total = trials.stages(plan)[-1].stop - 1
    target, folder = rng.randrange(1, total), trials.new_folder()
    child = Child(command(trials.words(plan, folder), random.Random(rng.random()), saved=0.0))
    child.reaches(lambda board: board.step >= target)
    time.sleep(rng.uniform(0.0, 0.03))
    is_late = child.board.step >= total
    child.send(number)
    code = child.end()
    if is_late:
        return None
    if code != _CODES[number]:
        return f"exit code {code}: {child.said}"
    names = [path.name for path in checkpoints_of(folder).iterdir()] if checkpoints_of(folder).exists() else []
    if names != [f"checkpoint-{child.board.step}"]:
        return f"{folder.name} holds {names} after step {child.board.step}: {child.said}"
    words = shlex.split(child.said.splitlines()[-1].partition(":")[2])
    if words != ["distillab", "resume", str(folder), "--allow-code"]:
        return f"it says: {child.said}"
    ended = Child(command([*words[1:], "--quiet"], random.Random(0)))
    return ended.said if ended.end() else trials.trouble(plan, folder)
