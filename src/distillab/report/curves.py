"""The learning curves of a report, and their numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from statistics import fmean

from distillab.report.charts import END_LABEL_POINTS, HALF, LABEL_POINTS, MOST_END_LABELS
from distillab.report.collect import Variant
from distillab.report.document import Chart, Series
from distillab.report.drawing import Drawing, Panel, apart, points_across, short, themed
from distillab.results.run_record import Epoch
from distillab.tables import ABSENT, Column, Table, number

_MOST_EPOCHS_LISTED = 12
_FEWEST_EPOCHS_CROPPED = 8

_CURVES: tuple[tuple[str, str, Callable[[Epoch], float | None], float], ...] = (
    ("train-top1", "Training top-1, %", lambda epoch: epoch.train_top1, 100.0),
    ("validation-top1", "Validation top-1, %", lambda epoch: epoch.validation_top1, 100.0),
    ("loss", "Training loss, each method's own", lambda epoch: epoch.loss, 1.0),
    ("validation-loss", "Validation loss, nats", lambda epoch: epoch.validation_loss, 1.0),
)


@themed()
def learning_curves(variants: Sequence[Variant], series: Sequence[Series]) -> Chart | None:
    """Accuracy and loss by epoch, the mean over seeds; None where no run has told of its epochs."""
    panels = []
    lines: list[tuple[str, str, list[float | None]]] = []
    for name, title, value, scale in _CURVES:
        means = [_mean_curve([[value(epoch) for epoch in run.epochs] for run in v.runs]) for v in variants]
        curves = [[None if y is None else scale * y for y in curve] for curve in means]
        told = [(look, curve) for look, curve in zip(series, curves, strict=True) if any(y is not None for y in curve)]
        if told:
            panels.append(_curves(name, title, told))
            lines += [(look.name, title, curve) for look, curve in told]
    return _chart_of_curves(panels, lines) if panels else None


def _curves(name: str, title: str, curves: Sequence[tuple[Series, Sequence[float | None]]]) -> Panel:
    """Lines by epoch, each with its name at its end where there is room for all."""
    from matplotlib.ticker import MaxNLocator

    labelled = len(curves) <= MOST_END_LABELS
    labels = [short(look.name, END_LABEL_POINTS) for look, _ in curves]
    drawing = Drawing(HALF, 210, right=points_across(labels) + 14 if labelled else 8)
    axes = drawing.axes
    ends = []
    for look, curve in curves:
        points = [(x, y) for x, y in enumerate(curve, start=1) if y is not None]
        marker = look.marker if len(points) < 8 else "none"
        (line,) = axes.plot(
            *zip(*points, strict=True), color=look.colour, ls=look.dashes, marker=marker, markersize=3.5
        )
        drawing.tag(line, series=look.number, tip=look.name)
        ends.append(points[-1])
    longest = max(len(curve) for _, curve in curves)
    late = [y for _, curve in curves for y in curve[longest // 6 :] if y is not None]
    if longest >= _FEWEST_EPOCHS_CROPPED and late:  # what matters is at the end, and the first epochs would hide it
        margin = 0.06 * (max(late) - min(late)) or 1.0
        axes.set_ylim(min(late) - margin, max(late) + margin)
    if labelled:
        _end_labels(drawing, ends, labels, [look for look, _ in curves])
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    return drawing.panel(title, name=name, label="a line for each row, by epoch; the numbers are below")


def _end_labels(
    drawing: Drawing, ends: Sequence[tuple[float, float]], labels: Sequence[str], looks: Sequence[Series]
) -> None:
    """Names to the right of the axes, each tied to the end of its line."""
    axes = drawing.axes
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    to_points, right = axes.transData, axes.bbox.x1
    order = sorted(range(len(ends)), key=lambda n: (ends[n][1], -n))
    heights = [float(to_points.transform(ends[n])[1]) for n in order]
    for n, place in zip(order, apart(heights, LABEL_POINTS, axes.bbox.y1), strict=True):
        (x, y), look = ends[n], looks[n]
        beside, level = to_points.inverted().transform((right + 10, place))
        (tie,) = axes.plot([x, beside], [y, level], color=look.colour, linewidth=0.7, alpha=0.6, clip_on=False)
        drawing.tag(tie, series=look.number)
        drawing.beside(12, level, labels[n], colour=look.colour, series=look.number)


def _chart_of_curves(panels: Sequence[Panel], lines: Sequence[tuple[str, str, list[float | None]]]) -> Chart:
    longest = max(len(curve) for _, _, curve in lines)
    step = -(-longest // _MOST_EPOCHS_LISTED)
    listed = [epoch for epoch in range(longest) if (longest - 1 - epoch) % step == 0]

    def at(curve: Sequence[float | None], epoch: int) -> str:
        return number(curve[epoch], 2) if epoch < len(curve) else ABSENT

    return Chart(
        "curves",
        "Learning curves",
        "Means over seeds, where there are several. Stages of one student follow each other; a hint stage has no "
        "accuracy, and losses of different methods cannot be compared."
        + (" The first epochs may lie outside the axes." if longest >= _FEWEST_EPOCHS_CROPPED else ""),
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
