"""The charts of a report: each a drawing, a description, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, zip_longest
from statistics import fmean
from typing import Any

from distillab.report.collect import Variant
from distillab.report.document import Chart, Series
from distillab.report.drawing import INK, MARKERS, MUTED, NUM_HUES, Drawing, Panel, hue, short, themed
from distillab.report.run_record import Epoch
from distillab.report.table import ABSENT, Column, Table, number, percent

WIDE, SQUARE = 360, 190
"""Widths of panels, in points."""

_GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=True))
_DASHES = ("-", "--", ":", "-.")
_ROW_POINTS = 21
_AXIS_POINTS = 34
_MOST_EPOCHS_LISTED = 12

Row = Mapping[str, Any]


def series_of(variants: Sequence[Variant]) -> tuple[Series, ...]:
    """How each variant is drawn: models trained alone without colour, distilled ones in hues and shapes."""
    found = []
    hues = 0
    for position, variant in enumerate(variants):
        marker = MARKERS[hues % NUM_HUES]
        if variant.place == "distilled":
            look = (
                hue(hues),
                f"hue-{hues % NUM_HUES}",
                marker,
                _GLYPHS[marker],
                _DASHES[hues // NUM_HUES % len(_DASHES)],
            )
            hues += 1
        elif variant.place == "alone":
            look = (INK, "ink", "o", "●", "-")
        else:
            look = (MUTED, "muted", "D", "◆", "--")
        found.append(Series(position, variant.name, *look))
    return tuple(found)


@themed()
def accuracy_chart(rows: Sequence[Row], series: Sequence[Series]) -> Chart:
    """Test accuracy of each row with its interval, and how it differs from the student alone where seeds say that."""
    panels = [_intervals(
        "accuracy", "Test top-1, %", rows, series,
        lambda row: (row["top1_mean"], row["top1_interval"]), reference=_alone(rows),
    )]  # fmt: skip
    versus = [(row["versus_alone"] or {}) for row in rows]
    if any(one.get("interval") for one in versus):
        panels.append(_intervals(
            "versus-alone", "Points more than the student alone", rows, series,
            lambda row: ((row["versus_alone"] or {}).get("difference"), (row["versus_alone"] or {}).get("interval")),
            reference=0.0,
        ))  # fmt: skip
    numbers = Table(
        (
            Column("method"),
            *(Column(head, numeric=True) for head in ("top-1 %", "low", "high", "difference", "low", "high")),
        ),
        tuple(
            (
                row["method"],
                percent(row["top1_mean"]),
                *_bounds(row["top1_interval"]),
                percent(difference.get("difference")),
                *_bounds(difference.get("interval")),
            )
            for row, difference in zip(rows, versus, strict=True)
        ),
    )
    return Chart(
        "accuracy",
        "Accuracy on the test images",
        "Points are means, bars 95 % intervals: over seeds where a row has several, else of one run on its test "
        "images. The dotted line is the student alone.",
        tuple(panels),
        numbers,
    )


def _alone(rows: Sequence[Row]) -> float | None:
    return next((row["top1_mean"] for row in rows if row["role"] == "alone"), None)


def _intervals(
    name: str,
    title: str,
    rows: Sequence[Row],
    series: Sequence[Series],
    values: Callable[[Row], tuple[float | None, Sequence[float] | None]],
    *,
    reference: float | None = None,
) -> Panel:
    """Rows below each other, each a point with its interval, in percent."""
    drawing = Drawing(WIDE, _AXIS_POINTS + _ROW_POINTS * len(rows), grid="x")
    axes = drawing.axes
    if reference is not None:
        axes.axvline(100 * reference, color=MUTED, linewidth=1.0, linestyle=":")
    for position, (row, look) in enumerate(zip(rows, series, strict=True)):
        middle, interval = values(row)
        if middle is None:
            continue
        tip = f"{row['method']}: {percent(middle)}"
        if interval is not None:
            tip += f" ({' to '.join(_bounds(interval))})"
            (bar,) = axes.plot(
                [100 * end for end in interval], [position] * 2, color=look.colour, linewidth=1.8, alpha=0.55
            )
            drawing.tag(bar, series=look.number, tip=tip)
        (point,) = axes.plot([100 * middle], [position], look.marker, color=look.colour)
        drawing.tag(point, series=look.number, tip=tip)
    axes.set_yticks(range(len(rows)), [short(row["method"]) for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=6)
    return drawing.panel(title, name=name, label="a point with its interval for each row; the numbers are below")


def _bounds(interval: Sequence[float] | None) -> tuple[str, str]:
    low, high = interval or (None, None)
    return percent(low), percent(high)


_CURVES: tuple[tuple[str, str, Callable[[Epoch], float | None], float], ...] = (
    ("train-top1", "Training top-1, %", lambda epoch: epoch.train_top1, 100.0),
    ("validation-top1", "Validation top-1, %", lambda epoch: epoch.validation_top1, 100.0),
    ("loss", "Training loss, each method's own", lambda epoch: epoch.loss, 1.0),
    ("validation-loss", "Validation loss, nats", lambda epoch: epoch.validation_loss, 1.0),
)


@themed()
def learning_curves(variants: Sequence[Variant], series: Sequence[Series]) -> Chart | None:
    """Accuracy and loss by epoch, the mean over seeds; None where no run has told of its epochs."""
    from matplotlib.ticker import MaxNLocator

    panels = []
    lines: list[tuple[str, str, list[float | None]]] = []
    for name, title, value, scale in _CURVES:
        curves = [_mean_curve([[value(epoch) for epoch in run.epochs] for run in v.runs]) for v in variants]
        if not any(y is not None for curve in curves for y in curve):
            continue
        drawing = Drawing(WIDE, 210)
        for curve, look in zip(curves, series, strict=True):
            told = [(x, scale * y) for x, y in enumerate(curve, start=1) if y is not None]
            if told:
                marker = look.marker if len(told) < 8 else ""
                (line,) = drawing.axes.plot(
                    *zip(*told, strict=True), marker, ls=look.dashes, color=look.colour, markersize=4
                )
                drawing.tag(line, series=look.number, tip=look.name)
                lines.append((look.name, title, [None if y is None else scale * y for y in curve]))
        drawing.axes.set_xlabel("epoch")
        drawing.axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels.append(drawing.panel(title, name=name, label="a line for each row, by epoch; the numbers are below"))
    return _chart_of_curves(panels, lines) if panels else None


def _chart_of_curves(panels: Sequence[Panel], lines: Sequence[tuple[str, str, list[float | None]]]) -> Chart:
    longest = max(len(curve) for _, _, curve in lines)
    step = -(-longest // _MOST_EPOCHS_LISTED)
    listed = [epoch for epoch in range(longest) if (longest - 1 - epoch) % step == 0]

    def at(curve: Sequence[float | None], epoch: int) -> str:
        return number(curve[epoch], 2) if epoch < len(curve) else ABSENT

    return Chart(
        "curves",
        "Learning curves",
        "Means over seeds. Stages of one student follow each other; a hint stage has no accuracy of its own, and "
        "losses of different methods do not compare.",
        tuple(panels),
        Table(
            (Column("method"), Column("curve"), *(Column(f"epoch {epoch + 1}", numeric=True) for epoch in listed)),
            tuple((name, title, *(at(curve, epoch) for epoch in listed)) for name, title, curve in lines),
        ),
    )


def _mean_curve(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    """The mean of each epoch over the runs that have come so far."""
    epochs = zip_longest(*curves)
    told = ([value for value in values if value is not None] for values in epochs)
    return [fmean(values) if values else None for values in told]


_COSTS = (
    ("parameters", "Parameters, millions", 1e-6),
    ("macs", "Multiply-accumulates an image, millions", 1e-6),
    ("latency_seconds", "Time an image, ms", 1e3),
)


@themed()
def cost_chart(rows: Sequence[Row], series: Sequence[Series]) -> Chart:
    """Accuracy against what a model costs, with the rows that no other row beats in both."""
    panels = []
    for key, title, scale in _COSTS:
        points = [(scale * row[key], 100 * row["top1_mean"], n) for n, row in enumerate(rows) if row[key]]
        if not points:
            continue
        drawing = Drawing(WIDE, 210, grid="both")
        axes = drawing.axes
        best = list(accumulate((y for _, y, _ in sorted(points, key=lambda p: (p[0], -p[1]))), max))
        ordered = sorted(x for x, _, _ in points)
        axes.step(ordered, best, where="post", color=MUTED, linewidth=1.0, linestyle=":")
        for x, y, position in points:
            look = series[position]
            (point,) = axes.plot([x], [y], look.marker, color=look.colour, alpha=0.9)
            drawing.tag(point, series=look.number, tip=f"{look.name}: {y:.1f} % at {x:.3g}")
        axes.set_xlabel(title)
        axes.set_ylabel("test top-1, %")
        axes.margins(x=0.12, y=0.15)
        axes.locator_params(nbins=6)
        panels.append(drawing.panel("", name=f"cost-{key.partition('_')[0]}", label=f"top-1 against {title.lower()}"))
    heads = ("top-1 %", "parameters M", "MACs M", "ms an image")
    return Chart(
        "cost",
        "Accuracy and cost",
        "The dotted line goes through the rows that no cheaper row equals (the Pareto front). Time is that of one "
        "image at a time on the machine that trained.",
        tuple(panels),
        Table(
            (Column("method"), Column("model"), *(Column(head, numeric=True) for head in heads)),
            tuple(
                (
                    row["method"],
                    row["model"],
                    percent(row["top1_mean"]),
                    *(number(None if row[key] is None else scale * row[key], 2) for key, _, scale in _COSTS),
                )
                for row in rows
            ),
        ),
    )


@themed()
def teacher_chart(
    counts: Mapping[int, tuple[int, int, int, int]], rows: Sequence[Row], series: Sequence[Series]
) -> Chart:
    """How a student does where its teacher is wrong, and where it is right.

    Args:
        counts: By row: images that the teacher gets wrong, those of them that the student gets right, and the same for
            the images that the teacher gets right.
        rows: All rows.
        series: How each is drawn.
    """
    from distillab.evaluation.metrics import wilson_interval

    chosen = list(counts)
    shares = [
        {
            "method": rows[n]["method"],
            "wrong": (right_wrong / wrong, wilson_interval(right_wrong / wrong, wrong)) if wrong else (None, None),
            "right": (right_right / right, wilson_interval(right_right / right, right)) if right else (None, None),
        }
        for n, (wrong, right_wrong, right, right_right) in counts.items()
    ]
    looks = [series[n] for n in chosen]
    heads = {"wrong": "Top-1 where the teacher is wrong, %", "right": "Top-1 where the teacher is right, %"}
    panels = [
        _intervals(f"teacher-{key}", title, shares, looks, lambda row, key=key: row[key])  # type: ignore[misc]
        for key, title in heads.items()
        if any(row[key][0] is not None for row in shares)
    ]
    wrong, _, right, _ = next(iter(counts.values()))
    return Chart(
        "teacher",
        "Where the teacher is wrong, and where it is right",
        f"The teacher errs on {wrong:,} of {wrong + right:,} test images; to lose less there is what merit-based "
        "methods claim. Bars are 95 % intervals of one run on these images.",
        tuple(panels),
        Table(
            (
                Column("method"),
                *(
                    Column(head, numeric=True)
                    for head in ("agreement %", "teacher wrong: right", "of", "teacher right: right", "of")
                ),
            ),
            tuple(
                (
                    rows[n]["method"],
                    percent(rows[n]["teacher_agreement"]),
                    *(f"{count:,}" for count in (right_wrong, wrong, right_right, right)),
                )
                for n, (wrong, right_wrong, right, right_right) in counts.items()
            ),
        ),
    )
