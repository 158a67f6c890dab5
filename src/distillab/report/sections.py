"""What a report says, part by part: made of rows, and of what was found of the models where that could be."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from distillab.config import TrainConfig, to_toml
from distillab.report.analysis import Analysis
from distillab.report.charts import accuracy_chart, cost_chart, learning_curves, series_of, teacher_chart
from distillab.report.collect import Collection, Variant
from distillab.report.disagreement import Case
from distillab.report.document import (
    Block,
    Document,
    Figures,
    Gallery,
    Listing,
    Paragraph,
    Picture,
    Section,
    Series,
)
from distillab.report.model_charts import confusion_chart, embedding_chart, reliability_chart, similarity_chart
from distillab.report.rows import claims, report_rows
from distillab.report.run_record import spelt
from distillab.report.table import ABSENT, Column, Table, interval, millions, number, percent, points


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
    rows = report_rows(collection)
    series = series_of(collection.variants)
    headline, *more = claims(collection)
    missing = (*collection.left_out, *(analysis.notes if analysis else ()), *left_out)
    sections = [
        _section("results", "Results", _results_table(rows), *map(Paragraph, more), accuracy_chart(rows, series)),
        _section("learning", "Learning", learning_curves(collection.variants, series)),
        _section("cost", "Cost", cost_chart(rows, series)),
        *(_of_models(collection, analysis, rows, series) if analysis else ()),
        _section("reproduce", "Reproduce", *_reproduction(collection)),
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


def _section(name: str, title: str, *blocks: Block | None) -> Section:
    return Section(name, title, tuple(block for block in blocks if block is not None))


def _facts(collection: Collection) -> dict[str, str]:
    runs = [run for variant in collection.variants for run in variant.runs]
    first = runs[0]
    seeds = sorted({run.result.seed for run in runs})
    machines = dict.fromkeys(run.environment.device_name or run.environment.device for run in runs)
    return {
        "data": first.result.data,
        "test images": f"{first.result.test.num_samples:,}",
        "rows": str(len(collection.variants)),
        "seeds": ", ".join(map(str, seeds)),
        "computed on": ", ".join(machines),
        "distillab": ", ".join(dict.fromkeys(run.environment.distillab for run in runs)),
        "torch": ", ".join(dict.fromkeys(run.environment.versions.get("torch", ABSENT) for run in runs)),
    }


def _results_table(rows: Sequence[dict[str, Any]]) -> Figures:
    """The headline's table; a column without a value is left out."""
    several = any(row["num_seeds"] > 1 for row in rows)
    columns: list[tuple[Column, list[str]]] = [
        (Column("method"), [row["method"] for row in rows]),
        (Column("model"), [row["model"] for row in rows]),
        (Column("seeds", numeric=True), [str(row["num_seeds"]) for row in rows]),
        (Column("top-1 %", numeric=True), [points(row["top1_mean"]) for row in rows]),
        (Column("95 % interval", numeric=True), [interval(row["top1_interval"]) for row in rows]),
    ]
    versus = [row["versus_alone"] or {} for row in rows]
    if any(versus):
        columns.append(
            (Column("versus alone", numeric=True), [points(one.get("difference"), signed=True) for one in versus])
        )
    if several:
        shown = [one.get("verdict") or ABSENT for one in versus]
        columns += [
            (Column("its 95 % interval", numeric=True), [interval(one.get("interval"), signed=True) for one in versus]),
            (Column("p (Holm)", numeric=True), [number(one.get("corrected_p_value"), 3) for one in versus]),
            (Column("shown"), shown),
        ]
    columns += [
        (Column("NLL", numeric=True), [number(row["nll"], 3) for row in rows]),
        (Column("ECE %", numeric=True), [percent(row["ece"]) for row in rows]),
        (Column("agreement %", numeric=True), [percent(row["teacher_agreement"]) for row in rows]),
        (Column("params M", numeric=True), [millions(row["parameters"]) for row in rows]),
        (Column("seconds", numeric=True), [number(row["seconds_mean"], 1) for row in rows]),
    ]
    kept = [(column, cells) for column, cells in columns if any(cell != ABSENT for cell in cells)]
    table = Table(tuple(column for column, _ in kept), tuple(zip(*(cells for _, cells in kept), strict=True)))
    over = "over seeds where there are several, else of one run on its test images"
    return Figures(f"All rows. Intervals are {over}; seconds are those of training.", table, tuple(range(len(rows))))


