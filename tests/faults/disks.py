"""Disks that are full, and folders that cannot be written any more."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from distillab.runtime.run_dir import checkpoints_of
from faults.children import Board, Child, command
from faults.outcome import Outcome
from faults.trials import Trials, every_plan

_REFUSED = 4
_DISK_BYTES = 4 * 2**20


@contextlib.contextmanager
def small_disk(trials: Trials) -> Iterator[Path]:
    """A file system of its own in memory; to mount one takes root."""
    place = trials.new_folder()
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "faults", str(place)]
    subprocess.run(words, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _can_mount(trials: Trials) -> bool:
    try:
        with small_disk(trials):
            return True
    except (OSError, subprocess.SubprocessError):
        return False


def that_are_full(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Fill the disk of a run at random moments, from its first file on; make room, and let it go on."""
    can_mount = _can_mount(trials)
    how = "a small file system" if can_mount else "files cut short by the system"
    outcome = Outcome(f"disk full ({how}): exit code 4, one error; with room again it leads to the same bits")
    plan = every_plan(rng)
    while outcome.tries < tries:
        if can_mount:
            with small_disk(trials) as disk:
                trouble = _starved(trials, rng, plan(), disk, from_the_start=outcome.tries % 4 == 0)
        else:
            trouble = _cut_short(trials, rng, plan())
        if trouble is not None:
            outcome.add(trouble)
    return [outcome]


def _cut_short(trials: Trials, rng: random.Random, plan: str) -> str | None:
    folder, target = trials.new_folder(), rng.randrange(1, trials.stages(plan)[-1].stop - 1)
    words = trials.words(plan, folder)
    child = Child(command(words, random.Random(rng.random()), full_at=target))
    return None if child.end() == 0 else _complaint(child) or _gone_on(trials, plan, folder, words)


def _starved(trials: Trials, rng: random.Random, plan: str, disk: Path, *, from_the_start: bool) -> str | None:
    """None where the run was at its end before the disk was full."""
    folder, hog = disk / "run", disk / "hog"
    words = trials.words(plan, folder)
    room = rng.randrange(0, 15) * 4096  # less than a checkpoint takes
    if from_the_start:
        _fill(hog, room)
        child = Child(command(words, random.Random(0)))
    else:
        child = Child(command(words, random.Random(0)))
        child.reaches(_at_random(trials, rng, plan))
        _fill(hog, room)
    if child.end() == 0:
        return None
    complaint = _complaint(child)
    if complaint:
        return complaint
    hog.unlink()
    if child.board.saved:
        newest = max(int(path.name.rpartition("-")[2]) for path in checkpoints_of(folder).glob("checkpoint-*"))
        if newest < child.board.saved:
            return f"checkpoint {child.board.saved} was lost: {newest} is the newest"
    return _gone_on(trials, plan, folder, words)


def _fill(hog: Path, room: int) -> None:
    """Take all that is left of the disk but `room` bytes."""
    with hog.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    os.truncate(hog, max(0, hog.stat().st_size - room))


def _complaint(child: Child) -> str:
    """What is wrong with how a refusal was told; empty if nothing."""
    lines = child.said.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if child.code == _REFUSED and len(errors) == 1 and len(lines) <= 4 and "Traceback" not in child.said:
        return ""
    return f"exit code {child.code}: {child.said}"


def _gone_on(trials: Trials, plan: str, folder: Path, words: list[str]) -> str:
    """Do what a job would do that is started again: `--resume auto`."""
    last = Child(command([*words, "--resume", "auto"], random.Random(0)))
    return last.said if last.end() else trials.trouble(plan, folder)


def that_go_away(trials: Trials, rng: random.Random, tries: int) -> list[Outcome]:
    """Take away the leave to write, or the whole folder, while a run goes on."""
    locked = Outcome("folder no longer writable: exit code 4, one error; writable again it leads to the same bits")
    removed = Outcome("folder removed: exit code 4, one error")
    plan = every_plan(rng)
    while locked.tries + removed.tries < tries:
        outcome, take_away = (locked, _locked_out) if locked.tries <= removed.tries else (removed, _removed)
        trouble = take_away(trials, rng, plan())
        if trouble is not None:
            outcome.add(trouble)
    return [locked, removed]


def _locked_out(trials: Trials, rng: random.Random, plan: str) -> str | None:
    folder = trials.new_folder()
    words = trials.words(plan, folder)
    child = Child(command(words, random.Random(0), privileged=False))
    child.reaches(_at_random(trials, rng, plan))
    places = [place for place in (folder, checkpoints_of(folder)) if place.exists()]
    for place in places:
        place.chmod(0o555)
    child.end()
    for place in places:
        place.chmod(0o755)
    return None if child.code == 0 else _complaint(child) or _gone_on(trials, plan, folder, words)


def _removed(trials: Trials, rng: random.Random, plan: str) -> str | None:
    folder = trials.new_folder()
    child = Child(command(trials.words(plan, folder), random.Random(0)))
    child.reaches(_at_random(trials, rng, plan))
    shutil.rmtree(folder, ignore_errors=True)
    return None if child.end() == 0 else _complaint(child)


def _at_random(trials: Trials, rng: random.Random, plan: str) -> Callable[[Board], bool]:
    target = rng.randrange(1, trials.stages(plan)[-1].stop - 1)
    return lambda board: board.step >= target
