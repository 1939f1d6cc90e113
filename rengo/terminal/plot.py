"""Pictures: the headline metric of runs by round, and how a data set is divided over devices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOUR = "#1f6f8b"
_DPI = 110
_HIGHEST = 9.0
_MOST_NAMES = 40
_MOST_CLASSES = 20


def draw_metric(measured: Mapping[int, float], name: str, title: str, path: Path) -> None:
    """Write the plot.

    Args:
        measured: the metric by round.
        name: of the metric.

    Raises:
        MissingExtra: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    figure = _figure(3.4)
    axes = _axes_over_rounds(figure, name)
    rounds = sorted(measured)
    values = [measured[number] for number in rounds]
    axes.plot(rounds, values, color=_COLOUR, linewidth=2, marker="o", markersize=4)
    axes.annotate(
        f"{values[-1]:.3f}",
        (rounds[-1], values[-1]),
        xytext=(0, -16),
        textcoords="offset points",
        ha="right",
        color=_COLOUR,
    )
    axes.set_title(title, loc="left", fontsize=10)
    _save(figure, axes, path)


def draw_comparison(
    curves: Mapping[str, Mapping[int, tuple[float, float]]],
    name: str,
    target: float | None,
    path: Path,
) -> None:
    """Write the plot: a line for each variant, in a band of its deviation.

    Args:
        curves: by variant the mean and the deviation of the metric by round.
        name: of the metric.
        target: where a line goes across, if anywhere.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: it has no pictures of this kind.
        OSError: the file cannot be written.
    """
    figure = _figure(4.2)
    _require_kind(figure, path)
    axes = _axes_over_rounds(figure, name)
    for variant, curve in curves.items():
        rounds = sorted(curve)
        low, high = ([curve[n][0] + side * curve[n][1] for n in rounds] for side in (-1, 1))
        # the space: a label that begins with an underscore is left out of the legend
        (line,) = axes.plot(rounds, [curve[n][0] for n in rounds], label=f" {variant}"[:80])
        axes.fill_between(rounds, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    if target is not None:
        axes.axhline(target, color="#888888", linestyle="--", linewidth=1)
    axes.legend(frameon=False, fontsize=8)
    _save(figure, axes, path)


def draw_partition(counts: Mapping[str, Mapping[int, int]], title: str, path: Path) -> None:
    """Write the plot: a bar for each device, of a piece for each class.

    Args:
        counts: for each device the examples of each class.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: it has no pictures of this kind.
        OSError: the file cannot be written.
    """
    figure = _figure(min(_HIGHEST, 1.4 + 0.22 * len(counts)))
    from matplotlib import colormaps  # noqa: PLC0415  (an extra, and slow)

    _require_kind(figure, path)
    axes = figure.subplots()
    labels = sorted({label for each in counts.values() for label in each})
    places, left = range(len(counts)), [0] * len(counts)
    for number, label in enumerate(labels):
        widths = [each.get(label, 0) for each in counts.values()]
        colour = colormaps["turbo"](0.05 + 0.9 * number / max(1, len(labels) - 1))
        axes.barh(places, widths, left=left, color=colour, label=str(label))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    step = 1 + len(counts) // _MOST_NAMES
    axes.set_yticks(list(places)[::step], list(counts)[::step])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set(xlabel="examples, coloured by class")
    axes.set_title(title, loc="left", fontsize=10)
    if 1 < len(labels) <= _MOST_CLASSES:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8, frameon=False)
    _save(figure, axes, path)


def _figure(height: float) -> Figure:
    try:
        # Figure alone draws with Agg: no window system and no global state
        from matplotlib.figure import Figure  # noqa: PLC0415  (an extra, and slow)
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot") from error
    return Figure(figsize=(6.4, height), layout="constrained")


def _axes_over_rounds(figure: Figure, name: str) -> Axes:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415  (an extra, and slow)

    axes = figure.subplots()
    axes.set(xlabel="round", ylabel=f"{name} on held-out data")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="#e5e5e5")
    axes.set_axisbelow(True)
    return axes


def _require_kind(figure: Figure, path: Path) -> None:
    if path.suffix.lower().lstrip(".") not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{path} is no picture that can be written: name a .png, .svg or .pdf")


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=_DPI)
