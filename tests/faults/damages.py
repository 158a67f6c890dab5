"""Checkpoints that are no longer what was written."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from distillab.errors import CheckpointError
from distillab.runtime.run_dir import checkpoints_of
from distillab.training.checkpoint import read_checkpoint
from faults.children import Board, Child, command
from faults.outcome import Outcome
from faults.trials import Trials, every_plan

Damage = Callable[[Path, Path, random.Random], None]
"""Damages a checkpoint; another one of the same run is given as well."""


def of_checkpoints(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Damage checkpoints at random, and read them; damage the newest one of a run, and let it go on."""
    read = Outcome("checkpoint damaged at random: refused")
    good, other = sorted(checkpoints_of(trials.whole("multi")).iterdir())
    place = trials.new_folder()
    seed = rng.random()

    def work(board: Board) -> None:
        own = random.Random(seed)
        for _ in range(tries):
            print(json.dumps(_read_damaged(good, other, place / good.name, own)))

    child = Child(work)
    code = child.end()
    for line in child.said.splitlines() if code == 0 else [json.dumps(child.said)]:
        read.add(json.loads(line))
    gone_on = Outcome("newest checkpoint of a killed run damaged: told, the one before leads to the same bits")
    plan = every_plan(rng)
    for _ in range(max(1, tries // 10)):
        gone_on.add(_gone_on_without_the_newest(trials, rng, plan()))
    return [read, gone_on]


def _read_damaged(good: Path, other: Path, place: Path, rng: random.Random) -> str:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(good, place)
    damage = rng.choice(_DAMAGES)
    damage(place, other, rng)
    if _contents(place) == _contents(good):
        return _read_damaged(good, other, place, rng)  # the damage has changed nothing
    try:
        read_checkpoint(place)
    except CheckpointError:
        return ""
    return f"{damage.__name__}: loaded as good"


def _gone_on_without_the_newest(trials: Trials, rng: random.Random, plan: str) -> str:
    total = trials.stages(plan)[-1].stop - 1
    folder, target = trials.new_folder(), rng.randrange(2, total)
    child = trials.begin(plan, folder, random.Random(0))
    child.reaches(lambda board: board.saved >= target)
    child.send(signal.SIGKILL)
    child.end()
    before, newest = sorted(checkpoints_of(folder).glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[-2:]
    rng.choice(_DAMAGES)(newest, before, rng)
    last = Child(command(["resume", str(folder), "--allow-code"], random.Random(0)))
    if last.end() != 0:
        return last.said
    if f"{newest} is not used" not in last.said:
        return f"nothing was told: {last.said}"
    return trials.trouble(plan, folder)


def _contents(place: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in place.iterdir()}


def _some_file(place: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(place.iterdir()))


def cut(place: Path, other: Path, rng: random.Random) -> None:
    path = _some_file(place, rng)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def lengthened(place: Path, other: Path, rng: random.Random) -> None:
    path = _some_file(place, rng)
    # Spaces and new lines after a manifest's end mean nothing, and change nothing.
    path.write_bytes(path.read_bytes() + bytes(rng.randrange(33, 256) for _ in range(rng.randrange(1, 5000))))


def flipped(place: Path, other: Path, rng: random.Random) -> None:
    path = _some_file(place, rng)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def page_of_zeros(place: Path, other: Path, rng: random.Random) -> None:
    path = _some_file(place, rng)
    data = bytearray(path.read_bytes())
    begin = rng.randrange(0, len(data), 512)
    end = min(len(data), begin + rng.choice([512, 4096]))
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)


def missing(place: Path, other: Path, rng: random.Random) -> None:
    _some_file(place, rng).unlink()


def swapped(place: Path, other: Path, rng: random.Random) -> None:
    one, two = rng.sample(sorted(place.iterdir()), 2)
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


def file_of_another(place: Path, other: Path, rng: random.Random) -> None:
    path = _some_file(place, rng)
    shutil.copy(other / path.name, path)


def all_of_another(place: Path, other: Path, rng: random.Random) -> None:
    for path in place.iterdir():
        shutil.copy(other / path.name, path)


def emptied(place: Path, other: Path, rng: random.Random) -> None:
    for path in place.iterdir():
        path.write_bytes(b"")


_DAMAGES: list[Damage] = [
    *(cut, lengthened, flipped, flipped, page_of_zeros, missing, swapped, file_of_another, all_of_another, emptied)
]
