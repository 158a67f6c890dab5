"""Runs that are looked at once more: whether their files are whole, and whether they can be made again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from distillab.errors import ConfigError, StorageError
from distillab.replay import replay
from distillab.run_files import Finding, RunFiles, look_at_checkpoints
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Observer, silent
from distillab.runtime.run_dir import RunDir, environment, read_group

_DECIDES_ON_ROUNDING = ("distillab", "versions.torch", "device", "device_name", "cuda")


@dataclass(frozen=True)
class Difference:
    """What is other here than where a run was made.

    Attributes:
        what: Such as "versions.torch".
        run: What it was there; None: it was not said.
        here: What it is here; None: there is none.
    """

    what: str
    run: Any
    here: Any


@dataclass(frozen=True)
class Verification:
    """What came of looking at a run, or at runs that were carried out together.

    Attributes:
        run_dir: Their folder.
        findings: In the order in which they were looked at.
        environment: What is other here; this is no fault of the run.
    """

    run_dir: Path
    findings: tuple[Finding, ...]
    environment: tuple[Difference, ...]

    @property
    def faults(self) -> list[Finding]:
        """What differs."""
        return [finding for finding in self.findings if finding.verdict == "differs"]

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "run_dir": str(self.run_dir),
            "findings": [asdict(finding) for finding in self.findings],
            "environment": [asdict(difference) for difference in self.environment],
            "faults": len(self.faults),
        }


def verify(folder: Path, *, observer: Observer = silent, allow_code: bool = False) -> Verification:
    """Hold a run's files against their hashes and each other, and an epoch of it against the same epoch made again.

    The run's folder stays as it is. What the run has not come to yet is not looked at.

    Args:
        folder: Of the run, or of runs that were started together.
        observer: Is told of progress, and of the time that a replay takes before it begins.
        allow_code: Settings and weight files may name code that is run; without it only files are looked at.

    Raises:
        StorageError: It is no run folder.
        RunDirInUseError: The run is still going on, so its files are changing.
        CheckpointError: What says which runs belong together is damaged.
        Interrupted: Somebody asked for that.
    """
    homes = read_group(folder)
    for home in homes or [folder]:
        _check_at_rest(home)
    findings: list[Finding] = []
    told: list[Difference] = []
    for home in homes or [folder]:
        found, differences = _verify_one(home, observer, allow_code)
        findings += [replace(one, what=f"{home.name}/{one.what}") for one in found] if homes else found
        told += [difference for difference in differences if difference not in told]
    if homes:
        findings += look_at_checkpoints(folder, lambda checkpoint: f"whole, after step {checkpoint.step:,}")
    return Verification(folder, tuple(findings), tuple(told))


def _check_at_rest(home: Path) -> None:
    """See that a run can be looked at.

    Raises:
        StorageError: It is no run folder.
        RunDirInUseError: The run is still going on.
    """
    if not (home / "config.toml").is_file():
        raise StorageError(
            "this is no run folder: there is no config.toml in it",
            where=str(home),
            hint="give the folder that the run was started in; it was named when it began",
        )
    try:
        RunDir(home).release()
    except StorageError:
        return  # nobody can write to it, so no run goes on there


def _verify_one(home: Path, observer: Observer, allow_code: bool) -> tuple[list[Finding], list[Difference]]:
    files = RunFiles(home)
    findings = files.look()
    differences = list(_differing(files.environment, _here(files))) if files.environment else []
    elsewhere = [f"{one.what} was {one.run}, is {one.here}" for one in differences if one.what in _DECIDES_ON_ROUNDING]
    if not files.environment:
        elsewhere = ["env.json does not say where the run was made"]
    return findings + replay(files, elsewhere=elsewhere, observer=observer, allow_code=allow_code), differences


def _here(files: RunFiles) -> dict[str, Any]:
    """What `env.json` would say if the run began now."""
    config = files.config
    try:
        device = choose_compute(config.device if config else "auto").device
    except ConfigError:  # there is none such here
        device = choose_compute().device
    threads = config.threads if config else None
    return environment(device, threads or torch.get_num_threads())


def _differing(run: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[Difference]:
    for key in {**here, **run}:
        before, now = run.get(key), here.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from _differing(before, now, f"{prefix}{key}.")
        elif before != now:
            yield Difference(f"{prefix}{key}", before, now)
