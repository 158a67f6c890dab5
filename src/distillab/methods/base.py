"""The contract of a method, and how methods are found: by the names of the files beside this one."""

from __future__ import annotations

import importlib
import pkgutil
from typing import ClassVar, Generic, TypeVar

from torch import Tensor, nn

from distillab.errors import ConfigError, nearest
from distillab.models.features import ModelOutput
from distillab.settings import Section

ConfigT = TypeVar("ConfigT", bound=Section)


class Method(Generic[ConfigT]):
    """A term or a few that a student minimises; it sees tensors, never models.

    Class attributes:
        name: The file's stem.
        summary: One line for `distillab list methods`.
        source: The paper.
        Config: The method's own settings.
        needs_teacher: False for a method that learns from labels alone.
        needs_labels: False for a method that only imitates.
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
        """The (teacher, student) layers it reads; None inside for the model's default hint layer; None: logits only."""
        return None

    def stops_at_layer(self) -> bool:
        """Whether both models run only up to those layers, and only that part of the student learns."""
        return False

    def adapter(self, student_feature: Tensor, teacher_feature: Tensor) -> nn.Module | None:
        """A trainable module that maps the student's feature to the teacher's space, made to fit these examples."""
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
            student: Its output; `features` are already adapted, under the *student layer's* name.
            teacher: Its output, constants; None for methods that need no teacher.
            labels: [N] integers or [N, C] probabilities.
            progress: [] share of this stage that is done, 0..1, on the device.

        Returns:
            name -> [N] (or [] where `couples_samples`), nats or squared units, float32 or wider.
        """
        raise NotImplementedError


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
