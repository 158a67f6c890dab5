"""Settings of training. Imports no torch, so that `--help` is quick."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distillab.settings import Section

Precision = Literal["auto", "float32", "bfloat16"]
Execution = Literal["auto", "eager", "captured", "compiled"]
Role = Literal["teacher", "assistant", "student"]


class OptimizerConfig(Section):
    """Which optimizer, and its values."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="SGD with momentum, Adam or AdamW.")
    learning_rate: float = Field(0.05, gt=0.0, le=1e38, allow_inf_nan=False, description="Peak learning rate.")
    weight_decay: float = Field(
        5e-4, ge=0.0, allow_inf_nan=False, description="Decay of weights (never of biases and norms)."
    )
    momentum: float | None = Field(None, ge=0.0, lt=1.0, description="SGD only: momentum; 0.9 if not given.")
    nesterov: bool | None = Field(None, description="SGD only: Nesterov's form; on if not given.")


class ScheduleConfig(Section):
    """How the learning rate moves over a stage."""

    name: Literal["constant", "linear", "cosine", "multi_step"] = Field(
        "linear", description="Shape after the warm-up: constant, down to zero linearly or by cosine, steps."
    )
    warmup_fraction: float = Field(
        0.1, ge=0.0, lt=1.0, description="Share of the steps over which the rate rises from zero."
    )
    milestones: tuple[int, ...] | None = Field(
        None, description="multi_step only: epochs after which the rate is multiplied by `factor`."
    )
    factor: float | None = Field(
        None, gt=0.0, lt=1.0, description="multi_step only: what the rate is multiplied by; 0.1 if not given."
    )


class TrainingConfig(Section):
    """One training: how long, how big, how safe."""

    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    stage_epochs: Literal["shared", "each"] = Field(
        "shared", description="A plan's stages share the student's epochs, or each gets all of them."
    )
    batch_size: int = Field(128, ge=1, description="Images a step.")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of each label spread evenly over all classes."
    )
    gradient_clip: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="Largest norm of the gradient; longer ones are shortened to it."
    )
    ema_decay: float | None = Field(
        None, gt=0.0, lt=1.0, description="Decay of an exponential moving average of the weights, which is then used."
    )
    early_stop_patience: int | None = Field(
        None, ge=1, description="Stop after so many epochs without a lower validation loss; best weights return."
    )
    recalibrate_batchnorm: bool = Field(
        True, description="Re-estimate BatchNorm statistics after the last step, dropout off."
    )
    precision: Precision = Field(
        "auto", description="float32, bfloat16 where the device does it well (auto), or always."
    )
    deterministic: bool = Field(
        False,
        description="Only algorithms that give the same bits each time, on a GPU too, where they are slower; "
        "a CPU has no others.",
    )
    execution: Execution = Field(
        "auto",
        description="How steps run: one by one, as a CUDA graph, compiled (in a graph, where there are), or what pays.",
    )


class CheckpointConfig(Section):
    """How often a run is saved, so that it can go on if something stops it."""

    minutes: float = Field(
        5.0, ge=0.0, allow_inf_nan=False, description="Minutes between two checkpoints; 0: one after every step."
    )
    keep: int = Field(2, ge=1, le=1000, description="How many of the newest to keep.")


class Regime(Section):
    """How one model is trained: the three sections together, as they stand in a recipe."""

    training: TrainingConfig = Field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
