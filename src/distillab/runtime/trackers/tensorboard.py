"""TensorBoard: event files in the run folder, under `tensorboard/`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from distillab.runtime.trackers.base import TrackedEpoch, TrackedRun


class TensorBoard:
    """Curves over a role's epochs; settings and test numbers as hyper-parameters, once the run is complete."""

    run_id = None

    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder / "tensorboard"
        self._settings = run.settings
        # All that a run has told before it goes on is void: it is told again.
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
            str(folder), purge_step=0 if folder.exists() else None
        )

    def epoch(self, epoch: TrackedEpoch) -> None:
        """Write the numbers through to the disk, for who is watching."""
        for name, value in epoch.values.items():
            self._writer.add_scalar(name, value, epoch.epoch)
        self._writer.flush()

    def result(self, numbers: Mapping[str, float]) -> None:
        """Write the numbers beside the settings."""
        summaries = importlib.import_module("torch.utils.tensorboard.summary")
        for summary in summaries.hparams(dict(self._settings), dict(numbers)):
            self._writer.file_writer.add_summary(summary)  # `add_hparams` would put them into a file of their own
        for name, value in numbers.items():
            self._writer.add_scalar(name, value)

    def end(self, *, complete: bool) -> None:
        """Close the files, which do not say whether a run is complete."""
        self._writer.close()
