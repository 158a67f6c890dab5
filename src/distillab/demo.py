"""The demonstration: teacher, student alone and all classic methods on the digits, and one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from distillab.config import AnyConfig, resolve_distill, resolve_train
from distillab.errors import NonFiniteLossError
from distillab.outcome import RunResult
from distillab.recipe import load_recipe
from distillab.run import run_one, run_together
from distillab.runtime.events import Observer, silent
from distillab.runtime.run_dir import RUNS, claim_dir, new_run_name
from distillab.stages import PLANS

RECIPE = "digits-demo"


def run_demo(
    *, output: Path | None = None, seed: int = 0, device: str = "auto", observer: Observer = silent
) -> dict[str, Any]:
    """Train everything that the table compares, each in a run folder of its own.

    The student alone has the schedule, epochs, initial weights, order and views of the distilled ones. The teacher is
    trained once; then all students are trained together on the same batches.

    Args:
        output: Folder for the run folders; a new one under `runs/` if None.
        seed: Of everything.
        device: See `RunConfig.device`.
        observer: Is told of progress.

    Returns:
        "rows" (one a model: method, model, top1, nll, ece, teacher_agreement, parameters, macs, seconds, run_dir),
        "noise" (how far rows may differ by chance), "output" and "seconds", ready for JSON.
    """
    started = time.perf_counter()
    folder = claim_dir(output or RUNS / new_run_name("demo"))
    recipe = load_recipe(RECIPE)

    def flags(name: str, **more: Any) -> dict[str, Any]:
        return {"seed": seed, "device": device, "output": folder / name, **more}

    teacher = run_one(resolve_train(recipe, flags("teacher", role="teacher")), observer=observer)
    configs: list[AnyConfig] = [
        resolve_train(recipe, flags("alone", role="student")),
        *(resolve_distill(recipe, flags(name, method=name, teacher=str(folder / "teacher"))) for name in PLANS),
    ]
    rows = [_row("teacher", teacher)]
    outcomes = run_together(configs, observer=observer, group=folder)
    for name, outcome in zip(("alone", *PLANS), outcomes, strict=True):
        if isinstance(outcome, NonFiniteLossError):
            raise outcome
        rows.append(_row(name, outcome))
    return {
        "rows": rows,
        "noise": teacher.summary["noise"],
        "output": str(folder),
        "seconds": time.perf_counter() - started,
    }


def _row(method: str, result: RunResult) -> dict[str, Any]:
    summary = result.summary
    test = summary["test"]
    return {
        "method": method,
        "model": summary["model"],
        **{name: test[name] for name in ("top1", "nll", "ece", "teacher_agreement")},
        **summary["cost"],
        "seconds": summary["timing"]["seconds"],
        "run_dir": str(result.run_dir),
    }
