"""The charts of what models do with images: one small panel a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillab.report.analysis import Analysis
from distillab.report.document import Chart, Series
from distillab.report.drawing import (
    FAINT,
    INK,
    LESS,
    MORE,
    MUTED,
    NUM_HUES,
    Drawing,
    Panel,
    hue,
    points_across,
    short,
    themed,
)
from distillab.report.look import Calibration, Look
from distillab.tables import ABSENT, Column, Table, number, percent

_SQUARE = 190  # points
_SQUARE_MARGINS = {"left": 24.0, "right": 8.0, "bottom": 32.0, "top": 8.0}
_MOST_CLASSES_DRAWN = 20
_MOST_CHANGES = 20
_ROW_POINTS = 22
_LAYER_POINTS = 46
_MOST_CLASSES_NAMED = 12


@themed()
def reliability_chart(analysis: Analysis, series: Sequence[Series]) -> Chart:
    """How often each model is right at each confidence, before and after its temperature."""
    panels = [_reliability(look, series[n]) for n, look in _numbered(analysis, series)]
    heads = ("ECE %", "ECE % at temperature", "temperature")
    mended = (
        f"Rings, and the ECE after the arrow, are at a temperature fitted on {analysis.num_held_out:,} images that "
        "neither trained nor test."
        if analysis.num_held_out
        else "No images were held out, so no temperature could be fitted; it is never fitted on test images."
    )
    return Chart(
        "reliability",
        "Calibration",
        "How often a model is right when it is so sure; the larger a dot, the more images. On the diagonal it is as "
        f"sure as it is right, below it too sure; the mean distance is the expected calibration error (ECE). {mended}",
        tuple(panels),
        Table(
            (Column("method"), *(Column(head, numeric=True) for head in heads)),
            tuple(
                (
                    look.variant.name,
                    percent(look.calibration.ece),
                    percent(look.mended.ece if look.mended else None),
                    number(look.temperature, 2),
                )
                for look in analysis.looks
            ),
        ),
    )


def _numbered(analysis: Analysis, series: Sequence[Series]) -> list[tuple[int, Look]]:
    numbers = {one.name: one.number for one in series}
    return [(numbers[look.variant.name], look) for look in analysis.looks]


def _reliability(look: Look, one: Series) -> Panel:
    drawing = Drawing(_SQUARE, _SQUARE, grid="", **_SQUARE_MARGINS | {"left": 34.0})
    axes = drawing.axes
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.8, linestyle=":")
    _points(drawing, look.calibration, color=one.colour, markeredgewidth=0, alpha=0.75)
    after = f"ECE {percent(look.calibration.ece)} %"
    if look.mended is not None:
        _points(drawing, look.mended, color=INK, markerfacecolor="none", markeredgewidth=1.0)
        after += f" → {percent(look.mended.ece)} %"
    told = axes.annotate(after, (1, 0), (-3, 6), xycoords="axes fraction", textcoords="offset points", ha="right")
    drawing.tag(told, emphatic=True)
    axes.set(xlim=(0, 104), ylim=(0, 104), xticks=(0, 50, 100), yticks=(0, 50, 100))
    axes.set(xlabel="confidence, %", ylabel="right, %")
    axes.yaxis.set_label_coords(-0.17, 0.5)
    return drawing.panel(look.variant.name, name=f"reliability-{one.number}", label=f"reliability diagram; {after}")


def _points(drawing: Drawing, calibration: Calibration, **style: Any) -> None:
    """One for each part of the confidences, its area the share of the images."""
    images = sum(part.count for part in calibration.bins)
    for part in calibration.bins:
        if part.confidence is not None and part.accuracy is not None:
            size = 3 + 13 * (part.count / images) ** 0.5
            (point,) = drawing.axes.plot(
                [100 * part.confidence], [100 * part.accuracy], "o", markersize=size, clip_on=False, **style
            )
            drawing.tag(
                point,
                tip=f"{part.count:,} images: sure of {percent(part.confidence)} %, right {percent(part.accuracy)} %",
            )


@themed()
def confusion_chart(analysis: Analysis, baselines: Mapping[str, Look | None], series: Sequence[Series]) -> Chart | None:
    """Which confusions each model makes more and less often than the student alone; None where all are the same.

    Args:
        analysis: What was found of the models.
        baselines: Name of a row -> the student alone that it is held against, which may be itself.
        series: How each is drawn.
    """
    found = [(n, look, baselines.get(look.variant.name)) for n, look in _numbered(analysis, series)]
    others = [(n, look) for n, look, baseline in found if baseline is not None and look is not baseline]
    own = {n: _confusions(analysis, baseline) for n, _, baseline in found if baseline is not None}
    changes = {n: _confusions(analysis, look) - own[n] for n, look in others}
    if not any(change.any() for change in changes.values()):
        return None
    drawn = len(analysis.classes) <= _MOST_CLASSES_DRAWN
    panels = [_confusion(changes[n], series[n], analysis.classes) for n, _ in others] if drawn else []
    listed = sorted(
        ((-abs(int(change[r, c])), n, r, c) for n, change in changes.items() for r, c in np.argwhere(change)),
    )[:_MOST_CHANGES]
    return Chart(
        "confusion",
        "Confusions, compared with the student alone",
        "Rows are the right classes, columns the chosen ones. A filled square is a confusion that is made more often "
        "than by the student alone, a hollow one less often; the larger, the more images, in each panel by itself."
        f"{_key(analysis.classes)}"
        if drawn
        else f"Of {len(analysis.classes)} classes the largest changes are listed.",
        tuple(panels),
        Table(
            (
                Column("method"),
                Column("right class"),
                Column("chosen class"),
                *(Column(h, numeric=True) for h in ("alone", "here", "change")),
            ),
            tuple(
                (
                    series[n].name,
                    analysis.classes[r],
                    analysis.classes[c],
                    f"{own[n][r, c]:,}",
                    f"{own[n][r, c] + changes[n][r, c]:,}",
                    f"{changes[n][r, c]:+,}",
                )
                for _, n, r, c in listed
            ),
        ),
    )


def _confusions(analysis: Analysis, look: Look) -> NDArray[np.int64]:
    """[C, C] images by right and chosen class; the diagonal is empty."""
    size = len(analysis.classes)
    counts = np.bincount(analysis.labels * size + look.choices, minlength=size * size).reshape(size, size)
    np.fill_diagonal(counts, 0)
    return counts


def _are_short(classes: Sequence[str]) -> bool:
    return all(len(name) < 3 for name in classes)


def _key(classes: Sequence[str]) -> str:
    """What the numbers on the axes stand for, where names are too long to stand there."""
    if _are_short(classes):
        return ""
    return " Classes are " + ", ".join(f"{number} {name}" for number, name in enumerate(classes, start=1)) + "."


def _confusion(change: NDArray[np.int64], one: Series, classes: Sequence[str]) -> Panel:
    from matplotlib.patches import Rectangle

    drawing = Drawing(_SQUARE, _SQUARE + 2, grid="", **_SQUARE_MARGINS | {"left": 34.0})
    axes = drawing.axes
    size = len(classes)
    largest = max(1, int(np.abs(change).max()))
    for row, column in np.argwhere(change):
        count = int(change[row, column])
        side = 0.3 + 0.6 * (abs(count) / largest) ** 0.5
        square = Rectangle((column - side / 2, row - side / 2), side, side, linewidth=1.0)
        square.set(facecolor=MORE if count > 0 else "none", edgecolor=MORE if count > 0 else LESS)
        axes.add_patch(square)
        drawing.tag(square, tip=f"{classes[row]} taken for {classes[column]}: {count:+d}")
    axes.plot([-0.5, size - 0.5], [-0.5, size - 0.5], color=FAINT, linewidth=0.8)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal", xlabel="chosen", ylabel="right")
    axes.yaxis.set_label_coords(-0.17, 0.5)
    ticks = range(0, size, 1 + size // 11)
    labels = [classes[tick] if _are_short(classes) else str(tick + 1) for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.tick_params(length=0)
    axes.spines[:].set(visible=True, color=FAINT)
    more, less = int(change.clip(min=0).sum()), int(-change.clip(max=0).sum())
    return drawing.panel(one.name, name=f"confusion-{one.number}", label=f"{more} confusions more, {less} less")


@themed()
def similarity_chart(analysis: Analysis, series: Sequence[Series]) -> Chart | None:
    """How alike each model's layers are to the teacher's; None where no two models could be held together."""
    compared = [(n, look) for n, look in _numbered(analysis, series) if look.similarity]
    if not compared:
        return None
    from matplotlib.patches import Rectangle

    deepest = max(len(look.similarity) for _, look in compared)
    names = [short(series[n].name, 140) for n, _ in compared]
    left = points_across(names) + 8
    drawing = Drawing(
        max(340, left + _LAYER_POINTS * deepest + 4), 26 + _ROW_POINTS * len(compared), left=left, right=4, bottom=20,
        top=4, grid="",
    )  # fmt: skip
    axes = drawing.axes
    for y, (n, look) in enumerate(compared):
        for x, (own, other, value) in enumerate(look.similarity):
            cell = Rectangle(
                (x - 0.48, y - 0.44), 0.96, 0.88, facecolor=hue(0), alpha=0.02 + 0.53 * value**2, linewidth=0
            )
            axes.add_patch(cell)
            drawing.tag(cell, series=n, tip=f"{series[n].name}: {own} and the teacher's {other}: {value:.3f}")
            drawing.tag(axes.text(x, y, f"{value:.2f}", ha="center", va="center"), series=n)
    for y, (n, _) in enumerate(compared):
        drawing.beside(-6, y, names[y], ha="right", series=n)
    layers = {tuple(own for own, _, _ in look.similarity) for _, look in compared}
    heads = [name[-8:] for name in layers.pop()] if len(layers) == 1 else [str(i + 1) for i in range(deepest)]
    axes.set(xlim=(-0.5, deepest - 0.5), ylim=(len(compared) - 0.5, -0.5))
    axes.set_xticks(range(deepest), heads)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    panel = drawing.panel("", name="similarity", label="a cell for each model and layer; the numbers are below")
    return Chart(
        "similarity",
        "How alike layers are to the teacher's",
        f"Linear CKA of layers' outputs on {len(analysis.shown):,} test images: 1 where one is the other rotated and "
        "scaled. Each layer is held against the teacher's at the same relative depth; feature maps are averaged to "
        "4 by 4 places first.",
        (panel,),
        Table(
            (Column("method"), Column("layer"), Column("teacher's layer"), Column("CKA", numeric=True)),
            tuple(
                (series[n].name, own, other, number(value, 3))
                for n, look in compared
                for own, other, value in look.similarity
            ),
        ),
    )


@themed()
def embedding_chart(analysis: Analysis, series: Sequence[Series]) -> Chart:
    """The last features of each model in the plane in which they vary most."""
    labels = analysis.labels[analysis.shown]
    panels = []
    shares = []
    for n, look in _numbered(analysis, series):
        right = look.choices[analysis.shown] == labels
        panels.append(_plane(look, series[n], labels, right, analysis.classes))
        shares.append((look.variant.name, percent(look.plane_share), f"{int((~right).sum()):,}"))
    several = len(analysis.classes)
    coloured = "Colours are classes here" + ("" if several <= NUM_HUES else f", the same again after {NUM_HUES}")
    named = "; their names stand in their midst" if several <= _MOST_CLASSES_NAMED else ""
    return Chart(
        "embedding",
        "The last features in two dimensions",
        f"{len(labels):,} test images by the first two principal components of the features before the classifier. "
        f"{coloured}{named}; a cross is an image that the model gets wrong. Axes of different models cannot be "
        "compared.",
        tuple(panels),
        Table(
            (
                Column("method"),
                Column("share of variance shown %", numeric=True),
                Column("wrong among them", numeric=True),
            ),
            tuple(shares) or ((ABSENT, ABSENT, ABSENT),),
        ),
    )


def _plane(
    look: Look, one: Series, labels: NDArray[np.int64], right: NDArray[np.bool_], classes: Sequence[str]
) -> Panel:
    drawing = Drawing(_SQUARE, _SQUARE, left=4, right=4, bottom=4, top=4, grid="")
    axes = drawing.axes
    for label in np.unique(labels):
        points = look.plane[(labels == label) & right]
        axes.plot(points[:, 0], points[:, 1], "o", color=hue(int(label)), markersize=3.2, markeredgewidth=0, alpha=0.7)
    wrong = look.plane[~right]
    axes.plot(wrong[:, 0], wrong[:, 1], "x", color=INK, markersize=4.5, markeredgewidth=1.2)
    if len(classes) <= _MOST_CLASSES_NAMED:
        for label in np.unique(labels):
            x, y = np.median(look.plane[labels == label], axis=0)
            text = axes.text(x, y, short(classes[label], 60), color=hue(int(label)), ha="center", va="center")
            drawing.tag(text, emphatic=True)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=FAINT)
    return drawing.panel(
        one.name, name=f"embedding-{one.number}", label=f"{len(labels)} images as points, {len(wrong)} of them crosses"
    )
