"""What a device needs of a version when it holds one of those before it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from broker.wire.messages import Patch
from fl_server.rounds.model import Model
from storage.transfer.byte_ranges import Range, coalesced, saves_enough

_LEAST_BYTES = 1 << 20
# what is transferred in the time of a round trip: a shorter gap is fetched with the rest
_GAP_BYTES = 128 << 10


def patches_to(model: Model, earlier: Sequence[Model]) -> list[Patch]:
    """Return how ``model`` differs from the consecutive versions before it, the nearest first.

    Empty where it saves little: a small model, many changes, or changes that are not known.
    """
    found: list[Patch] = []
    if model.size_bytes < _LEAST_BYTES:
        return found
    changed: list[Range] = []
    for after, base in pairwise([model, *reversed(earlier)]):
        if after.changed is None or base.size_bytes != model.size_bytes:
            break
        changed = coalesced([*changed, *after.changed], gap=_GAP_BYTES)
        if not saves_enough(changed, model.size_bytes):
            break
        if base.sha256 != model.sha256:
            found.append(Patch(base_sha256=base.sha256, changed=changed))
    return found
