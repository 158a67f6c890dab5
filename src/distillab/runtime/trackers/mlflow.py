"""MLflow: the store that `MLFLOW_TRACKING_URI` names, else the database `runs/mlflow.db`."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import time
from collections.abc import Mapping

from distillab.runtime.run_dir import RUNS
from distillab.runtime.trackers.base import PROJECT, ROLES, TrackedEpoch, TrackedRun

_MOST_PARAMS = 100  # that a store takes at once
_LONGEST_PARAM = 6000


class MLflow:
    """A run with settings as parameters, and curves over a role's epochs."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run tells nobody but whom the user names
        mlflow = importlib.import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it would tell how it makes its tables
        self._entities = importlib.import_module("mlflow.entities")
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _local_store())
        self._told: dict[str, int] = {}
        self.run_id: str = ""
        with contextlib.suppress(mlflow.MlflowException):  # the store may be another one now
            self._go_on(run.run_id)
        if not self.run_id:
            with contextlib.suppress(mlflow.MlflowException):  # the experiment is there
                self._client.create_experiment(_experiment())
            self._begin(run)

    def _go_on(self, run_id: str | None) -> None:
        if run_id is None:
            return
        metrics = self._client.get_run(run_id).data.metrics
        self._client.update_run(run_id, status="RUNNING")
        self._told = {role: int(metrics.get(f"{role}/epoch", 0)) for role in ROLES}
        self.run_id = run_id

    def _begin(self, run: TrackedRun) -> None:
        experiment = self._client.get_experiment_by_name(_experiment())
        self.run_id = self._client.create_run(experiment.experiment_id, run_name=run.name).info.run_id
        settings = list(run.settings.items())
        for first in range(0, len(settings), _MOST_PARAMS):
            params = [
                self._entities.Param(_allowed(name), str(value)[:_LONGEST_PARAM])
                for name, value in settings[first : first + _MOST_PARAMS]
            ]
            self._client.log_batch(self.run_id, params=params)

    def epoch(self, epoch: TrackedEpoch) -> None:
        """Log the numbers, unless the store has them."""
        if epoch.epoch > self._told.get(epoch.role, 0):
            self._log({f"{epoch.role}/epoch": epoch.epoch, **epoch.values}, epoch.epoch)

    def result(self, numbers: Mapping[str, float]) -> None:
        """Log the numbers beside those of the epochs."""
        self._log(numbers, 0)

    def end(self, *, complete: bool) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self.run_id, "FINISHED" if complete else "KILLED")

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)


def _experiment() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)


def _local_store() -> str:
    RUNS.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{RUNS.absolute() / 'mlflow.db'}"


def _allowed(name: str) -> str:
    """A name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-./: ]", "", name)
