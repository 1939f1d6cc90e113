"""CFL: a cluster of clients is split in two where it is at rest while its clients pull apart.

Source: Sattler, Mueller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multitask
Optimization Under Privacy Constraints", IEEE Transactions on Neural Networks and Learning Systems
2021, Algorithms 1 and 3, https://arxiv.org/abs/1910.01991.

The paper's server compares whole updates and keeps a list of each cluster's members. Here clients
send sketches, random projections of their updates to a few numbers, which keep cosines to about one
over the root of their count. A split is announced as a plane among sketches, and a client finds its
side by its own last one. One that has trained in no cluster yet takes that of the lowest loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

from algorithms._clusters import ClusterModels
from algorithms.base import (
    Arrays,
    Blocks,
    Flat,
    Local,
    Mean,
    Received,
    Report,
    Scalars,
    Sent,
    State,
)
from runtime.bounds import MAX_SIZE
from runtime.records import Bounds

_SIGNS, _CLUSTER, _SKETCH = "signs", "cluster", "sketch"
_COUNT, _ROUNDS, _FIRST, _NORM = "clusters", "rounds", "first", "squared_norm"


@dataclass(frozen=True)
class CFL(ClusterModels):
    """FedAvg in clusters, which are found by splitting them where clients' updates disagree.

    The exported global model is the mean of the clusters' models.

    Attributes:
        clusters: the most clusters.
        ratio: a cluster may be split where its mean update is shorter than this share of its
            clients' longest.
        moving: the longest must be above this share of the first round's longest. The paper has
            two lengths for both, which depend on the model and the learning rate.
        across: the largest cosine that updates of clients on different sides may have; in the
            paper it is the root of half of ``1 - gamma_max``.
        first_split: the first round with a split.
        sketch: how many numbers a client's update is projected to.
    """

    clusters: Annotated[int, Bounds(least=1, most=16)] = 4
    ratio: Annotated[float, Bounds(above=0, most=1)] = 0.25
    moving: Annotated[float, Bounds(least=0)] = 0.1
    across: Annotated[float, Bounds(least=-1, most=1)] = 0.1
    first_split: Annotated[int, Bounds(least=1, most=MAX_SIZE)] = 20
    sketch: Annotated[int, Bounds(least=1, most=48)] = 48

    @property
    def reports(self) -> tuple[str, ...]:
        """A client's cluster, and the squared norm and the sketch of its update."""
        return (_CLUSTER, _NORM, *(f"{_SKETCH}_{at}" for at in range(self.sketch)))

    @property
    def broadcasts(self) -> tuple[str, ...]:
        """All clusters' models, the signs of the projection, and the splits until now."""
        new = range(1, self.clusters)
        planes = (f"plane_{number}_{at}" for number in new for at in range(self.sketch))
        return (*self.sends, _SIGNS, _COUNT, *(f"parent_{number}" for number in new), *planes)

    # --- the client half ----------------------------------------------------------------------

    def start(self, got: Received, state: State, local: Local) -> tuple[Arrays, State]:
        """Return the model of the client's cluster."""
        number = self._cluster(got, state, local)
        zero = next(iter(got.weights.values())).reshape(-1)[:0].sum()
        at = {"number": zero + number, "known": zero + got.scalars.get(_COUNT, 1)}
        return self.model(got, number), {**state, _CLUSTER: at}

    def finish(self, w: Arrays, got: Received, state: State, local: Local) -> tuple[Sent, State]:
        """Return the change of the cluster's model, and its sketch, which the client keeps too."""
        number = int(state[_CLUSTER]["number"])
        change = self.change(w, got, number)
        sketch = self._sketch(change, got.vectors[_SIGNS])
        scalars = {f"{_SKETCH}_{at}": float(value) for at, value in enumerate(sketch)}
        scalars[_CLUSTER] = float(number)
        scalars[_NORM] = sum(float((each * each).sum()) for each in change.values())
        kept = {str(at): value for at, value in enumerate(sketch)}
        return Sent({self.sends[number]: change}, scalars), {**state, _SKETCH: kept}

    def personal(self, got: Received, state: State, local: Local) -> Arrays | None:
        """Return the model of the client's cluster."""
        return self.model(got, self._cluster(got, state, local))

    def _cluster(self, got: Received, state: State, local: Local) -> int:
        count = int(got.scalars.get(_COUNT, 1))
        if _SKETCH not in state:
            return self.best(got, local, count)
        number, known = (int(state[_CLUSTER][each]) for each in ("number", "known"))
        sketch = [float(state[_SKETCH][str(at)]) for at in range(self.sketch)]
        # what split its cluster since it trained last, in order
        for new in range(known, count):
            plane = [got.scalars[f"plane_{new}_{at}"] for at in range(self.sketch)]
            side = sum(one * other for one, other in zip(sketch, plane, strict=True))
            if got.scalars[f"parent_{new}"] == number and side > 0:
                number = new
        return number

    def _sketch(self, change: Arrays, signs: Arrays) -> list[Any]:
        """Return sums of the values with random signs, of every ``sketch``-th value each."""
        zero = next(iter(signs.values())).reshape(-1)[:0].sum()
        found, passed = [zero] * self.sketch, 0
        for name, sign in signs.items():
            if name in change:
                values = (change[name] * sign).reshape(-1)
                for at in range(self.sketch):
                    part = values[(at - passed) % self.sketch :: self.sketch]
                    found[at] = found[at] + part.sum()
            passed += len(sign.reshape(-1))
        return found

    # --- the server half ----------------------------------------------------------------------

    def init(self, weights: Flat, start: int, seed: int) -> dict[str, Flat]:
        """Return version 0 for each cluster, and the signs."""
        bits = np.random.default_rng([seed, start]).integers(0, 2, len(weights))
        return {**dict.fromkeys(self.sends, weights), _SIGNS: (2 * bits - 1).astype(weights.dtype)}

    def measure(self, weights: Flat, mean: Mean, state: Blocks) -> dict[str, float]:
        """Return the squared norms of the clusters' mean updates."""
        return {
            name: float(np.square(mean.vectors[name], dtype=float).sum()) for name in self.sends
        }

    def advance(
        self, mean: Mean, reports: Sequence[Report], scalars: Scalars, measured: Scalars
    ) -> Scalars:
        """Split the clusters whose mean update is short beside the longest of a client."""
        after = {_COUNT: 1.0, _FIRST: _longest(reports), **scalars}
        after[_ROUNDS] = scalars.get(_ROUNDS, 0.0) + 1
        if after[_ROUNDS] < self.first_split:
            return after
        for number in range(int(after[_COUNT])):
            members = [report for report in reports if report.scalars[_CLUSTER] == number]
            longest, mean_norm = _longest(members), measured[self.sends[number]] ** 0.5
            is_at_rest = mean_norm < self.ratio * longest and longest > self.moving * after[_FIRST]
            new = int(after[_COUNT])
            if is_at_rest and len(members) > 2 and new < self.clusters:
                plane = self._plane(members)
                if plane is not None:
                    after |= {f"plane_{new}_{at}": value for at, value in enumerate(plane)}
                    after |= {f"parent_{new}": float(number), f"made_{new}": after[_ROUNDS]}
                    after[_COUNT] = new + 1.0
        return after

    def aggregate(
        self, weights: Flat, mean: Mean, state: Blocks, scalars: Scalars
    ) -> tuple[Flat, dict[str, Flat]]:
        """Return the mean of the clusters' models; a new one begins as that which was split."""
        models: dict[str, Flat] = {}
        for number, name in enumerate(self.sends):
            models[name] = (state[name] + mean.vectors[name]).astype(weights.dtype, copy=False)
            if scalars.get(f"made_{number}") == scalars[_ROUNDS]:
                models[name] = models[self.sends[int(scalars[f"parent_{number}"])]]
        count = int(scalars[_COUNT])
        total = sum(models[name] for name in self.sends[:count]) / count
        return np.asarray(total, weights.dtype), {**models, _SIGNS: state[_SIGNS]}

    def _plane(self, members: Sequence[Report]) -> list[float] | None:
        """Return the normal of the plane between two sides, towards the second; None for one."""
        names = self.reports[2:]
        sketches = np.array([[each.scalars[name] for name in names] for each in members])
        sketches /= np.maximum(np.linalg.norm(sketches, axis=1, keepdims=True), 1e-30)
        similar = sketches @ sketches.T
        side = _bipartition(similar)
        if similar[side][:, ~side].max() > self.across:
            return None
        normal = sketches[side].mean(axis=0) - sketches[~side].mean(axis=0)
        return [float(value) for value in normal]


def _longest(reports: Sequence[Report]) -> float:
    return math.sqrt(max((report.scalars[_NORM] for report in reports), default=0.0))


def _bipartition(similar: Flat) -> Any:
    """Return which are of the second side, where the highest similarity across is the lowest.

    The most similar are joined until two groups are left.
    """
    size = len(similar)
    group, groups = np.arange(size), size
    rows, columns = np.triu_indices(size, 1)
    for pair in np.argsort(-similar[rows, columns], kind="stable"):
        one, other = group[rows[pair]], group[columns[pair]]
        if groups > 2 and one != other:
            group[group == other] = one
            groups -= 1
    return group != group[0]
