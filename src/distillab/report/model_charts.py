"""The charts of what models do with images: one small panel a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillab.report.analysis import Analysis
from distillab.report.document import Chart, Series
from distillab.report.drawing import FAINT, INK, LESS, MORE, MUTED, Drawing, Panel, hue, short, themed
from distillab.report.look import Calibration, Look
from distillab.report.table import ABSENT, Column, Table, number, percent

_SQUARE = 190  # points
_MOST_CLASSES_DRAWN = 20
_MOST_CHANGES = 20
_ROW_POINTS = 21
_LAYER_POINTS = 50


@themed()
def reliability_chart(analysis: Analysis, series: Sequence[Series]) -> Chart:
    """How often each model is right at each confidence, before and after its temperature."""
    panels = [_reliability(look, series[n]) for n, look in _numbered(analysis, series)]
    heads = ("ECE %", "ECE % at temperature", "temperature")
    mended = (
        f"A temperature was fitted on {analysis.num_held_out:,} images that neither trained nor test (line)."
        if analysis.num_held_out
        else "No images were held out, so no temperature could be fitted; it is never fitted on test images."
    )
    return Chart(
        "reliability",
        "Calibration",
        "Bars are the share of right answers among those of a confidence, stronger where there are more; on the "
        f"diagonal a model is as sure as it is right. {mended}",
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
    drawing = Drawing(_SQUARE, _SQUARE, grid="")
    axes = drawing.axes
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
    fullest = max(part.count for part in look.calibration.bins)
    for part in look.calibration.bins:
        if part.accuracy is not None:
            (bar,) = axes.bar(
                part.low, part.accuracy, part.high - part.low, align="edge", color=one.colour,
                alpha=0.25 + 0.55 * (part.count / fullest) ** 0.5, linewidth=0,
            )  # fmt: skip
            drawing.tag(
                bar,
                tip=f"{part.count:,} images: sure of {percent(part.confidence)} %, right {percent(part.accuracy)} %",
            )
    if look.mended is not None:
        told = _told(look.mended)
        axes.plot(*zip(*told, strict=True), marker=".", markersize=4, color=INK, linewidth=1.0)
    _unit_square(drawing)
    after = f", {percent(look.mended.ece)} after" if look.mended else ""
    return drawing.panel(
        look.variant.name,
        name=f"reliability-{one.number}",
        label=f"reliability diagram; ECE {percent(look.calibration.ece)} %{after}",
    )


def _told(calibration: Calibration) -> list[tuple[float, float]]:
    return [(b.confidence, b.accuracy) for b in calibration.bins if b.confidence is not None and b.accuracy is not None]


def _unit_square(drawing: Drawing) -> None:
    axes = drawing.axes
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence")
    axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100"])


@themed()
def confusion_chart(analysis: Analysis, baseline: Look, series: Sequence[Series]) -> Chart | None:
    """Which confusions each model makes more and less often than the student alone; None where all are the same."""
    others = [(n, look) for n, look in _numbered(analysis, series) if look is not baseline]
    own = _confusions(analysis, baseline)
    changes = {n: _confusions(analysis, look) - own for n, look in others}
    if not any(change.any() for change in changes.values()):
        return None
    drawn = len(analysis.classes) <= _MOST_CLASSES_DRAWN
    panels = [_confusion(changes[n], series[n], analysis.classes) for n, _ in others] if drawn else []
    listed = sorted(
        ((-abs(int(change[r, c])), n, r, c) for n, change in changes.items() for r, c in np.argwhere(change)),
    )[:_MOST_CHANGES]
    return Chart(
        "confusion",
        f"What is confused otherwise than by {baseline.variant.name}",
        "Rows are the right classes, columns the chosen ones. A filled square is a confusion that is made more often, "
        "a hollow one less often, the larger the more images; the diagonal of right answers is left out."
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
                    f"{own[r, c]:,}",
                    f"{own[r, c] + changes[n][r, c]:,}",
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


def _confusion(change: NDArray[np.int64], one: Series, classes: Sequence[str]) -> Panel:
    from matplotlib.patches import Rectangle

    drawing = Drawing(_SQUARE, _SQUARE, grid="")
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
    ticks = range(0, size, 1 + size // 11)
    labels = [classes[tick] if all(len(name) < 3 for name in classes) else str(tick + 1) for tick in ticks]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
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
    drawing = Drawing(max(240, 120 + _LAYER_POINTS * deepest), 40 + _ROW_POINTS * len(compared), grid="")
    axes = drawing.axes
    for y, (n, look) in enumerate(compared):
        for x, (own, other, value) in enumerate(look.similarity):
            cell = Rectangle(
                (x - 0.48, y - 0.44), 0.96, 0.88, facecolor=hue(0), alpha=0.02 + 0.53 * value**2, linewidth=0
            )
            axes.add_patch(cell)
            drawing.tag(cell, tip=f"{series[n].name}: {own} and the teacher's {other}: {value:.3f}")
            axes.text(x, y, f"{value:.2f}", ha="center", va="center")
    names = {tuple(own for own, _, _ in look.similarity) for _, look in compared}
    heads = [short(name)[-10:] for name in names.pop()] if len(names) == 1 else [str(i + 1) for i in range(deepest)]
    axes.set(xlim=(-0.5, deepest - 0.5), ylim=(len(compared) - 0.5, -0.5))
    axes.set_xticks(range(deepest), heads)
    axes.set_yticks(range(len(compared)), [short(series[n].name) for n, _ in compared], color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    panel = drawing.panel("", name="similarity", label="a cell for each model and layer; the numbers are below")
    return Chart(
        "similarity",
        "How alike layers are to the teacher's",
        f"Linear CKA on {len(analysis.shown):,} test images, 1 where one is the other turned and scaled. "
        "Each layer is held against the teacher's at the same share of the way from the image to the logits; maps are "
        "averaged to 4 by 4 places first.",
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
        panels.append(_plane(look, series[n], labels, right))
        shares.append((look.variant.name, percent(look.plane_share), f"{int((~right).sum()):,}"))
    coloured = "Colours are classes" if len(analysis.classes) <= 8 else "Colours are classes, each eighth the same"
    return Chart(
        "embedding",
        "The last features in two dimensions",
        f"{len(labels):,} test images by the first two principal components of the features before the classifier. "
        f"{coloured}; a cross is an image that the model gets wrong. Axes of different models do not compare.",
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


def _plane(look: Look, one: Series, labels: NDArray[np.int64], right: NDArray[np.bool_]) -> Panel:
    drawing = Drawing(_SQUARE, _SQUARE, grid="")
    axes = drawing.axes
    for label in np.unique(labels):
        points = look.plane[(labels == label) & right]
        marker = "o" if label < 8 else "D"
        axes.plot(
            points[:, 0], points[:, 1], marker, color=hue(int(label)), markersize=2.6, markeredgewidth=0, alpha=0.75
        )
    wrong = look.plane[~right]
    axes.plot(wrong[:, 0], wrong[:, 1], "x", color=INK, markersize=4.5, markeredgewidth=1.2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=FAINT)
    return drawing.panel(
        one.name, name=f"embedding-{one.number}", label=f"{len(labels)} images as points, {len(wrong)} of them crosses"
    )
