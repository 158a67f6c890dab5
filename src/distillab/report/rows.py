"""The rows of a report: each variant's numbers over its seeds, and what the comparison may claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from distillab.evaluation.metrics import wilson_interval
from distillab.report.collect import Collection, Variant
from distillab.report.run_record import Run
from distillab.report.statistics import Run as Training
from distillab.report.statistics import as_rows, compare, sentences

_COMPARED = ("alone", "distilled")


def report_rows(collection: Collection) -> list[dict[str, Any]]:
    """One row a variant, ready for JSON.

    Args:
        collection: What the report is about.

    Returns:
        The keys of `statistics.as_rows`, and `role`, `model`, `seeds`, `interval_over` ("seeds": a t-interval of the
        mean; "images": Wilson's, of one run on its test images), the means of the other numbers of `Scores`, `Cost`
        and `Timing`, and `run_dirs`. Fractions are 0..1; what there is not is None.
    """
    compared = {row["method"]: row for row in as_rows(compare(_runs(collection)))}
    return [_row(variant, compared.get(variant.name, {})) for variant in collection.variants]


def claims(collection: Collection) -> list[str]:
    """What the runs show, in sentences: the headline first.

    Args:
        collection: What the report is about.
    """
    alone, distilled = collection.of("alone"), collection.of("distilled")
    if not distilled:
        return [
            f"{_counted(len(collection.variants), 'model')} trained alone, no distilled student: nothing is compared."
        ]
    if not alone:
        return ["No student alone is among the runs, so they do not show what distillation gains."]
    if max(len(variant.runs) for variant in (*alone, *distilled)) > 1:
        return sentences(compare(_runs(collection)))
    return [
        _one_seed(alone[0], distilled),
        "One seed a row says nothing of the spread over seeds: more seeds are needed.",
    ]


def _one_seed(alone: Variant, distilled: Sequence[Variant]) -> str:
    """What one run a row shows: whether the largest difference is more than test images leave to chance."""
    largest = max(distilled, key=lambda variant: abs(variant.top1 - alone.top1))
    difference = largest.top1 - alone.top1
    low, high = wilson_interval(alone.top1, alone.first.result.test.num_samples)
    chance = 2**0.5 * (high - low) / 2
    images = f"the {100 * chance:.1f} points that {alone.first.result.test.num_samples:,} test images leave to chance"
    if abs(difference) <= chance:
        return (
            "No method is shown to differ from the student alone: the largest difference, "
            f"{100 * difference:+.1f} points ({largest.name}), lies within {images}."
        )
    verb = "above" if difference > 0 else "below"
    return (
        f"{largest.name} is {100 * abs(difference):.1f} points {verb} the student alone, more than {images}, "
        "but with one seed that shows no difference of methods."
    )


def _runs(collection: Collection) -> dict[str, dict[int, Training]]:
    return {
        variant.name: {
            run.result.seed: Training(run.result.test.top1, run.result.timing.seconds or 0.0) for run in variant.runs
        }
        for variant in collection.variants
        if variant.place in _COMPARED
    }


def _row(variant: Variant, compared: dict[str, Any]) -> dict[str, Any]:
    runs = variant.runs

    def mean(of: Callable[[Run], float | None]) -> float | None:
        values = [value for run in runs if (value := of(run)) is not None]
        return fmean(values) if values else None

    row: dict[str, Any] = {
        "method": variant.name,
        "role": variant.place,
        "model": variant.first.result.model,
        "seeds": [run.result.seed for run in runs],
        "num_seeds": len(runs),
        "top1_mean": variant.top1,
        "top1_std": None,
        "top1_interval": None,
        "interval_over": "seeds",
        "versus_alone": None,
        "versus_st": None,
        "rank": None,
        "points_per_extra_minute": None,
        **compared,
        "seconds_mean": mean(lambda run: run.result.timing.seconds),
        "nll": mean(lambda run: run.result.test.nll),
        "ece": mean(lambda run: run.result.test.ece),
        "teacher_agreement": mean(lambda run: run.result.test.teacher_agreement),
        "teacher_divergence": mean(lambda run: run.result.test.teacher_divergence),
        "top1_where_teacher_wrong": mean(lambda run: run.result.test.top1_where_teacher_wrong),
        "parameters": variant.first.result.cost.parameters,
        "macs": variant.first.result.cost.macs,
        "latency_seconds": mean(lambda run: run.result.timing.latency_seconds),
        "run_dirs": [str(run.folder) for run in runs],
    }
    if len(runs) == 1:
        test = variant.first.result.test
        row |= {"top1_interval": list(wilson_interval(test.top1, test.num_samples)), "interval_over": "images"}
    return row


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
