"""Weights & Biases: kept in the run folder, under `wandb/`, and sent as `WANDB_MODE` says."""

from __future__ import annotations

import importlib
import os
import secrets
from collections.abc import Mapping

from distillab.runtime.trackers.base import PROJECT, ROLES, TrackedEpoch, TrackedRun


class WandB:
    """A run with curves over a role's epochs; test numbers are its summary."""

    def __init__(self, run: TrackedRun) -> None:
        wandb = importlib.import_module("wandb")
        self.run_id = run.run_id or secrets.token_hex(8)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=self.run_id,
            resume="allow",
            reinit="create_new",  # runs may be carried out together
            dir=str(run.folder),
            config=dict(run.settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        for role in ROLES:
            self._run.define_metric(f"{role}/epoch", hidden=True)
            self._run.define_metric(f"{role}/*", step_metric=f"{role}/epoch")

    def epoch(self, epoch: TrackedEpoch) -> None:
        """Log the numbers, unless the service has them; what is offline begins anew with the run's first epoch."""
        if epoch.number >= self._run.step:
            self._run.log({f"{epoch.role}/epoch": epoch.epoch, **epoch.values}, step=epoch.number, commit=True)

    def result(self, numbers: Mapping[str, float]) -> None:
        """Sum the run up."""
        self._run.summary.update(dict(numbers))

    def end(self, *, complete: bool) -> None:
        """Send or store what is left."""
        self._run.finish(exit_code=0 if complete else 1)