def _of_models(
    collection: Collection, analysis: Analysis, rows: Sequence[dict[str, Any]], series: Sequence[Series]
) -> list[Section]:
    baseline = analysis.of(next(iter(collection.of("alone")), None))
    trusted = _teacher_counts(collection, analysis)
    return [
        _section(
            "teacher",
            "Student and teacher",
            teacher_chart(trusted, rows, series) if trusted else None,
            similarity_chart(analysis, series),
        ),
        _section("calibration", "Calibration", reliability_chart(analysis, series)),
        _section("confusions", "Confusions", confusion_chart(analysis, baseline, series) if baseline else None),
        _section("disagreements", "Images they disagree on", *_galleries(collection, analysis)),
        _section("features", "Features", embedding_chart(analysis, series)),
    ]


def _teacher_counts(collection: Collection, analysis: Analysis) -> dict[int, tuple[int, int, int, int]]:
    """See `teacher_chart`."""
    teacher = analysis.of(next(iter(collection.of("teacher")), None))
    if teacher is None:
        return {}
    right = teacher.choices == analysis.labels
    found = {}
    for position, variant in enumerate(collection.variants):
        look = analysis.of(variant)
        if look is not None and look is not teacher:
            own = look.choices == analysis.labels
            found[position] = (
                int((~right).sum()),
                int((own & ~right).sum()),
                int(right.sum()),
                int((own & right).sum()),
            )
    return found


def _galleries(collection: Collection, analysis: Analysis) -> list[Block]:
    if not analysis.kinds or collection.best is None:
        return []
    names = (collection.of("teacher")[0].name, collection.of("alone")[0].name, collection.best.name)
    counts = Table(
        (Column("who is right"), Column("test images", numeric=True)),
        tuple((kind.title, f"{kind.count:,}") for kind in analysis.kinds),
    )
    intro = (
        f"Test images on which {names[0]}, {names[1]} and {names[2]} (the distilled student with the highest test "
        "top-1) do not all choose the same class; the first of each kind."
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


def _reproduction(collection: Collection) -> list[Block]:
    blocks: list[Block] = []
    if collection.differing:
        heads = (Column("method"), *(Column(name) for name in collection.differing))
        cells = tuple(
            (variant.name, *(values[n] for values in collection.differing.values()))
            for n, variant in enumerate(collection.variants)
        )
        series = tuple(range(len(collection.variants)))
        blocks.append(Figures("Settings in which rows differ.", Table(heads, cells), series))
    return [*blocks, *(_record(variant) for variant in collection.variants)]


def _record(variant: Variant) -> Listing:
    """How a row came about, and the command that makes it again; all else is a comment, so that it can be pasted."""
    run = variant.first
    environment = run.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    commit = f" at {environment.git.commit}{' (changed)' if environment.git.changed else ''}" if environment.git else ""
    verb = "train" if isinstance(run.config, TrainConfig) else "distill"
    told = [
        *(f"seed {one.result.seed}: {one.folder}" for one in variant.runs),
        f"it was run as: {run.command}",
        f"distillab {environment.distillab}{commit}, python {environment.python}, {versions}",
        f"on {environment.device_name or environment.device}, {environment.threads} threads, {environment.platform}",
        "settings:",
        *(f"  {line}" for line in to_toml(run.config).splitlines() if line),
    ]
    again = f"distillab {verb} --recipe {shlex.quote(str(run.folder))}"
    return Listing(
        f"{variant.name}: command, versions and settings", "\n".join([again, *(f"# {spelt(line)}" for line in told)])
    )
