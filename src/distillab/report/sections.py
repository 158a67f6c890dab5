"""What a report says, part by part: made of rows, and of what was found of the models where that could be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillab.report.analysis import Analysis
from distillab.report.charts import accuracy_chart, cost_chart, series_of
from distillab.report.claims import claims
from distillab.report.collect import Collection, Variant
from distillab.report.curves import learning_curves
from distillab.report.disagreement import Case
from distillab.report.document import (
    Block,
    Document,
    Figures,
    Gallery,
    Paragraph,
    Picture,
    Section,
    Series,
)
from distillab.report.look import Look
from distillab.report.model_charts import confusion_chart, embedding_chart, reliability_chart, similarity_chart
from distillab.report.reproduction import reproduction
from distillab.report.teacher_chart import BesideTeacher, teacher_chart
from distillab.results.columns import rows_table
from distillab.results.rows import Counted, counted
from distillab.results.run_record import Run
from distillab.tables import ABSENT, Column, Table, points

_COMPARED = ("alone", "distilled")


def build_document(
    collection: Collection, analysis: Analysis | None, *, title: str, left_out: Sequence[str] = ()
) -> Document:
    """Put a report together.

    Args:
        collection: What it is about.
        analysis: What was found of the models; None leaves its sections out.
        title: Of the page.
        left_out: More to say of what is not there.
    """
    students = counted([variant.row for variant in collection.variants if variant.place in _COMPARED])
    rows = _rows(collection, students)
    drawn = [_drawn(row, variant, collection) for row, variant in zip(rows, collection.variants, strict=True)]
    series = series_of(collection.variants)
    headline, *more = claims(collection, students)
    missing = (*collection.left_out, *(analysis.notes if analysis else ()), *left_out)
    beside = _beside_teacher(collection, analysis)
    for number_of_row, runs in beside.items():
        if drawn[number_of_row]["teacher_agreement"] is None:  # a student alone has no teacher while it is trained
            drawn[number_of_row]["teacher_agreement"] = fmean(one.agreement for one in runs)
    sections = [
        _section("results", "Results", accuracy_chart(drawn, series), *_results_tables(drawn), *map(Paragraph, more)),
        _section("weights", "Which weights", *_weights(collection, drawn)),
        _section("learning", "Learning curves", learning_curves(collection.variants, series)),
        _section("cost", "Accuracy and cost", cost_chart(drawn, series, front=_is_one_test_set(collection))),
        _section(
            "teacher",
            "Student and teacher",
            teacher_chart(beside, drawn, series) if beside else None,
            similarity_chart(analysis, series) if analysis else None,
        ),
        *(_of_models(collection, analysis, series) if analysis else ()),
        _section("reproduce", "Reproduce", *reproduction(collection)),
        _section("left-out", "Left out", *map(Paragraph, missing)),
    ]
    return Document(
        title=title,
        headline=headline,
        facts=_facts(collection),
        sections=tuple(section for section in sections if section.blocks),
        series=series,
        rows=rows,
        left_out=missing,
    )


def _rows(collection: Collection, students: Counted) -> list[dict[str, Any]]:
    """A row for each variant: students as they were counted, teachers and assistants as what they are by themselves."""
    of_students = {(row["table"], row["method"]): row for row in students.rows}
    rows = []
    for variant in collection.variants:
        if variant.place in _COMPARED:
            row = of_students[variant.row.table, variant.row.method]
        else:
            row = {**counted([variant.row]).rows[0], "rank": None}  # nobody is held against them
        rows.append({**row, "role": variant.place})
    return rows


def _latency(variant: Variant, collection: Collection) -> float | None:
    """Seconds an image takes a row's model: the middle one of all runs of that model on that machine, since it was
    measured once a run and what differs between these is the machine's mood.
    """
    if not variant.runs:
        return None
    wanted = _model_and_machine(variant.first)
    runs = (run for other in collection.variants for run in other.runs if _model_and_machine(run) == wanted)
    known = [seconds for run in runs if (seconds := run.result.timing.latency_seconds) is not None]
    return median(known) if known else None


def _model_and_machine(run: Run) -> tuple[str, ...]:
    return run.result.model, run.environment.device, run.environment.device_name or ""


def _drawn(row: dict[str, Any], variant: Variant, collection: Collection) -> dict[str, Any]:
    """A row as it is drawn: by a name that is its own, with the interval that there is."""
    told: dict[str, Any] = {"method": variant.name, "model": row["model"] or ABSENT, "interval_over": "seeds"}
    told["latency_seconds"] = _latency(variant, collection)
    if row["top1_interval"] is None and row["test_set_interval"] is not None:
        told |= {"top1_interval": row["test_set_interval"], "interval_over": "images"}
    if row["top1_mean"] is None:
        told |= {"parameters": None, "macs": None, "latency_seconds": None}
    if variant.place == "alone" and len(collection.of("alone")) > 1:
        told["role"] = "one of several alone"  # no line can be drawn for all
    return row | told


def _section(name: str, title: str, *blocks: Block | None) -> Section:
    return Section(name, title, tuple(block for block in blocks if block is not None))


def _facts(collection: Collection) -> dict[str, str]:
    runs = [run for variant in collection.variants for run in variant.runs]
    first = runs[0]
    seeds = sorted({run.result.seed for run in runs})
    machines = dict.fromkeys(run.environment.device_name or run.environment.device for run in runs)
    return {
        "data": ", ".join(dict.fromkeys(run.result.data for run in runs)),
        "test images": f"{first.result.test.num_samples:,}",
        "rows": str(len(collection.variants)),
        "seeds" if len(seeds) > 1 else "seed": ", ".join(map(str, seeds)),
        "computed on": ", ".join(machines),
        "distillab": ", ".join(dict.fromkeys(run.environment.distillab for run in runs)),
        "torch": ", ".join(dict.fromkeys(run.environment.versions.get("torch", ABSENT) for run in runs)),
    }


def _is_one_test_set(collection: Collection) -> bool:
    """Whether all rows were tested on the same images, as far as runs tell: folders of one name may hold others."""
    found = {
        (
            run.result.data,
            run.config.data,
            run.config.split.seed,
            run.config.split.test_fraction,
            run.result.test.num_samples,
        )
        for variant in collection.variants
        for run in variant.runs
    }
    return len(found) == 1


def _results_tables(rows: Sequence[dict[str, Any]]) -> list[Figures]:
    """What the seeds show, and what else is known of the rows; a column without a value is left out."""
    several = any(row["num_seeds"] > 1 for row in rows)
    over = "over seeds where there are several, else of one run on its test images"
    paired = any((row["versus_alone"] or {}).get("interval") for row in rows)
    versus = " Differences are in points, paired by seed; p is corrected for all methods (Holm)." if paired else ""
    shown = (
        *("method", "model", "seeds", "teachers", "top1", "std", "interval"),
        *("versus_alone", "alone_interval", "alone_p_value"),
    )
    known = ("method", *(["rank"] if several else []), "nll", "ece", "agreement", "parameters", "seconds", "gain")
    every = tuple(range(len(rows)))
    against_st = tuple(n for n, row in enumerate(rows) if row["versus_st"])
    tables: list[tuple[str, tuple[str, ...], tuple[int, ...]]] = [
        (f"All rows. Intervals, of 95 %, are {over}.{versus}", (*shown, "alone_shown") if several else shown, every)
    ]
    if against_st:
        held = ("method", "versus_st", "st_interval", "st_p_value", *(["st_shown"] if several else []))
        tables.append(("Differences to st, soft targets, instead of the student alone.", held, against_st))
    told = "loss and calibration on the test images, agreement with the teacher, seconds of training"
    ranks = "ranks that the tests leave open, " if several else ""
    gain = ", points gained a minute longer than the student alone" if several else ""
    tables.append((f"What else is known of them: {ranks}{told}{gain}.", known, every))
    return [
        Figures(caption, rows_table([rows[n] for n in chosen], columns), chosen) for caption, columns, chosen in tables
    ]


def _weights(collection: Collection, rows: Sequence[dict[str, Any]]) -> list[Block]:
    """The weights that runs have kept beside each other; nothing where each has one kind only."""
    if not any(row["top1_last_mean"] is not None or row["top1_best_mean"] is not None for row in rows):
        return []
    cells = []
    for row, variant in zip(rows, collection.variants, strict=True):
        averaged = row["top1_last_mean"] is not None
        stops_early = bool(variant.runs) and variant.first.config.training.early_stop_patience is not None
        epochs = [run.result.best.epoch for run in variant.runs if run.result.best]
        cells.append(
            (
                row["method"],
                points(row["top1_mean"] if averaged else None),
                points(row["top1_last_mean"] if averaged else None if stops_early else row["top1_mean"]),
                points(row["top1_best_mean"]),
                ", ".join(map(str, epochs)) or ABSENT,
            )
        )
    heads = ("average (EMA) %", "last step %", "least validation loss %", "after epoch")
    return [
        Paragraph(
            "Test top-1 of the weights that each run has kept, means over seeds. The result is that of the last step's "
            "weights, of their average where the settings ask for one, and of those with the least loss on the "
            "validation images where runs stop early; nothing is chosen on the test images."
        ),
        Figures(
            "Test top-1 by which weights.",
            Table((Column("method"), *(Column(head, numeric=True) for head in heads)), tuple(cells)),
            tuple(range(len(rows))),
        ),
    ]


def _of_models(collection: Collection, analysis: Analysis, series: Sequence[Series]) -> list[Section]:
    baselines = {look.variant.name: analysis.of(collection.alone_of(look.variant)) for look in analysis.looks}
    of_first = " Of several runs of a row it is the first." if _chosen_from_several(analysis) else ""
    reliability, confusion, embedding = (
        chart and replace(chart, description=chart.description + of_first)
        for chart in (
            reliability_chart(analysis, series),
            confusion_chart(analysis, baselines, series),
            embedding_chart(analysis, series),
        )
    )
    return [
        _section("calibration", "Calibration", reliability),
        _section("confusions", "Confusions", confusion),
        _section("disagreements", "Images they disagree on", *_galleries(collection, analysis, of_first)),
        _section("features", "Features", embedding),
    ]


def _chosen_from_several(analysis: Analysis) -> bool:
    return any(len(look.variant.runs) > 1 for look in analysis.looks)


def _beside_teacher(collection: Collection, analysis: Analysis | None) -> dict[int, list[BesideTeacher]]:
    """Runs of students held against their teacher, by number of the row: as they say, else by their choices."""
    found = {}
    for number_of_row, variant in enumerate(collection.variants):
        told = [one for run in variant.runs if (one := _told_by_run(run)) is not None]
        if not told and analysis is not None and variant.runs:
            teacher = analysis.of(collection.teacher_of(variant))
            if teacher is not None:
                seen = _choices(variant, analysis)
                told = [_seen(seed, choices, teacher, analysis) for seed, choices in seen.items()]
        if told:
            found[number_of_row] = told
    return found


def _choices(variant: Variant, analysis: Analysis) -> Mapping[int, NDArray[np.int64]]:
    """What a row's models choose, by seed, as far as they were looked at."""
    look = analysis.of(variant)
    first = {} if look is None else {variant.first.result.seed: look.choices}
    return analysis.choices.get(variant.name, first)


