"""A comparison spread over a Ray cluster: each task on one machine, all files in one folder that all machines share."""

from __future__ import annotations

import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from distillab import __version__
from distillab.compare.conduct import Spread, Task
from distillab.config import AnyConfig, DistillConfig, merged
from distillab.errors import ConfigError, DistillabError, StorageError
from distillab.runtime.device import choose_compute
from distillab.runtime.events import Event, Note, Observer
from distillab.runtime.files import write_text

ResultT = TypeVar("ResultT")

_SECONDS_TO_ANSWER = 10.0
_SECONDS_TO_SAVE = 60.0  # what was cancelled has so long to write its checkpoints


def same_device(recipe: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags, with the device that "auto" means here: it might mean another on each machine.

    Args:
        recipe: Values of a run's settings.
        flags: Laid over the recipe.
    """
    device = merged(recipe, flags).get("device", DistillConfig.model_fields["device"].default)
    return merged(flags, {"device": choose_compute(device).device.type} if device == "auto" else {})


@contextmanager
def on_cluster(folder: Path, observer: Observer) -> Iterator[Spread]:
    """Connect to the cluster of `RAY_ADDRESS`, or start one on this machine that ends afterwards.

    A task takes as many processors as its runs have threads, and one GPU if they compute on CUDA. What it is told is
    said when it is done; its runs' own folders say more. If anything stops the comparison, the tasks that are under way
    are asked to save what they have and end.

    Args:
        folder: Of the comparison, on a file system that all machines share under the same path.
        observer: Is told of progress.

    Yields:
        What carries out tasks.

    Raises:
        ConfigError: Ray is missing, or there is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            f"a cluster needs Ray, which cannot be imported: {error}",
            where="ray",
            hint="pip install 'distillab[cluster]'",
        ) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked for a report to others
        address = os.environ.get("RAY_ADDRESS")
        try:
            _check_answers(address)
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="error")
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"cannot connect to a Ray cluster: {error}",
                where=f"RAY_ADDRESS={address}" if address else "ray",
                hint="`ray status` says whether it is up; without RAY_ADDRESS one is started here",
            ) from error
    try:
        yield _Cluster(folder, observer)
    finally:
        if is_ours:
            ray.shutdown()


def _check_answers(address: str | None) -> None:
    """See that somebody listens: Ray itself goes on asking for minutes.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()


class _Cluster:
    """Carries out tasks on the machines of the cluster that the process is connected to."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self._folder = folder.absolute()
        self._observer = observer

    def __call__(self, tasks: Sequence[Task[ResultT]], /) -> Iterator[ResultT]:
        import ray

        for task in tasks:
            _check_room(task.config)
        token = self._folder / f".cluster-{secrets.token_hex(4)}"
        write_text(token, _versions())
        references: list[Any] = []
        try:
            remote = ray.remote(_carry_out)
            for task in tasks:
                options = remote.options(**_needs(task.config), name=task.title)
                references.append(options.remote(task.work, Path.cwd(), token))
            for number, (task, reference) in enumerate(zip(tasks, references, strict=True), start=1):
                result = self._received(reference)
                self._observer(Note(f"{task.title}: done ({number} of {len(tasks)})"))
                yield result
        finally:
            _cancel(references)
            token.unlink(missing_ok=True)

    def _received(self, reference: Any) -> Any:
        """A task's result, once it is there.

        Raises:
            DistillabError: That of the task; or its machine was lost.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            outcome = ray.get(reference)
        except RayTaskError:
            raise  # a bug, with its traceback
        except RayError as error:
            raise DistillabError(
                f"the cluster has lost a task: {str(error).strip().splitlines()[0]}",
                where=str(self._folder),
                hint="give the same command again: what is complete stays",
            ) from error
        for text in outcome.notes:
            self._observer(Note(text))
        if isinstance(outcome.result, DistillabError):
            raise outcome.result
        return outcome.result


@dataclass(frozen=True)
class _Outcome(Generic[ResultT]):
    """What a task has come to, or why it came to nothing; and what there was to say meanwhile."""

    result: ResultT | DistillabError
    notes: Sequence[str]


def _carry_out(work: Callable[[Observer], ResultT], start_folder: Path, token: Path) -> _Outcome[ResultT]:
    """Carry out a task on whatever machine this is, relative paths meaning what they mean where it was started."""
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    try:
        _check_machine(start_folder, token)
        return _Outcome(work(observe), notes)
    except DistillabError as error:
        return _Outcome(error, notes)


def _check_machine(start_folder: Path, token: Path) -> None:
    """See that this machine has the comparison's files and the same versions as the one where it was started.

    Raises:
        StorageError: It does not see the files.
        ConfigError: It has other versions.
    """
    try:
        os.chdir(start_folder)
        versions = token.read_text(encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"the machine {platform.node()} does not see the comparison's files: {error}",
            where=str(token.parent),
            hint="give --output a folder that all machines share under this path, and start in another such",
        ) from error
    if versions != _versions():
        raise ConfigError(
            f"the machine {platform.node()} has {_versions()}, and not {versions}",
            where="ray",
            hint="install the same versions on all machines: others compute other numbers",
        )


def _versions() -> str:
    return f"distillab {__version__} with torch {torch.__version__}"


def _needs(config: AnyConfig) -> dict[str, float]:
    return {"num_cpus": config.threads or 1, "num_gpus": 1 if config.device.startswith("cuda") else 0}


def _check_room(config: AnyConfig) -> None:
    """See that a task will not wait for ever.

    Raises:
        ConfigError: No machine of the cluster has what it takes.
    """
    import ray

    needs = _needs(config)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(has.get("CPU", 0) >= needs["num_cpus"] and has.get("GPU", 0) >= needs["num_gpus"] for has in machines):
        gpu = " and a GPU" if needs["num_gpus"] else ""
        raise ConfigError(
            f"no machine of the cluster has {needs['num_cpus']} processors{gpu}",
            where="threads",
            hint="give as many --threads as the machines have processors, and --device cpu where there is no GPU",
        )


def _cancel(references: Sequence[Any]) -> None:
    """Ask the tasks that are not done to save what they have and end; wait for them."""
    import ray

    _, left = ray.wait(list(references), num_returns=len(references), timeout=0) if references else ([], [])
    for reference in left:
        ray.cancel(reference)
    if left:
        ray.wait(left, num_returns=len(left), timeout=_SECONDS_TO_SAVE)
