"""What the runs of a report show, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distillab.evaluation.metrics import wilson_interval
from distillab.report.collect import Collection, Variant
from distillab.results.rows import Counted
from distillab.tables import amount


def claims(collection: Collection, counted: Counted) -> list[str]:
    """What the runs show, in sentences: the headline first.

    Args:
        collection: What the report is about.
        counted: Its students.
    """
    alone = [variant for variant in collection.of("alone") if not math.isnan(variant.top1)]
    distilled = [variant for variant in collection.of("distilled") if not math.isnan(variant.top1)]
    if not distilled:
        count = len(collection.variants)
        return [f"{amount(count, 'model')} trained alone, no distilled student: nothing is compared."]
    compared = [(one, against) for one in distilled if (against := collection.alone_of(one))]
    if not compared:
        why = "with the settings of the distilled ones " if alone else ""
        return [f"No student alone {why}is among the runs, so they do not show what distillation gains."]
    if all(row["num_seeds"] <= 1 for row in counted.rows):
        few = "One seed a row says nothing of the spread over seeds: more seeds are needed."
        return [_one_seed(compared), few, *counted.tuning]
    headline = [_over_tables(counted)] if len(_compared_tables(counted)) > 1 else []
    return [*headline, *counted.sentences, *counted.tuning]


def _one_seed(compared: Sequence[tuple[Variant, Variant]]) -> str:
    """What one run a row shows: whether the largest difference is more than test images leave to chance."""
    largest, alone = max(compared, key=lambda pair: abs(pair[0].top1 - pair[1].top1))
    difference = largest.top1 - alone.top1
    num_images = alone.first.result.test.num_samples
    low, high = wilson_interval(alone.top1, num_images)
    chance = math.sqrt(2) * (high - low) / 2
    images = f"the {100 * chance:.2f} points that {num_images:,} test images leave to chance"
    if abs(difference) <= chance:
        return (
            "No method is shown to differ from the student alone: the largest difference, "
            f"{100 * difference:+.2f} points ({largest.name}), lies within {images}."
        )
    verb = "above" if difference > 0 else "below"
    return (
        f"{largest.name} is {100 * abs(difference):.2f} points {verb} the student alone, more than {images}, "
        "but with one seed that shows no difference of methods."
    )


def _compared_tables(counted: Counted) -> list[str]:
    """The tables in which something is held against the student alone."""
    return list(dict.fromkeys(row["table"] for row in counted.rows if row["versus_alone"]))


def _over_tables(counted: Counted) -> str:
    """In how many tables anybody beats the student alone."""
    tables = _compared_tables(counted)
    better = [row for row in counted.rows if (row["versus_alone"] or {}).get("verdict") == "better"]
    if not better:
        return f"No method is shown to beat the student alone in any of {len(tables)} tables."
    where = {table: [row["method"] for row in better if row["table"] == table] for table in tables}
    told = "; ".join(f"{table or 'default'}: {', '.join(methods)}" for table, methods in where.items() if methods)
    count = sum(map(bool, where.values()))
    return f"The student alone is shown to be beaten in {count} of {len(tables)} tables ({told})."
