"""Which examples are held out: it depends on the example alone, not on the other examples."""

from __future__ import annotations

import hashlib

from fl_client.datasets.sample import Sample

_WHOLE = 1 << 64


def is_held_out(task: str, sample: Sample, share: float) -> bool:
    """Return whether an example is never trained on.

    It depends on the task's name and the example's id, or its group if it has one. A larger share
    moves examples into the held-out part and none out of it.
    """
    key = b"g" + sample.group.encode("utf-8", "replace") if sample.group else b"i" + sample.id
    point = hashlib.blake2b(key, digest_size=8, key=task.encode()[:64]).digest()
    return int.from_bytes(point) < share * _WHOLE