def _told_by_run(run: Run) -> BesideTeacher | None:
    test, part = run.result.test, run.result.teacher
    if part is None or test.teacher_agreement is None:
        return None
    num_right = round(part.test.top1 * test.num_samples)
    num_wrong = test.num_samples - num_right
    where_wrong = round((test.top1_where_teacher_wrong or 0.0) * num_wrong)
    own = round(test.top1 * test.num_samples)
    return BesideTeacher(run.result.seed, num_wrong, where_wrong, num_right, own - where_wrong, test.teacher_agreement)


def _seen(seed: int, choices: NDArray[np.int64], teacher: Look, analysis: Analysis) -> BesideTeacher:
    own, others = choices == analysis.labels, teacher.choices == analysis.labels
    return BesideTeacher(
        seed,
        int((~others).sum()),
        int((own & ~others).sum()),
        int(others.sum()),
        int((own & others).sum()),
        float((choices == teacher.choices).mean()),
    )


def _galleries(collection: Collection, analysis: Analysis, of_first: str) -> list[Block]:
    if not analysis.kinds or collection.trio is None:
        return []
    names = tuple(variant.name for variant in collection.trio)
    counts = Table(
        (Column("who is right"), Column("test images", numeric=True)),
        tuple((kind.title, f"{kind.count:,}") for kind in analysis.kinds),
    )
    intro = (
        f"Test images on which {names[0]}, {names[1]} and {names[2]} (the distilled student with the highest test "
        f"top-1) do not all choose the same class; some of each kind.{of_first}"
    )
    return [
        Paragraph(intro),
        Figures("How many images are of each kind.", counts),
        *(
            Gallery(kind.title, tuple(_picture(case, names, analysis) for case in kind.cases))
            for kind in analysis.kinds
        ),
    ]


def _picture(case: Case, names: Sequence[str], analysis: Analysis) -> Picture:
    lines = tuple(
        (name, analysis.classes[choice], choice == case.label) for name, choice in zip(names, case.choices, strict=True)
    )
    label = analysis.classes[case.label]
    return Picture(analysis.pictures[case.position], f"test image {case.position + 1}, class {label}", label, lines)
