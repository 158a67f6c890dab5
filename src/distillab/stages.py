"""Plans as data: who teaches whom, by which method, in which order. Imports no torch.

A plan is a list of stages. `multi`, for instance, reads: the teacher teaches the assistant by hints and then by soft
targets; the assistant teaches the student the same way. Nothing outside `methods/` asks which method it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, create_model

from distillab.errors import ConfigError, nearest
from distillab.settings import Section, validated
from distillab.training.config import Role

if TYPE_CHECKING:
    from distillab.methods.base import Method


class Stage(Section):
    """One training: a student learns from a teacher by one method."""

    method: str = Field(description="The method's name: a file of `distillab/methods`.")
    teacher: Literal["teacher", "assistant"] = Field("teacher", description="Who teaches.")
    student: Literal["assistant", "student"] = Field("student", description="Who learns.")
    share: float | None = Field(
        None, gt=0.0, lt=1.0, description="Share of that student's epochs; the stage without one takes the rest."
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Settings of the method that this plan fixes.")


class Plan(Section):
    """A named list of stages."""

    name: str
    aliases: tuple[str, ...] = ()
    summary: str
    source: str
    stages: tuple[Stage, ...]

    @property
    def uses_assistant(self) -> bool:
        """Whether an assistant stands between teacher and student."""
        return any(stage.student == "assistant" for stage in self.stages)

    @property
    def learners(self) -> tuple[Role, ...]:
        """Who learns, in order."""
        return tuple(dict.fromkeys(stage.student for stage in self.stages))

    def stages_of(self, role: Role) -> tuple[Stage, ...]:
        """The stages in which `role` learns, in order."""
        return tuple(stage for stage in self.stages if stage.student == role)

    def epochs_of(self, role: Role, epochs: int, *, each: bool) -> tuple[int, ...]:
        """How many epochs each stage of `role` gets.

        Args:
            role: Who learns.
            epochs: What the role has in all, or for every stage if `each`.
            each: Every stage gets all of them, as the classic commands do.

        Returns:
            One count a stage, each at least 1; they add up to `epochs` unless `each`.

        Raises:
            ConfigError: There are fewer epochs than stages.
        """
        stages = self.stages_of(role)
        if each or not stages:
            return (epochs,) * len(stages)
        if epochs < len(stages):
            raise ConfigError(
                f"plan '{self.name}' trains the {role} in {len(stages)} stages, but there are {epochs} epochs",
                where="training.epochs",
                hint=f"give at least {len(stages)} epochs",
            )
        counts = [max(1, round(epochs * stage.share)) if stage.share else 0 for stage in stages]
        rest = epochs - sum(counts)
        open_stages = [i for i, stage in enumerate(stages) if stage.share is None]
        for position, index in enumerate(open_stages):
            counts[index] += rest // len(open_stages) + (position < rest % len(open_stages))
        while min(counts) < 1:  # rounding gave a stage's last epoch away: the longest one gives it back
            counts[counts.index(max(counts))] -= 1
            counts[counts.index(min(counts))] += 1
        return tuple(counts)


def _merit_based(variant: str, summary: str) -> Plan:
    return Plan(
        name=f"mbd-{variant}",
        summary=summary,
        source="Morikawa 2023, CNN Model Compression by Merit-based Distillation",
        stages=(Stage(method="merit_based", options={"variant": variant}),),
    )


_HINT_SHARE = 0.25

PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan(
            name="st",
            aliases=("soft_target", "kd"),
            summary="soft targets: match the teacher's softened class distribution",
            source="Hinton 2015, arXiv:1503.02531",
            stages=(Stage(method="soft_target"),),
        ),
        Plan(
            name="fitnet",
            summary="hints: imitate a middle layer first, then soft targets",
            source="Romero 2015, arXiv:1412.6550",
            stages=(Stage(method="hint", share=_HINT_SHARE), Stage(method="soft_target")),
        ),
        Plan(
            name="takd",
            summary="teacher assistant: teacher to assistant to student, by soft targets",
            source="Mirzadeh 2019, arXiv:1902.03393",
            stages=(
                Stage(method="soft_target", student="assistant"),
                Stage(method="soft_target", teacher="assistant"),
            ),
        ),
        Plan(
            name="multi",
            summary="multi-stage: hints, then soft targets, over an assistant",
            source="Morikawa 2022, DOI 10.1109/PerComWorkshops53856.2022.9767229",
            stages=(
                Stage(method="hint", student="assistant", share=_HINT_SHARE),
                Stage(method="soft_target", student="assistant"),
                Stage(method="hint", teacher="assistant", share=_HINT_SHARE),
                Stage(method="soft_target", teacher="assistant"),
            ),
        ),
        _merit_based("delta", "merit-based: trust the teacher a little more where it is right"),
        _merit_based("hard", "merit-based: trust the teacher only where it is right"),
        _merit_based("soft", "merit-based: trust the teacher as far as it believes the right class"),
    )
}

ALONE = "alone"
"""What stands for a method where there is none: the student learns from labels only."""

CUSTOM = "custom"
"""The method name of a plan whose stages stand in the recipe itself."""


def find_plan(name: str, stages: Sequence[Stage] = ()) -> Plan:
    """The plan of that name or alias; `custom` is made of `stages`.

    Raises:
        ConfigError: No such plan, stages without `custom`, `custom` without stages, or stages in an order
            in which somebody teaches before having learnt.
    """
    if name == CUSTOM:
        if not stages:
            raise ConfigError("method 'custom' needs stages", where="stages", hint="add [[stages]] to the recipe")
        return _custom_plan(tuple(stages))
    if stages:
        raise ConfigError(
            f"[[stages]] are given, but the method is '{name}'", where="stages", hint='set method = "custom"'
        )
    for plan in PLANS.values():
        if name == plan.name or name in plan.aliases:
            return plan
    raise ConfigError(f"unknown method '{name}'", where="method", hint=nearest(name, PLANS))


def _custom_plan(stages: tuple[Stage, ...]) -> Plan:
    learners = [stage.student for stage in stages]
    if learners != sorted(learners):  # "assistant" sorts before "student"
        raise ConfigError(
            "the assistant learns after the student", where="stages", hint="put the assistant's stages first"
        )
    if "student" not in learners:
        raise ConfigError("no stage teaches the student", where="stages", hint='add one with student = "student"')
    for number, stage in enumerate(stages):
        if stage.teacher == "assistant" and (stage.student == "assistant" or "assistant" not in learners):
            raise ConfigError(
                "the assistant teaches, but nobody has taught it",
                where=f"stages[{number}].teacher",
                hint='add an earlier stage with student = "assistant"',
            )
    for role in ("assistant", "student"):
        shares = [stage.share for stage in stages if stage.student == role]
        if shares and (None not in shares or sum(share or 0.0 for share in shares) >= 1.0):
            raise ConfigError(
                f"the shares of the {role}'s stages leave nothing to the rest",
                where="stages",
                hint="give less than 1 in all, and none to one of them",
            )
    return Plan(name=CUSTOM, summary="the recipe's own stages", source="recipe", stages=stages)


def plan_options(plan: Plan) -> type[Section]:
    """Settings of a plan: those of its methods put together, less what the plan fixes.

    Imports the methods, hence torch.

    Raises:
        ConfigError: A stage's method does not exist, or fixes a setting that the method does not have.
    """
    from distillab.methods.base import method_class

    fields: dict[str, Any] = {}
    for stage in plan.stages:
        config = method_class(stage.method).Config
        for name in stage.options:
            if name not in config.model_fields:
                raise ConfigError(
                    f"method '{stage.method}' has no setting '{name}'",
                    where="stages.options",
                    hint=nearest(name, config.model_fields),
                )
        for name, info in config.model_fields.items():
            if name not in stage.options:
                fields[name] = (info.annotation, info)  # the bounds travel in the FieldInfo itself
    return create_model(
        f"{plan.name.title().replace('-', '')}Options",
        __base__=Section,
        __doc__=f"Settings of {plan.name}.",
        **fields,
    )


def stage_method(stage: Stage, options: Mapping[str, Any]) -> Method[Any]:
    """The method of one stage, with the plan's options and those that the plan fixes.

    Raises:
        ConfigError: A value is out of its bounds, or has no effect here.
    """
    from distillab.methods.base import method_class

    found = method_class(stage.method)
    own = {name: value for name, value in options.items() if name in found.Config.model_fields}
    return found(validated(found.Config, {**own, **stage.options}, where="distill"))
