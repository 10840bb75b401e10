"""A landscape as a picture: time over two axes, with the winner outlined.

matplotlib is an extra, and imported only here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import JitdError
from .landscape import Cell, Landscape, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches. Cells have one size in all panels, which stand one above the other.
_CELL_WIDTH, _CELL_HEIGHT = 0.92, 0.52
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.95, 1.5, 0.85, 0.05
_ABOVE_PANEL, _BELOW_PANEL = 0.36, 0.62
_BAR_GAP, _BAR_WIDTH = 0.3, 0.17
_TITLE_LETTER = 0.098

_PALE, _LINE, _DARK, _GREY, _WINNER = "#f1f0ee", "#d3d1cc", "#222222", "#75736e", "#d4145a"
_HATCHES = {"wrong": "xxx", "failed": "///"}
_TICKS = (1, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 4, 6, 10, 20, 40, 100)
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text, so that it can be searched
    "svg.hashsalt": "jitd",  # the same file for the same landscape
    "hatch.linewidth": 0.5,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
}


def draw(
    landscape: Landscape,
    path: Path,
    *,
    title: str,
    device: str,
    x: str | None = None,
    y: str | None = None,
) -> None:
    """Draw a panel for each variant that was timed, into a .png or .svg file.

    A cell is the fastest of the configs that share `x` and `y`; its colour says how far it is from
    the best of all. Raises JitdError without matplotlib, ValueError for axes that are not there or
    where nothing was timed, OSError if the file cannot be written.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  (0.5 s)
    except ImportError as error:
        raise JitdError(f"a plot needs matplotlib: pip install 'jitd[plot]' ({error})") from error
    panels, best = landscape.panels(x, y), landscape.best_us
    if not panels or best is None:
        raise ValueError(f"nothing was timed for {title}: there is nothing to draw.")
    kind = path.suffix.lower().lstrip(".")
    with mpl.rc_context(_SETTINGS):
        figure = _figure(panels, best, title, _subtitle(landscape, device))
        undated = {"Date": None} if kind == "svg" else {}
        figure.savefig(path, dpi=160, metadata=undated, format=kind)


def _subtitle(landscape: Landscape, device: str) -> str:
    us = next((p.us for p in landscape.points if p.config == landscape.winner), None)
    time = "" if us is None else f", {_number(us)} us"
    return f"{device or 'unknown card'}   \N{BLACK STAR} {landscape.winner}{time}"


def _figure(panels: Sequence[Panel], best: float, title: str, subtitle: str) -> "Figure":
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.cm import ScalarMappable  # noqa: PLC0415
    from matplotlib.colors import LogNorm  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415  (no pyplot: no global state)

    columns = max(len(panel.xs) for panel in panels)
    heights = [_CELL_HEIGHT * len(panel.ys) for panel in panels]
    width = max(
        _LEFT + _CELL_WIDTH * columns + _RIGHT,
        2 * 0.25 + _TITLE_LETTER * len(title),
        2 * 0.25 + 0.8 * _TITLE_LETTER * len(subtitle),
    )
    height = _TOP + sum(heights) + len(panels) * (_ABOVE_PANEL + _BELOW_PANEL) + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.text(0.25 / width, 1 - 0.34 / height, title, fontsize=12, fontweight="bold", color=_DARK)
    figure.text(0.25 / width, 1 - 0.62 / height, subtitle, fontsize=9.5, color=_GREY)

    ratios = [cell.us / best for panel in panels for cell in panel.cells.values() if cell.us]
    shades = ScalarMappable(LogNorm(1, max(1.2, *ratios)), colormaps["YlGnBu_r"])
    below = height - _TOP
    for panel, tall in zip(panels, heights, strict=True):
        below -= _ABOVE_PANEL + tall
        wide = _CELL_WIDTH * len(panel.xs)
        axes = figure.add_axes(
            (_LEFT / width, below / height, wide / width, tall / height), label=panel.variant
        )
        _draw_panel(axes, panel, best, shades)
        below -= _BELOW_PANEL
    foot = below + _BELOW_PANEL
    bar = figure.add_axes(
        (
            (_LEFT + _CELL_WIDTH * columns + _BAR_GAP) / width,
            foot / height,
            _BAR_WIDTH / width,
            (height - _TOP - _ABOVE_PANEL - foot) / height,
        )
    )
    _draw_bar(figure, bar, shades)
    return figure


def _draw_panel(axes: "Axes", panel: Panel, best: float, shades: Any) -> None:
    axes.set_xlim(0, len(panel.xs))
    axes.set_ylim(0, len(panel.ys))
    for (x, y), cell in panel.cells.items():
        _draw_cell(axes, panel.xs.index(x), panel.ys.index(y), cell, best, shades)
    axes.set_xticks([i + 0.5 for i in range(len(panel.xs))], [str(value) for value in panel.xs])
    axes.set_yticks([i + 0.5 for i in range(len(panel.ys))], [str(value) for value in panel.ys])
    axes.set_xlabel(panel.x, color=_DARK)
    axes.set_ylabel(panel.y, color=_DARK)
    axes.set_title(
        f"{panel.variant}: us", loc="left", fontsize=10.5, fontweight="bold", color=_DARK
    )
    axes.tick_params(length=0, colors=_DARK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_cell(axes: "Axes", column: int, row: int, cell: Cell, best: float, shades: Any) -> None:
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    color: Any = _PALE if cell.us is None else shades.to_rgba(cell.us / best)
    hatch = _HATCHES.get(cell.fate)
    edge = _LINE if hatch else "white"
    axes.add_patch(
        Rectangle((column, row), 1, 1, facecolor=color, edgecolor=edge, linewidth=1, hatch=hatch)
    )
    middle = (column + 0.5, row + 0.5)
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    if cell.us is None:
        box = {"facecolor": _PALE, "edgecolor": "none", "pad": 1.5}
        axes.text(*middle, cell.fate, **centred, fontsize=8, color=_GREY, bbox=box)
        return
    text = f"\N{BLACK STAR} {_number(cell.us)}" if cell.wins else _number(cell.us)
    ink = _DARK if _brightness(color) > 0.5 else "white"
    axes.text(*middle, text, **centred, color=ink, fontweight="bold" if cell.wins else "normal")
    if cell.wins:
        outline = Rectangle(
            (column + 0.03, row + 0.05), 0.94, 0.9,
            fill=False, edgecolor=_WINNER, linewidth=2.4, zorder=3, gid="winner",
        )  # fmt: skip
        axes.add_patch(outline)


def _draw_bar(figure: "Figure", axes: "Axes", shades: Any) -> None:
    from matplotlib.ticker import NullLocator  # noqa: PLC0415

    most = shades.norm.vmax
    ticks = [tick for tick in _TICKS if tick <= most * 1.001]
    bar = figure.colorbar(shades, cax=axes)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks, labels=[f"{tick:g}x" for tick in ticks])
    bar.ax.invert_yaxis()  # the best on top
    bar.ax.tick_params(length=0, colors=_DARK)
    bar.outline.set_visible(False)
    bar.set_label("of the best time", color=_DARK)


def _brightness(color: tuple[float, float, float, float]) -> float:
    """0 black, 1 white, as the eye weighs the colours."""
    red, green, blue, _ = color
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _number(us: float) -> str:
    """Three figures."""
    return f"{us:.{max(0, 2 - len(str(int(us))) + 1)}f}"
