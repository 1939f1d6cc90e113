"""A run's transforms on the device, around whatever made the update: an engine or the task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from algorithms.base import UPDATE
from fl_client.models.local_round import LocalRound, LocalUpdate

_PREFIX = "transforms/"


def without_transforms(plan: LocalRound) -> LocalRound:
    """Return the plan with the state of the algorithm or the task alone."""
    if not plan.transforms:
        return plan
    state = {name: kept for name, kept in plan.state.items() if not name.startswith(_PREFIX)}
    return replace(plan, state=state)


def transformed(update: LocalUpdate, plan: LocalRound) -> LocalUpdate:
    """Return what is sent and kept behind all transforms of the plan, in their order.

    What they keep is part of the device's state: permanent with the update's receipt.
    """
    if not plan.transforms:
        return update
    vectors = dict(update.vectors)
    if update.vector is not None:
        vectors[UPDATE] = update.vector
    state = dict(update.state)
    for number, transform in enumerate(plan.transforms):
        prefix = f"{_PREFIX}{number}/"
        sent, kept = transform.outgoing(vectors, _under(prefix, plan.state))
        vectors = dict(sent)
        state.update((f"{prefix}{name}", vector) for name, vector in kept.items())
    return update._replace(vector=vectors.pop(UPDATE, None), vectors=vectors, state=state)


def codec_of(plan: LocalRound) -> str:
    """Return how the update is written, "" where no transform says."""
    said = [transform.codec for transform in plan.transforms if transform.codec]
    return said[-1] if said else ""


def _under(prefix: str, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(prefix): kept for name, kept in state.items() if name.startswith(prefix)
    }
