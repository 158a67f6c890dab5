"""Several processes that want the same folder at the same moment."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

from faults.children import Board, Child, command
from faults.outcome import Outcome
from faults.trials import Trials

_IN_USE, _REFUSED = 75, 4


def for_a_folder(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Four processes begin the same run, or go on with it; a lock file of a dead process is in the way."""
    begun = Outcome("4 processes begin one run: one wins, the others say so; half with a dead process's lock file")
    resumed = Outcome("4 processes resume one killed run: one wins, the others say so; the same bits")
    for number in range(tries):
        if number % 2:
            resumed.add(_resumed_by_four(trials, rng))
        else:
            begun.add(_begun_by_four(trials, rng, stale_lock=number % 4 == 0))
    return [begun, resumed]


def _begun_by_four(trials: Trials, rng: random.Random, *, stale_lock: bool) -> str:
    folder = trials.new_folder()
    if stale_lock:
        folder.mkdir()
        (folder / ".lock").touch()
    racers = _race(rng, trials.words("st", folder), 4)
    return _judged(racers, {_IN_USE, _REFUSED}) or trials.trouble("st", folder)


def _resumed_by_four(trials: Trials, rng: random.Random) -> str:
    folder, target = trials.new_folder(), rng.randrange(1, 6)
    killed = trials.begin("st", folder, random.Random(0))
    killed.reaches(lambda board: board.step > target)
    killed.send(signal.SIGKILL)
    killed.end()
    if not (folder / ".lock").exists():
        return "a killed process has left no lock file: this shows nothing"
    racers = _race(rng, ["resume", str(folder), "--allow-code", "--quiet"], 4)
    return _judged(racers, {_IN_USE}) or trials.trouble("st", folder)


def _race(rng: random.Random, words: list[str], count: int) -> list[Child]:
    """Processes that begin as one; their saves take long enough for all to meet."""
    gate = Board()

    def waiting(work: Callable[[Board], int]) -> Callable[[Board], int]:
        def wait(board: Board) -> int:
            while not gate.started:
                time.sleep(0.0001)
            return work(board)

        return wait

    racers = [Child(waiting(command(words, random.Random(rng.random()), pace=0.01))) for _ in range(count)]
    time.sleep(0.05)
    gate.started = 1
    for racer in racers:
        racer.end()
    return racers


def _judged(racers: list[Child], codes: set[int]) -> str:
    """Empty if exactly one has trained, and all others were refused with one of these codes before any step."""
    winners = [racer for racer in racers if racer.code == 0 and racer.board.step]
    losers = [racer for racer in racers if racer.code in codes and not racer.board.step]
    if len(winners) == 1 and len(losers) == len(racers) - 1:
        return ""
    return "\n".join(f"exit code {racer.code} after step {racer.board.step}: {racer.said}" for racer in racers)


def for_a_cache(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Two runs keep the logits of the same teacher in the same place."""
    outcome = Outcome("2 processes share a cache of logits: each leaves what it would have left alone")
    alone = {}
    for plan in ("st", "mbd-soft"):
        alone[plan] = trials.new_folder()
        child = Child(command(_with_views(trials.words(plan, alone[plan]), 0.0), random.Random(0)))
        assert child.end() == 0, child.said
    for _ in range(tries):
        shared = trials.new_folder()
        folders = {plan: trials.new_folder() for plan in alone}
        children = [
            Child(
                command(
                    [*_with_views(trials.words(plan, folder), 1.0), "--data-dir", str(shared)],
                    random.Random(rng.random()),
                    saved=0.0,
                )
            )
            for plan, folder in folders.items()
        ]
        troubles = [child.said for child in children if child.end()]
        for plan, folder in folders.items():
            for name in ("metrics.jsonl", "student.safetensors"):
                if not troubles and (folder / name).read_bytes() != (alone[plan] / name).read_bytes():
                    troubles.append(f"{plan}: {name} differs")
        if not list(shared.glob("logits/*/view-0.safetensors")):
            troubles.append("nothing was shared")
        outcome.add("\n".join(troubles))
    return [outcome]


def _with_views(words: list[str], cache_gib: float) -> list[str]:
    return [*words, "--views", "1", "--cache-gib", str(cache_gib)]
