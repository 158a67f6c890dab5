"""Panels drawn by matplotlib as SVG that goes into a page: colours of the page's theme, text as text, no style blocks.

Everything is drawn in marker colours, which stand for the page's variables: so one drawing suits light and dark.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

INK, MUTED, FAINT, MORE, LESS, GROUND = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
"""Marker colours: of text and lines, secondary ones, grid lines, what is more, what is less, and of the page itself."""

NUM_HUES = 8
MARKERS = "os^DvPX*"

_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    FAINT: "faint",
    MORE: "more",
    LESS: "less",
    GROUND: "ground",
    **{f"#0000{number + 16:02x}": f"hue-{number}" for number in range(NUM_HUES)},
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_FONT_POINTS = 9.5
_FONT = "DejaVu Sans"  # comes with matplotlib, so the layout is the same everywhere; few fonts are wider
_SPARE = 1.12
_FONT_PROPERTIES = ("font", "font-family", "font-style", "font-weight", "font-variant", "font-stretch")


def hue(number: int) -> str:
    """The marker colour of a series, by its number; they come again after eight."""
    return f"#0000{number % NUM_HUES + 16:02x}"


def short(name: str, points: float) -> str:
    """As much of a name as so many points have room for, its middle left out: what tells it from others is mostly at
    its end. To be used where things are `themed`.
    """
    shown, kept = name, len(name)
    while kept and points_across([shown]) > points:
        kept -= 1
        tail = (kept + 1) // 2
        shown = f"{name[: kept - tail].rstrip()}…{name[len(name) - tail :].lstrip()}" if kept else "…"
    return shown


def in_two_lines(name: str, points: float) -> str:
    """A name as `short`, broken once at a space where it is too long for one line."""
    if points_across([name]) <= points:
        return name
    breaks = [place for place, letter in enumerate(name) if letter == " "]
    middle = min(breaks, key=lambda place: abs(2 * place - len(name)), default=None)
    if middle is None:
        return short(name, points)
    return f"{short(name[:middle], points)}\n{short(name[middle + 1 :], points)}"


def points_across(texts: Iterable[str]) -> float:
    """How wide the longest text is, in points, with room to spare: a page has fonts of its own; see `short`."""
    return _SPARE * max((_width(line) for text in texts for line in text.split("\n")), default=0.0)


def _width(text: str) -> float:
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(_FONT))
    font.set_size(_FONT_POINTS, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64


def apart(wanted: Sequence[float], gap: float, highest: float) -> list[float]:
    """Places for labels, near those that are wanted, in the same order and at least so far apart.

    Args:
        wanted: Rising.
        gap: Between neighbours.
        highest: The last label's place at most; where there is no room, the first ones go below 0.
    """
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else place)
    for number in reversed(range(len(places))):
        highest = places[number] = min(places[number], highest)
        highest -= gap
    return places


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        title: What stands above it; may be empty.
        svg: An `svg` element, to be put into HTML as it stands.
        width: Of the drawing as it was laid out, in points.
    """

    title: str
    svg: str
    width: int


@contextlib.contextmanager
def themed() -> Iterator[None]:
    """Have matplotlib draw in the style of the page; also a decorator of functions that draw."""
    from matplotlib import rc_context

    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # the browser has fonts for all languages
        yield


