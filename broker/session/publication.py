"""A message on its way to a broker, and one that came from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Publication:
    """A message to publish."""

    topic: str
    payload: bytes
    retain: bool = False
    qos: Literal[0, 1] = 1


@dataclass(frozen=True)
class Delivery:
    """A message from the broker. ``mid`` and ``generation`` identify it for its acknowledgement."""

    topic: str
    payload: bytes
    retain: bool
    mid: int
    generation: int
