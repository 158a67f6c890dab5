"""The contract of a method, and how methods are found: by the names of the files beside this one.

Imports no torch, so that names can be listed and checked at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from distillab.errors import ConfigError, nearest
from distillab.settings import Section

if TYPE_CHECKING:
    from torch import Tensor, nn

    from distillab.models.features import ModelOutput

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True)
class TuningRange:
    """Where `distillab compare --tune` looks for the best value of a setting; it stands in the setting's annotation.

    Attributes:
        low: The smallest value that is tried.
        high: The largest one.
        log: Try factors evenly, not differences; `low` is then above 0.
    """

    low: float
    high: float
    log: bool = False


class Method(Generic[ConfigT]):
    """A term or a few that a student minimises; it sees tensors, never models.

    Class attributes:
        name: The file's stem.
        summary: One line for `distillab list methods`.
        source: The paper.
        Config: The method's own settings; those with a `TuningRange` can be tuned.
        needs_teacher: False for a method that learns from labels alone.
        couples_samples: True where terms are [] because samples are compared with each other.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[Section]]
    needs_teacher: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = False

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def layers(self) -> tuple[str | None, str | None] | None:
        """The (teacher, student) layers it reads, None standing for a model's own; None for logits only."""
        return None

    def stops_at_layer(self) -> bool:
        """Whether both models run only up to those layers, and only that part of the student learns."""
        return False

    def adapter(self, student_feature: Tensor, teacher_feature: Tensor) -> nn.Module | None:
        """A trainable map from the student's feature to the teacher's space, made to fit these examples."""
        return None

    def terms(
        self,
        student: ModelOutput,
        teacher: ModelOutput | None,
        labels: Tensor,
        progress: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted terms that add up to the loss.

        Args:
            student: Its output. `features` holds the one layer that `layers` names, already adapted.
            teacher: Its output, constants; `features` holds its one layer. None for methods that need no
                teacher.
            labels: [N] integers or [N, C] probabilities.
            progress: [] share of this stage that is done, 0..1, on the device.

        Returns:
            name -> [N] (or [] where `couples_samples`), nats or squared units, float32 or wider.
        """
        raise NotImplementedError


def logits_of(output: ModelOutput | None, role: str) -> Tensor:
    """The logits of a model that a method cannot do without.

    Args:
        output: What the model said, if it was asked.
        role: "student" or "teacher", for the message.

    Returns:
        [N, C] raw scores.

    Raises:
        ConfigError: There was no such model, or its forward pass stopped before the logits.
    """
    if output is None or output.logits is None:
        raise ConfigError(
            f"this method needs the {role}'s logits, and got none",
            where=role,
            hint="run the model to its end: only methods that stop at a layer may stop before the logits",
        )
    return output.logits


def method_names() -> tuple[str, ...]:
    """Names of all methods: the files beside this one."""
    package = importlib.import_module("distillab.methods")
    return tuple(sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base"))


def method_class(name: str) -> type[Method[Section]]:
    """The class behind a name.

    Raises:
        ConfigError: No file of that name.
    """
    if name not in method_names():
        raise ConfigError(f"unknown method '{name}'", where="method", hint=nearest(name, method_names()))
    module = importlib.import_module(f"distillab.methods.{name}")
    found: type[Method[Section]] = module.METHOD
    return found
