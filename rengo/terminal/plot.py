"""A run's headline metric by round, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from runtime.errors import MissingExtra

_COLOUR = "#1f6f8b"
_DPI = 110


def draw_metric(measured: Mapping[int, float], name: str, title: str, path: Path) -> None:
    """Write the plot.

    Args:
        measured: the metric by round.
        name: of the metric.

    Raises:
        MissingExtra: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    try:
        # Figure alone draws with Agg: no window system and no global state
        from matplotlib.figure import Figure  # noqa: PLC0415  (an extra, and slow)
        from matplotlib.ticker import MaxNLocator  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot") from error
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
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
    axes.set(xlabel="round", ylabel=f"{name} on held-out data")
    axes.set_title(title, loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, color="#e5e5e5")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=_DPI)
