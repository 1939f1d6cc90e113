"""The interface of a codec, which encodes a block of an update's vector and decodes it. Pure."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from storage.weights import Vector

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class Codec(abc.ABC):
    """One encoding of a block; a subclass's fields are its settings, all with defaults.

    Decoding needs no settings, only the bytes and the count.
    """

    lossless: ClassVar[bool]
    """Whether decode(encode(x)) has the bits of x."""

    @abc.abstractmethod
    def max_bytes(self, count: int) -> int:
        """Return the most bytes of an encoded block of ``count`` parameters."""

    @abc.abstractmethod
    def error_bound(self, block: Vector) -> float:
        """Return the largest absolute error that decode(encode(block)) may have; 0 if lossless."""

    @abc.abstractmethod
    def encode(self, block: Vector) -> Buffer:
        """Return the block's bytes, at least one; they may share the block's memory."""

    @abc.abstractmethod
    def decode(self, data: Buffer, count: int) -> Vector:
        """Return ``count`` parameters; they may share the memory of ``data``.

        Raises:
            Corrupt: the bytes are not those of ``count`` parameters.
        """
