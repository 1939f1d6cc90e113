"""Arrays that hold one value for each of several clients, for hooks written for one client.

An algorithm's client half is arithmetic on named arrays. On :class:`PerClient` arrays the same code
computes every client's result at once. What would need one client's number by itself, such as an
``if`` on it, raises :class:`CannotBatch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from runtime.errors import RengoError

Array: TypeAlias = NDArray[Any]


class CannotBatch(RengoError):
    """Clients cannot be trained at once here; the text names the operation that prevents it."""


class PerClient(NDArrayOperatorsMixin):
    """One array of the same shape for each client.

    Shapes: ``stack`` is [clients, ...]; ``shape`` and every axis in a call are one client's.
    """

    __slots__ = ("stack",)

    def __init__(self, stack: Array) -> None:
        self.stack = stack

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", None)
        if method != "__call__" or ufunc.signature is not None or options or ufunc.nout != 1:
            raise CannotBatch(f"numpy's {ufunc.__name__} as it is called here")
        if out is None:
            return PerClient(ufunc(*_aligned(inputs)))
        (target,) = out
        if not isinstance(target, PerClient):
            raise CannotBatch(f"numpy's {ufunc.__name__} into an array that clients share")
        target.stack[...] = ufunc(*_aligned(inputs))
        return target

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one client's array."""
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        """The number of axes of one client's array."""
        return self.stack.ndim - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values."""
        return self.stack.dtype

    @property
    def size(self) -> int:
        """The number of values of one client."""
        return int(np.prod(self.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Any) -> PerClient:
        keys = where if isinstance(where, tuple) else (where,)
        if not all(isinstance(key, int | slice) or key is None or key is ... for key in keys):
            raise CannotBatch("an index that is an array")
        return PerClient(self.stack[(slice(None), *keys)])

    def sum(self, axis: int | tuple[int, ...] | None = None) -> PerClient:
        """Return each client's sum."""
        return PerClient(self.stack.sum(self._axes(axis)))

    def mean(self, axis: int | tuple[int, ...] | None = None) -> PerClient:
        """Return each client's mean."""
        return PerClient(self.stack.mean(self._axes(axis)))

    def max(self, axis: int | tuple[int, ...] | None = None) -> PerClient:
        """Return each client's largest value."""
        return PerClient(self.stack.max(self._axes(axis)))

    def min(self, axis: int | tuple[int, ...] | None = None) -> PerClient:
        """Return each client's smallest value."""
        return PerClient(self.stack.min(self._axes(axis)))

    def clip(self, least: float, most: float) -> PerClient:
        """Return the values within bounds that all clients share."""
        return PerClient(self.stack.clip(least, most))

    def round(self) -> PerClient:
        """Return the values rounded to whole numbers."""
        return PerClient(self.stack.round())

    def copy(self) -> PerClient:
        """Return a copy."""
        return PerClient(self.stack.copy())

    def reshape(self, *shape: Any) -> PerClient:
        """Return each client's array in another shape."""
        sides = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        return PerClient(self.stack.reshape(len(self.stack), *sides))

    def _axes(self, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
        chosen = range(self.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        return tuple(each + 1 if each >= 0 else each for each in chosen)

    # --- what one client's array could do, and several clients' cannot -------------------------

    def __bool__(self) -> NoReturn:
        raise CannotBatch("a condition on a number that differs from client to client")

    def __float__(self) -> NoReturn:
        raise CannotBatch("float() of a number that differs from client to client")

    def __int__(self) -> NoReturn:
        raise CannotBatch("int() of a number that differs from client to client")

    def __index__(self) -> NoReturn:
        raise CannotBatch("an index that differs from client to client")

    def __round__(self, ndigits: int | None = None) -> NoReturn:
        raise CannotBatch("round() of a number that differs from client to client")

    def __iter__(self) -> NoReturn:
        raise CannotBatch("a loop over the values of an array")

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        raise CannotBatch("a function of numpy's on an array")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CannotBatch(f".{name} of an array")


def _aligned(values: Sequence[Any]) -> list[Any]:
    """Return arrays that numpy's rules then broadcast client by client."""
    rank = max(value.ndim if isinstance(value, PerClient) else np.ndim(value) for value in values)
    return [_with_rank(each, rank) if isinstance(each, PerClient) else each for each in values]


def _with_rank(value: PerClient, rank: int) -> Array:
    missing = rank - value.ndim
    if not missing:
        return value.stack
    return value.stack.reshape(len(value.stack), *(1,) * missing, *value.shape)


def stacked(arrays: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, PerClient]]:
    """Return the states of several clients, which have the same names and shapes, as one."""
    return {
        name: {each: PerClient(np.stack([one[name][each] for one in arrays])) for each in kept}
        for name, kept in arrays[0].items()
    }


def of_client(state: Mapping[str, Mapping[str, Any]], number: int) -> dict[str, dict[str, Any]]:
    """Return one client's part of a state, which no other client's shares memory with."""
    return {
        name: {each: _of_client(value, number) for each, value in kept.items()}
        for name, kept in state.items()
    }


def _of_client(value: Any, number: int) -> Any:
    if not isinstance(value, PerClient):
        return value
    own = value.stack[number]
    return own.copy() if isinstance(own, np.ndarray) else own
