"""Whether a version's values are ones to train from and to predict with.

A model may hold constants that are infinite, as an attention mask does: a tensor of zeros and
infinities of one sign. Any other value that is not finite comes from a training that diverged, or
from a damaged file, and would make every later version useless.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from runtime.errors import Corrupt
from storage.weights.layout import Layout
from storage.weights.model import Vector, Weights
from storage.weights.safetensors import Reader, read_layout

_BLOCK_BYTES = 1 << 20


class NotFinite(Corrupt):
    """A version has values that are not finite; the text names the tensor."""


def require_finite(stream: Reader, what: str) -> None:
    """Read a file in the stored form to the end of its floats.

    Args:
        stream: at the file's beginning.
        what: names the file in the error.

    Raises:
        NotFinite: a tensor holds values that no version may have.
        Corrupt: it is not in the stored form, or ends early.
    """
    layout, _ = read_layout(stream)
    constants = []
    for spec in layout.floats:
        blocks = _blocks(stream, spec.stored_bytes, what)
        if _is_constant(blocks, f"{what}: tensor {spec.name!r}"):
            constants.append(spec.name)
    if constants and len(constants) == len(layout.floats):
        raise NotFinite(f"{what}: no tensor has finite values; the first is {constants[0]!r}")


def require_same_constants(weights: Weights, model: Weights, what: str) -> None:
    """Raise NotFinite where a value that is not finite is not the one that the model has there."""
    finite = np.isfinite(weights.vector)
    if finite.all():
        return
    differs = weights.vector.view(np.uint32) != model.vector.view(np.uint32)
    bad = np.flatnonzero(~finite & differs)
    if bad.size:
        name = tensor_at(weights.layout, int(bad[0]))
        raise NotFinite(f"{what}: tensor {name!r} has a value that is not finite")


def next_values(before: Vector, after: Vector, layout: Layout, start: int) -> Vector:
    """Return a block of the next version: constants of the version before it stay what they are.

    Args:
        before: the block in the version before.
        after: what the algorithm made of it.
        layout: of both.
        start: where the block stands in the vector.

    Raises:
        NotFinite: a value that was finite is no longer, or one is not a number.
    """
    constant = ~np.isfinite(before)
    if not constant.any() and np.isfinite(after).all():
        return after
    values = np.where(constant, before, after)
    bad = np.flatnonzero(np.isnan(values) | (np.isinf(values) & ~constant))
    if bad.size:
        at = int(bad[0])
        raise NotFinite(
            f"tensor {tensor_at(layout, start + at)!r} would not be finite in the next version: "
            f"{before[at]} becomes {after[at]}"
        )
    return values


def tensor_at(layout: Layout, index: int) -> str:
    """Return the name of the tensor that has this element of the vector."""
    return next(name for name, where in layout.offsets.items() if where.start <= index < where.stop)


def _blocks(stream: Reader, size: int, what: str) -> Iterator[Vector]:
    left = size
    while left:
        data = bytearray()
        wanted = min(left, _BLOCK_BYTES)
        while len(data) < wanted:
            part = stream.read(wanted - len(data))
            if not part:
                raise Corrupt(f"{what}: it ends within its values")
            data += part
        left -= wanted
        yield np.frombuffer(data, "<f4")


def _is_constant(blocks: Iterator[Vector], what: str) -> bool:
    """Whether a tensor is zeros and infinities of one sign; False where it is finite."""
    infinities: set[float] = set()
    varies = False
    for block in blocks:
        finite = np.isfinite(block)
        if finite.all():
            varies = varies or bool(block.any())
            continue
        if np.isnan(block).any():
            raise NotFinite(f"{what} has values that are not a number")
        infinities.update(np.unique(block[~finite]).tolist())
        varies = varies or bool(block[finite].any())
    if infinities and (varies or len(infinities) > 1):
        raise NotFinite(f"{what} has values that are infinite")
    return bool(infinities)
