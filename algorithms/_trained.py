"""Which weights are trained: those that have a gradient. A client ends with statistics, too."""

from __future__ import annotations

from algorithms.base import Arrays, State

_TRAINED = "trained"


def with_trained(state: State, g: Arrays) -> State:
    """Return the state of a round's steps, which holds the names of the gradient's weights."""
    if _TRAINED in state:
        return state
    return {**state, _TRAINED: {name: g[name].sum().reshape(1) for name in g}}


def without_trained(state: State) -> tuple[State, frozenset[str]]:
    """Return the state as it was before the round's steps, and the names of trained weights."""
    kept = {name: arrays for name, arrays in state.items() if name != _TRAINED}
    return kept, frozenset(state.get(_TRAINED, ()))


def squared_norm(change: Arrays, trained: frozenset[str]) -> float:
    """Return the squared norm of the change of the trained weights."""
    return sum(float((change[name] * change[name]).sum()) for name in sorted(trained))