class Drawing:
    """A pair of axes that becomes a panel; to be used where things are `themed`.

    Margins are fixed: axes of panels beside each other line up, and nothing has to be drawn twice to be measured.

    Args:
        width: In points, 1/72 inch; a narrow screen is about 330 of its own pixels wide.
        height: In points.
        left: Margin for what stands beside the axes, in points; `right`, `bottom` and `top` are the same.
        right: See `left`.
        bottom: See `left`.
        top: See `left`.
        grid: The axis that grid lines stand on: "x", "y", "both" or none ("").
    """

    def __init__(
        self,
        width: float,
        height: float,
        *,
        left: float = 34.0,
        right: float = 8.0,
        bottom: float = 32.0,
        top: float = 8.0,
        grid: str = "y",
    ) -> None:
        from matplotlib.figure import Figure

        self._width = round(width)
        self._num_tags = 0
        self._classes: dict[str, str] = {}
        self._tips: dict[str, str] = {}
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self.axes: Axes = self._figure.add_axes(
            (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
        )
        self.axes.spines[["top", "right"]].set_visible(False)
        if grid:
            self.axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]

    def tag(self, artist: Artist, *, series: int | None = None, tip: str | None = None, emphatic: bool = False) -> None:
        """Say what an artist stands for.

        Args:
            artist: Of this drawing.
            series: Number of the row that it shows: readers may hide it.
            tip: Shown when a mouse rests on it.
            emphatic: It is text that stands on top of marks, and has to be read all the same.
        """
        self._num_tags += 1
        name = f"tag{self._num_tags}"
        artist.set_gid(name)
        classes = [*([] if series is None else [f"series-{series}"]), *(["emphatic"] if emphatic else [])]
        if classes:
            self._classes[name] = " ".join(classes)
        if tip is not None:
            self._tips[name] = tip

    def beside(
        self, x: float, y: float, text: str, *, colour: str = INK, series: int | None = None, **properties: Any
    ) -> None:
        """Put a text beside the axes.

        Args:
            x: In points to the right of the axes' right end; from the left end to the left, if negative.
            y: In data.
            text: What it says.
            colour: A marker colour.
            series: See `tag`.
            properties: Of matplotlib's text.
        """
        written = self.axes.annotate(
            text, (1 if x > 0 else 0, y), (x, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", color=colour, annotation_clip=False, **properties,
        )  # fmt: skip
        self.tag(written, series=series)

    def panel(self, title: str, *, name: str, label: str) -> Panel:
        """The finished panel.

        Args:
            title: What stands above it.
            name: Unique in the page: ids begin with it.
            label: What it shows, for those who do not see it.
        """
        from matplotlib import rc_context

        stream = io.StringIO()
        with rc_context({"svg.hashsalt": name}):
            self._figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        # What is parsed was written in the line above, and names in it are escaped.
        root = ElementTree.fromstring(stream.getvalue())  # noqa: S314
        for below in list(root):
            if below.tag == f"{_SVG}metadata":
                root.remove(below)
        for element in list(root.iter()):
            self._settle(element, name)
        box = root.get("viewBox", "")
        root.attrib = {"viewBox": box, "role": "img", "aria-label": f"{title}: {label}" if title else label}
        return Panel(title, ElementTree.tostring(root, encoding="unicode"), self._width)

    def _settle(self, element: ElementTree.Element, name: str) -> None:
        """Make an element of a file one of a page: theme's colours, ids of its own, no inline style."""
        for style in element.findall(f"{_SVG}style"):
            element.remove(style)
        element.tag = element.tag.removeprefix(_SVG)
        if element.tag != "text":
            element.text = None
        element.tail = None
        for key, value in _declarations(element.attrib.pop("style", "")).items():
            element.set(key, value)
        target = element.attrib.pop(_HREF, None)
        if target is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for key, value in list(element.attrib.items()):
            if "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
            elif value in _VARIABLES:
                element.set(key, f"var(--{_VARIABLES[value]})")
        own = element.attrib.pop("id", None)
        if own in self._classes:
            element.set("class", self._classes[own])
        if own in self._tips:
            tip = ElementTree.Element("title")
            tip.text = self._tips[own]
            element.insert(0, tip)
        if own is not None and element.tag in ("path", "clipPath"):  # only these are referred to
            element.set("id", f"{name}-{own}")


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollar signs is a name
    "font.family": _FONT,
    "font.size": _FONT_POINTS,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.0,
    "path.simplify": True,
}


def _declarations(style: str) -> dict[str, str]:
    """CSS declarations as attributes, which a strict content policy lets pass; the font is the page's."""
    found: dict[str, str] = {}
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (size := re.match(r"([\d.]+px)", value)):
            found["font-size"] = size[1]
        elif key and key not in _FONT_PROPERTIES:
            found[key] = value
    return found
