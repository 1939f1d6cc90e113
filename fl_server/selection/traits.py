"""What is known of a device when runs choose their devices: by its own word and by the operator's.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from broker.wire.messages import DeviceInfo


@dataclass(frozen=True)
class DeviceTraits:
    """One device, as far as runs may choose by it.

    Attributes:
        info: what it says of itself, None where it has said nothing yet.
        group: the one that its operator put it in, "" for none.
        labels: those that an operator gave it; they come before its own.
    """

    id: str
    info: DeviceInfo | None = None
    group: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str | None:
        """Return a label, the operator's before its own; None where it has none of this name."""
        if name in self.labels:
            return self.labels[name]
        return None if self.info is None else self.info.labels.get(name)

    @property
    def accelerators(self) -> Sequence[str]:
        """What it can compute on beside its processor, as it names them."""
        return () if self.info is None else self.info.accelerators
