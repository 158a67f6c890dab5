"""Charts of accuracy and cost: each a drawing, a description, and its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from distillab.report.collect import Variant
from distillab.report.document import Chart, Series
from distillab.report.drawing import (
    GROUND,
    INK,
    MARKERS,
    MUTED,
    NUM_HUES,
    Drawing,
    Panel,
    apart,
    hue,
    in_two_lines,
    points_across,
    short,
    themed,
)
from distillab.tables import Column, Table, interval, number, percent, points

HALF, THIRD = 340, 250
"""Widths of panels of which two or three stand beside each other, in points."""

_GLYPHS = dict(zip(MARKERS, "●■▲◆▼✚✖★", strict=True))
_DASHES = ("-", "--", ":", "-.")
_ROW_POINTS = 22
_TWO_LINES_POINTS = 28
LABEL_POINTS = 11.5
END_LABEL_POINTS = 96
MOST_END_LABELS = 14

Row = Mapping[str, Any]


def series_of(variants: Sequence[Variant]) -> tuple[Series, ...]:
    """How each variant is drawn: models trained alone without colour, distilled ones in hues and shapes; a method has
    one hue in all tables, and whoever is there several times a shape and dashes of its own each time.
    """
    found = []
    methods = list(dict.fromkeys(v.method or v.name for v in variants if v.place == "distilled"))
    tables = list(dict.fromkeys(v.table for v in variants if v.place in ("alone", "distilled")))
    guides = [v.name for v in variants if v.place not in ("alone", "distilled")]
    for position, variant in enumerate(variants):
        if variant.place == "distilled":
            number, table = methods.index(variant.method or variant.name), tables.index(variant.table)
            shape = number + number // NUM_HUES + table  # hues that come again: other shapes
            look, dashes = (hue(number), f"hue-{number % NUM_HUES}"), number // NUM_HUES + table
        elif variant.place == "alone":
            look, shape = (INK, "ink"), tables.index(variant.table)
            dashes = shape
        else:
            look, number = (MUTED, "muted"), guides.index(variant.name)
            shape, dashes = MARKERS.index("D") + number, 1 + number
        marker = MARKERS[shape % len(MARKERS)]
        found.append(Series(position, variant.name, *look, marker, _GLYPHS[marker], _DASHES[dashes % len(_DASHES)]))
    return tuple(found)


@themed()
def accuracy_chart(rows: Sequence[Row], series: Sequence[Series]) -> Chart:
    """Test accuracy of each row with its interval, and how it differs from the student alone where seeds say that."""
    several = any(row["num_seeds"] > 1 for row in rows)
    panels = [intervals(
        "accuracy", "Test top-1, %", rows, series, lambda row: (row["top1_mean"], row["top1_interval"]),
        reference=_alone(rows), lighter=lambda row: several and row["interval_over"] == "images",
    )]  # fmt: skip
    versus = [(row["versus_alone"] or {}) for row in rows]
    told = "Marks are means over seeds" if several else "Each mark is a single run"
    told += ", bars 95 % intervals" + ("; the dotted line is the student alone. " if _alone(rows) else ". ")
    if any(one.get("interval") for one in versus):
        panels.append(intervals(
            "versus-alone", "Difference to the student alone, points", rows, series,
            lambda row: ((row["versus_alone"] or {}).get("difference"), (row["versus_alone"] or {}).get("interval")),
            reference=0.0, signed=True,
            hollow=lambda row: (row["versus_alone"] or {}).get("verdict") == "no difference shown",
        ))  # fmt: skip
        told += "Differences are paired by seed; a hollow mark is one that is not shown to differ from zero. "
    if several and any(row["num_seeds"] == 1 for row in rows):
        told += "A row with one seed has a dotted bar: the interval of one run on its test images."
    elif not several:
        told += "Intervals say what other test images could change; the spread over seeds is not in them."
    numbers = Table(
        (
            Column("method"),
            *(Column(head, numeric=True) for head in ("top-1 %", "95 % interval", "versus alone", "its interval")),
        ),
        tuple(
            (
                row["method"],
                points(row["top1_mean"]),
                interval(row["top1_interval"]),
                points(difference.get("difference"), signed=True),
                interval(difference.get("interval"), signed=True),
            )
            for row, difference in zip(rows, versus, strict=True)
        ),
    )
    return Chart("accuracy", "Accuracy on the test images", told.strip(), tuple(panels), numbers)


def _alone(rows: Sequence[Row]) -> float | None:
    """Of the student alone, where there is one table only: it is no baseline for the rows of another."""
    if len({row["table"] for row in rows if row["role"] in ("alone", "distilled")}) > 1:
        return None
    return next((row["top1_mean"] for row in rows if row["role"] == "alone"), None)


def _never(_: Row) -> bool:
    return False


def intervals(
    name: str,
    title: str,
    rows: Sequence[Row],
    series: Sequence[Series],
    values: Callable[[Row], tuple[float | None, Sequence[float] | None]],
    *,
    width: int = HALF,
    reference: float | None = None,
    signed: bool = False,
    hollow: Callable[[Row], bool] = _never,
    lighter: Callable[[Row], bool] = _never,
) -> Panel:
    """Rows below each other, each a point with its interval, in percent, and its number at the end."""
    names = [in_two_lines(row["method"], 0.42 * width) for row in rows]
    height = _TWO_LINES_POINTS if any("\n" in name for name in names) else _ROW_POINTS
    drawing = Drawing(
        width, 24 + height * len(rows), left=points_across(names) + 18, right=42, bottom=20, top=4, grid="x"
    )
    axes = drawing.axes
    if reference is not None:
        axes.axvline(100 * reference, color=MUTED, linewidth=1.0, linestyle=":")
    for position, (row, label, look) in enumerate(zip(rows, names, series, strict=True)):
        middle, interval = values(row)
        drawing.beside(-12, position, label, ha="right", series=look.number)
        if middle is None:
            continue
        tip = f"{row['method']}: {_signed(middle) if signed else percent(middle)}"
        if interval is not None:
            tip += f" ({' to '.join(_bounds(interval))})"
            (bar,) = axes.plot(
                [100 * end for end in interval], [position] * 2, color=look.colour, linewidth=1.8,
                linestyle=(0, (1, 1)) if lighter(row) else "-", solid_capstyle="round",
            )  # fmt: skip
            drawing.tag(bar, series=look.number, tip=tip)
        (point,) = axes.plot(
            [100 * middle], [position], look.marker, color=look.colour, markeredgewidth=1.4,
            markerfacecolor=GROUND if hollow(row) else look.colour,
        )  # fmt: skip
        drawing.tag(point, series=look.number, tip=tip)
        shown = _signed(middle) if signed else percent(middle)
        drawing.beside(40, position, shown, ha="right", series=look.number)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=max(2, min(5, int(axes.bbox.width) // 36)))
    return drawing.panel(title, name=name, label="a point with its interval for each row; the numbers are below")


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "\N{MINUS SIGN}")


def _bounds(interval: Sequence[float] | None) -> tuple[str, str]:
    low, high = interval or (None, None)
    return percent(low), percent(high)


_COSTS = (
    ("parameters", "parameters, millions", 1e-6),
    ("macs", "MACs an image, millions", 1e-6),
    ("latency_seconds", "time an image, ms", 1e3),
)


@themed()
def cost_chart(rows: Sequence[Row], series: Sequence[Series], *, front: bool) -> Chart:
    """Accuracy against what a model costs, with the rows that no other row beats in both.

    Args:
        rows: All rows.
        series: How each is drawn.
        front: Draw the line through those; rows that were tested on other images cannot beat each other.
    """
    panels = []
    for key, title, scale in _COSTS:
        known = [(scale * row[key], 100 * row["top1_mean"], n) for n, row in enumerate(rows) if row[key]]
        if known:
            panels.append(_against_cost(f"cost-{key.partition('_')[0]}", title, known, series, front=front))
    heads = ("top-1 %", "parameters M", "MACs M", "ms an image")
    return Chart(
        "cost",
        "Accuracy and cost",
        "Test top-1 against what a model costs: its size, and its work and time for an image. "
        + ("The dotted line goes through the rows that no cheaper row equals (the Pareto front). " if front else "")
        + "MACs are multiply-accumulates; time is that of one image at a time on the machine that trained.",
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


def _against_cost(
    name: str, cost: str, points: Sequence[tuple[float, float, int]], series: Sequence[Series], *, front: bool
) -> Panel:
    """Points (cost, top-1 in percent, number of the row), each with its name beside it where there is room for all."""
    drawing = Drawing(THIRD, 222, left=26, bottom=34, grid="both")
    axes = drawing.axes
    if front:
        best = list(accumulate((y for _, y, _ in sorted(points, key=lambda p: (p[0], -p[1]))), max))
        axes.step(sorted(x for x, _, _ in points), best, where="post", color=MUTED, linewidth=1.0, linestyle=":")
    for x, y, position in points:
        look = series[position]
        (point,) = axes.plot([x], [y], look.marker, color=look.colour)
        drawing.tag(point, series=look.number, tip=f"{look.name}: {y:.1f} % at {x:.3g}")
    axes.margins(y=0.1)
    axes.set(xlim=(0, 1.08 * max(x for x, _, _ in points)), ylim=axes.get_ylim(), xlabel=cost)
    axes.locator_params(nbins=5)
    if len(points) <= MOST_END_LABELS:
        _labels_beside(drawing, points, series)
    return drawing.panel("Test top-1, %", name=name, label=f"against {cost}; the numbers are below")


def _labels_beside(drawing: Drawing, points: Sequence[tuple[float, float, int]], series: Sequence[Series]) -> None:
    """Names beside points: points in one half of the axes have theirs in one column, towards the middle."""
    axes = drawing.axes
    to_points = axes.transData
    middle = (axes.bbox.x0 + axes.bbox.x1) / 2
    places = []
    for x, y, position in points:
        across, up = to_points.transform((x, y))
        places.append((float(across), float(up), series[position]))
    for to_left in (False, True):
        column = sorted(
            (one for one in places if (one[0] > middle) == to_left), key=lambda one: (one[1], -one[2].number)
        )
        if not column:
            continue
        edge = min(x for x, _, _ in column) - 16 if to_left else max(x for x, _, _ in column) + 16
        levels = apart([y for _, y, _ in column], LABEL_POINTS, axes.bbox.y1 - 4)
        for (x, y, look), level in zip(column, levels, strict=True):
            ends = to_points.inverted().transform([(x, y), (edge + (2 if to_left else -2), level)])
            (tie,) = axes.plot(*ends.T, color=look.colour, linewidth=0.7, alpha=0.6)
            drawing.tag(tie, series=look.number)
            text = axes.annotate(
                short(look.name, END_LABEL_POINTS), (edge, level), xycoords="figure points",
                color=look.colour, va="center", ha="right" if to_left else "left", annotation_clip=False,
            )  # fmt: skip
            drawing.tag(text, series=look.number, emphatic=True)
