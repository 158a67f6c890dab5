"""When a run is saved, and how one that was saved goes on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from signal import Signals, raise_signal
from typing import Any

from distillab.errors import CheckpointError, Interrupted
from distillab.runtime.events import Note, Observer
from distillab.runtime.interruption import Interruption
from distillab.training.checkpoint import Checkpoint, CheckpointDir, State
from distillab.training.state import reading_state

SayState = Callable[[], State]
"""Says what must be known to go on from this moment."""


class Keeper:
    """Saves a run, or some runs that are carried out together, at intervals and when somebody wants to stop it.

    A run is a sequence of phases, the same in every process that carries it out: a teacher's training, the assistants',
    the students'. A checkpoint holds all that were begun; the finished ones, of which weights and reports are left, are
    gone through again without a step.

    Args:
        folder: Takes the checkpoints.
        interval_seconds: Time between two; 0: after every step.
        made_by: What the trajectory depends on, kept with each.
        observer: Is told where a run goes on.
        go_on: The command by which it does, for messages.
        resumed: Where to go on; None: at the beginning.
    """

    def __init__(
        self,
        folder: CheckpointDir,
        *,
        interval_seconds: float,
        made_by: Mapping[str, Any],
        observer: Observer,
        go_on: str,
        resumed: Checkpoint | None = None,
    ) -> None:
        self._folder = folder
        self._interval_seconds = interval_seconds
        self._made_by = made_by
        self._observer = observer
        self._go_on = go_on
        self._interruption = Interruption()
        self._phases: list[Phase] = []
        self._newest: Path | None = resumed.path if resumed else None
        self._last_step = resumed.step if resumed else 0
        self._last_save = time.monotonic()
        with reading_state():
            self._saved: list[State] = list(resumed.state["phases"]) if resumed else []
            self._started = self._last_save - (resumed.state["seconds"] if resumed else 0.0)

    @property
    def seconds(self) -> float:
        """That the run has taken, in all processes that carried it out; what was lost with one of them aside."""
        return time.monotonic() - self._started

    @property
    def asked(self) -> Signals | None:
        """The signal by which somebody wants the run to stop, or None."""
        return self._interruption.asked

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return self._newest

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """All phases of the run, and what lies between them: Ctrl-C and SIGTERM are heard at the end of a step inside.

        Raises:
            Interrupted: The run was saved, as somebody wanted.
        """
        with self._interruption.heard():
            yield
            self._stop_if_asked()
        if self.asked is not None:  # at the very last moment: the signal does what it does from here on
            raise_signal(self.asked)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """The next phase of the run.

        Args:
            name: For people.

        Raises:
            CheckpointError: The checkpoint has another phase here.
            Interrupted: The run was saved, as somebody wanted.
        """
        number = len(self._phases)
        start = self._saved[number] if number < len(self._saved) else None
        with reading_state():
            saved_name = name if start is None else start["name"]
        if saved_name != name:
            raise CheckpointError(
                f"the checkpoint is of another run: it trains the {saved_name} where this one trains the {name}",
                where=str(self._newest),
                hint="use the settings that the run was started with",
            )
        before = sum(phase.steps for phase in self._phases)
        if number == len(self._saved) - 1:
            self._observer(Note(f"resuming after step {self._last_step:,} of the run: {name}"))
        phase = Phase(self, name, start, before)
        self._phases.append(phase)
        yield phase
        self._stop_if_asked()  # after the last step, while the models were finished

    def is_due(self) -> bool:
        """Whether the state is to be saved after this step."""
        return self.asked is not None or time.monotonic() - self._last_save >= self._interval_seconds

    def _stop_if_asked(self) -> None:
        if self.asked is not None:
            self.save(sum(phase.steps for phase in self._phases))

    def save(self, step: int) -> None:
        """Save the state; stop if somebody wants that.

        Args:
            step: Steps that the run has made.

        Raises:
            StorageError: The disk refuses.
            Interrupted: Saved, as somebody wanted.
        """
        if step != self._last_step or self._newest is None:
            state = {"seconds": self.seconds, "phases": [phase.state() for phase in self._phases]}
            self._newest = self._folder.save(step, state, self._made_by)
            self._last_step = step
        self._last_save = time.monotonic()
        if self.asked is not None:
            name = "Ctrl-C" if self.asked.name == "SIGINT" else self.asked.name
            raise Interrupted(
                f"stopped by {name} after step {step:,} of the run; it is saved",
                signal_number=self.asked,
                where=str(self._newest),
                hint=self._go_on,
            )


class Phase:
    """One part of a run: some students on the same batches.

    Attributes:
        start: Where to go on; None: at the beginning.
        steps: That it has made.
    """

    def __init__(self, keeper: Keeper, name: str, start: State | None, steps_before: int) -> None:
        self.start = start
        self.steps = 0
        self._keeper = keeper
        self._name = name
        self._steps_before = steps_before
        self._say_state: SayState = dict

    @property
    def last_saved(self) -> Path | None:
        """The newest checkpoint of the run."""
        return self._keeper.newest

    def begin(self, say_state: SayState, *, steps: int) -> None:
        """Say where the phase begins, and how its state is found out: now, and as long as the run goes on."""
        self._say_state = say_state
        self.steps = steps

    def state(self) -> State:
        """The state, for a checkpoint."""
        return {"name": self._name, **self._say_state()}

    def after_step(self, steps: int, *, look: Callable[[], bool]) -> None:
        """Save if it is time.

        Args:
            steps: That the phase has made.
            look: Called before: reads the numbers, and says whether all students have diverged. Then nothing is saved:
                the checkpoint before it is the one to go on from with other settings.

        Raises:
            StorageError: The disk refuses.
            Interrupted: Saved, as somebody wanted.
        """
        self.steps = steps
        if self._keeper.is_due() and not look():
            self._keeper.save(self._steps_before + steps)
