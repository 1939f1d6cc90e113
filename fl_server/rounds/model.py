"""What lies in the store, as the round machine knows it: versions of the model, and updates."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Model:
    """One committed version of the global model; version 0 is what the submitter uploaded.

    ``state_key`` names the algorithm's server state that belongs to it, empty where it has none.
    ``changed`` are the byte ranges of the file that differ from the version before it; None where
    that is not known or too much for it to be of use. ``scalars`` are the algorithm's, by name.
    """

    version: int
    key: str
    sha256: str
    size_bytes: int
    state_key: str = ""
    state_sha256: str = ""
    changed: tuple[tuple[int, int], ...] | None = None
    state_bytes: int = 0
    scalars: tuple[tuple[str, float], ...] = ()

    @property
    def state(self) -> Model | None:
        """The object of the algorithm's server state, None where there is none."""
        if not self.state_key:
            return None
        return Model(self.version, self.state_key, self.state_sha256, self.state_bytes)


@dataclass(frozen=True)
class Update:
    """An uploaded update as its device reports it; ``usage``: see ``messages.Usage``.

    ``population``: how many devices the run knows below a domain, 1 for a device.
    """

    key: str
    size_bytes: int
    header_sha256: str
    num_examples: int
    metrics: dict[str, float] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)
    population: int = 1
