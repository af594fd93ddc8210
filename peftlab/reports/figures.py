"""Drawing of a suite's figures. Markers and dashes differ as well as colors, so that they print in black and white."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from peftlab.reports.plots import Bars, Curves, Plot, Point, Scatter, Series

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Format = Literal["png", "svg", "pdf"]
UNDATED: dict[Format, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
MARKERS = "osD^vPX<>*hpd8H"
DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 2)), (0, (7, 2, 1, 2)))
COLORS = ("#000000", "#0b4f8a", "#a33b00", "#3f7f3f", "#7a4fa3", "#8a6d00", "#2f8f9d", "#b04a7a", "#6b6b6b", "#9a9a9a")
FILLS = ("full", "none", "left", "right", "top", "bottom")
"""Fill of a marker, by quantization."""
BAR_STYLES = (
    ("0.35", ""),
    ("0.8", "xxx"),
    ("white", "..."),
    ("0.6", "///"),
    ("white", "\\\\\\"),
    ("0.85", ""),
    ("white", ""),
)
"""Color and hatch of the parts of a stacked bar, from the left."""
STYLE: Any = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "legend.fontsize": 7, "lines.linewidth": 1.2, "lines.markersize": 5, "pdf.fonttype": 42, "svg.fonttype": "none",
    "svg.hashsalt": "peftlab", "figure.constrained_layout.use": True,
}  # fmt: skip


def draw(plot: Plot, file_format: Format) -> bytes:
    """The figure as a file; the same bytes for the same plot and version of matplotlib."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.5, 3.4))
        axes = figure.add_subplot()
        if isinstance(plot, Scatter):
            _draw_scatter(axes, plot)
        elif isinstance(plot, Curves):
            _draw_curves(axes, plot)
        else:
            _draw_bars(axes, plot)
        figure.savefig(content, format=file_format, metadata=UNDATED[file_format], dpi=150)
    return content.getvalue()


def write_figures(figures: Iterable[tuple[str, Plot]], folder: Path, formats: Sequence[Format]) -> list[Path]:
    """Write each named figure in each format. Returns the paths."""
    paths = []
    for name, plot in figures:
        folder.mkdir(parents=True, exist_ok=True)
        for file_format in formats:
            path = folder / f"{name}.{file_format}"
            path.write_bytes(draw(plot, file_format))
            paths.append(path)
    return paths


def _draw_scatter(axes: Axes, plot: Scatter) -> None:
    if plot.log_x:
        axes.set_xscale("log")
    for point in plot.points:
        low, high = point.interval
        error = [[point.y - low], [high - point.y]]
        axes.errorbar([point.x], [point.y], yerr=error, linestyle="none", capsize=2, **_marker(point.series))
    xs, ys = zip(*plot.front, strict=True)
    axes.step(xs, ys, where="post", color="0.6", zorder=0, label="Pareto front")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    _legend(axes, [*_marker_legend(plot.points), *axes.get_legend_handles_labels()[0]])


def _marker_legend(points: Sequence[Point]) -> list[Line2D]:
    """Each method's marker and color once and, if there are several precisions, the fill of each once."""
    from matplotlib.lines import Line2D

    methods = {point.method: {**_marker(point.series), "fillstyle": "full"} for point in points}
    precisions = {point.precision: {**_marker(point.series), "marker": "o", "color": "black"} for point in points}
    entries = methods | (precisions if len(precisions) > 1 else {})
    return [Line2D([], [], linestyle="none", label=label, **style) for label, style in entries.items()]


def _draw_curves(axes: Axes, plot: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    for curve in plot.curves:
        dashes = DASHES[curve.series.method % len(DASHES)]
        axes.plot(curve.x, curve.y, label=curve.label, linestyle=dashes, **_marker(curve.series))
    if plot.log_x:
        axes.set_xscale("log")
    if plot.integer_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    _legend(axes)


def _draw_bars(axes: Axes, plot: Bars) -> None:
    if len(plot.parts) == 1:
        (lengths,) = plot.parts.values()
        axes.barh(plot.labels, lengths, color="0.7", edgecolor="black")
    else:
        ends = [0.0] * len(plot.labels)
        for number, (part, lengths) in enumerate(plot.parts.items()):
            color, hatch = BAR_STYLES[number % len(BAR_STYLES)]
            axes.barh(
                plot.labels, lengths, left=ends, label=part, color=color, hatch=hatch, edgecolor="black", linewidth=0.5
            )
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel(plot.x_label)
    _legend(axes)


def _marker(series: Series) -> dict[str, Any]:
    """Marker and color by method, fill by quantization."""
    return {
        "marker": MARKERS[series.method % len(MARKERS)],
        "color": COLORS[series.method % len(COLORS)],
        "fillstyle": FILLS[series.quantization % len(FILLS)],
        "markerfacecoloralt": "white",
    }


def _legend(axes: Axes, handles: Sequence[Artist] = ()) -> None:
    entries = handles or axes.get_legend_handles_labels()[0]
    if entries:
        axes.legend(handles=entries, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1)
