"""FjORD: ordered dropout: each local step trains a width that is drawn up to the device's own.

Source: Horvath et al., "FjORD: Fair and Accurate Federated Learning under heterogeneous targets
with Ordered Dropout", NeurIPS 2021, Algorithm 1, https://arxiv.org/abs/2102.13451, without the
self-distillation of section 3.3. The widths that are drawn from, alike likely, are those of the
run's devices up to the device's own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms._widths import (
    Axes,
    Narrowed,
    axes_of,
    layout_of,
    norms_without_statistics,
    units_of,
)
from algorithms.base import Arrays, Batch, Local, Received, State
from runtime.errors import ConfigError
from storage.weights import Layout, Slices


@dataclass(frozen=True)
class FjORD(Narrowed):
    """FedAvg whose steps train the first units of each layer alone, so that they matter most."""

    def part(self, width: float, round_number: int, layout: Layout) -> Slices | None:
        """Return the first units; ConfigError where units that a step drops would count."""
        if self.narrow_widths and (names := norms_without_statistics(layout)):
            raise ConfigError(f"{names[0]} normalises over units, and a step drops some of them")
        return super().part(width, round_number, layout)

    def direction(
        self, batch: Batch, w: Arrays, got: Received, state: State, local: Local
    ) -> tuple[Arrays, State]:
        """Return the gradient of the narrower model, zeros for the weights that it has not."""
        widths = [each for each in sorted({*self.widths.values(), 1.0}) if each < local.width]
        drawn = np.random.default_rng([local.seed, batch.number]).integers(len(widths) + 1)
        if drawn == len(widths):
            return batch.gradient(w), state
        axes, share = axes_of(layout_of(w)), widths[drawn] / local.width
        g = batch.gradient({name: _first(w[name], axes[name], share) for name in w})
        return {name: _first(g[name], axes[name], share) for name in g}, state


def _first(array: Any, axes: Axes, share: float) -> Any:
    """Return an array that has zeros but at the first units of its axes."""
    if not any(axes):
        return array
    kept = array * 0
    sides = []
    for axis in axes:
        if axis is None:
            sides.append([slice(None)])
        else:
            ends = units_of(axis.units, share) * axis.each
            starts = range(0, axis.size, axis.units * axis.each)
            sides.append([slice(start, start + ends) for start in starts])
    for place in itertools.product(*sides):
        kept[place] = array[place]
    return kept
