"""Runs that go on where they stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distillab.config import AnyConfig, resolve_distill, resolve_train, to_toml
from distillab.errors import CheckpointError, ConfigError, NonFiniteLossError
from distillab.outcome import RunResult
from distillab.recipe import load_recipe
from distillab.run import Resumed, run_one, run_together
from distillab.runtime.events import Note, Observer, silent
from distillab.runtime.files import read_json_object, read_record, storage_error
from distillab.runtime.run_dir import RUNS, RunDir, checkpoints_of, read_group
from distillab.training.checkpoint import Checkpoint, CheckpointDir


def resume(
    folder: Path,
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    force: bool = False,
) -> list[RunResult | NonFiniteLossError]:
    """Let a run go on from its newest checkpoint that can be trusted, or from the beginning where there is none.

    Args:
        folder: Of the run, or of runs that were started together.
        observer: Is told where it goes on, and of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even if the run would come out otherwise now.

    Returns:
        As `run_together`; a run that is complete gives the result that it has left, without models.

    Raises:
        StorageError: It is no run folder.
        RunDirInUseError: The run is still going on.
        ConfigError: Settings, data or machine are others than those of the checkpoint.
        DistillabError: Whatever a run may raise.
    """
    homes = read_group(folder)
    with ExitStack() as stack:
        run_dirs = [RunDir.reopen(home) for home in homes or [folder]]
        for run_dir in run_dirs:
            stack.callback(run_dir.release)
        if all(run_dir.is_complete for run_dir in run_dirs):
            for run_dir in run_dirs:
                observer(Note(f"{run_dir.path} is complete: nothing is left to do"))
            return [RunResult(run_dir.path, _read_result(run_dir.path), {}) for run_dir in run_dirs]
        checkpoints = CheckpointDir(checkpoints_of(folder), keep=1, observer=observer)
        checkpoints.tidy()
        checkpoint = checkpoints.newest()
        if checkpoint is None:
            observer(Note(f"{folder} has no checkpoint yet: starting again"))
        configs = [_config_of(run_dir.path, checkpoint, allow_code=allow_code) for run_dir in run_dirs]
        return run_together(
            configs,
            observer=observer,
            command=command,
            allow_code=allow_code,
            group=None if homes is None else folder,
            resumed=Resumed(run_dirs, checkpoint, force),
        )


def resume_or_run(
    config: AnyConfig,
    *,
    observer: Observer = silent,
    command: Sequence[str] = (),
    allow_code: bool = False,
    force: bool = False,
) -> RunResult:
    """Let the run with these settings go on if it was begun, else begin it: for jobs that are started again and again.

    The run is looked for in `output`; without one it is the newest under `runs/` that is not complete.

    Args:
        config: Resolved settings.
        observer: Is told which it was, and of progress.
        command: Words of the command line, for the record.
        allow_code: Settings and weight files may name code that is run.
        force: Go on even if the run would come out otherwise now.

    Raises:
        ConfigError: `output` holds a run of other settings.
        DistillabError: Whatever a run may raise.
    """
    folder = _begun(config)
    if folder is None:
        return run_one(config, observer=observer, command=command, allow_code=allow_code)
    observer(Note(f"going on with {folder}"))
    outcome = resume(folder, observer=observer, command=command, allow_code=allow_code, force=force)[0]
    if isinstance(outcome, NonFiniteLossError):
        raise outcome
    return outcome


def _begun(config: AnyConfig) -> Path | None:
    """The folder of the run with these settings, if there is one."""
    wanted = to_toml(config)
    if config.output is None:
        candidates = [path for path in RUNS.glob("*") if not (path / "result.json").exists()]
        found = [path for path in candidates if written_settings(path) == wanted]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    settings = written_settings(config.output)
    if settings is None or settings == wanted:
        return config.output if settings else None
    raise ConfigError(
        "the folder holds a run of other settings",
        where=str(config.output),
        hint=f"give the settings that are in its config.toml, another --output, or: distillab resume {config.output}",
    )


def written_settings(run_dir: Path) -> str | None:
    """The text of a run's `config.toml`; None where there is none that can be read."""
    try:
        return read_record(run_dir / "config.toml").decode()
    except (CheckpointError, OSError, UnicodeDecodeError):
        return None


def read_config(run_dir: Path, *, allow_code: bool) -> AnyConfig:
    """The settings that a run has written down; without the folder, which is the run's own.

    Raises:
        ConfigError: They cannot work, or name code without `allow_code`.
    """
    values = load_recipe(str(run_dir), allow_code=allow_code)
    return resolve_train(values, {}) if "model" in values else resolve_distill(values, {})


def _config_of(run_dir: Path, checkpoint: Checkpoint | None, *, allow_code: bool) -> AnyConfig:
    """The settings of a run that goes on, with as many threads as it had: others would round otherwise."""
    config = read_config(run_dir, allow_code=allow_code)
    record = checkpoint.made_by if checkpoint is not None else _environment(run_dir)
    threads = record.get("threads")
    if config.threads is not None or not isinstance(threads, int) or not 1 <= threads <= 1024:
        return config
    return config.model_copy(update={"threads": threads})


def _environment(run_dir: Path) -> dict[str, Any]:
    """What is known of where a run began; nothing where it was killed before it could say."""
    path = run_dir / "env.json"
    return _read_json(path) if path.exists() else {}


def _read_result(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "result.json"
    record = _read_json(path)
    wanted = {"model": str, "noise": str, "test": dict, "timing": dict}
    missing = [name for name, kind in wanted.items() if not isinstance(record.get(name), kind)]
    if missing:
        raise CheckpointError(f"damaged: it has no {missing[0]}", where=str(path), hint="copy the run folder again")
    return record


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except OSError as error:
        raise storage_error(error, path) from error
