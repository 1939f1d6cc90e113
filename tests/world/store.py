"""A simulated object store. What it acknowledged it keeps, unless a fault says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Object:
    """An object's meaning in place of its bytes.

    Attributes:
        value: a model's weights or an update's delta, one integer.
        examples: an update's weight, 0 for a model.
        sha256: of the file or of the update's header.
        damaged: some bit is not what was sent.
        summed: of a domain's sums, those of what its devices sent.
    """

    value: int
    examples: int
    sha256: str
    damaged: bool = False
    summed: int | None = None

    @property
    def weighted(self) -> int:
        """What it adds to a round's sum: its value by its examples, or what it has summed up."""
        return self.examples * self.value if self.summed is None else self.summed


@dataclass
class Store:
    """Objects by key, and the URLs that were signed: a URL is (key, the time when it expires)."""

    objects: dict[str, Object] = field(default_factory=dict)

    def put(self, key: str, found: Object) -> None:
        """Replace the object atomically."""
        self.objects[key] = found

    def get(self, key: str) -> Object | None:
        """Return the object, or None."""
        return self.objects.get(key)

    def damage(self, key: str) -> None:
        """Flip one bit at rest."""
        self.objects[key] = replace(self.objects[key], damaged=True)

    def delete(self, key: str) -> None:
        """Remove the object if it is there."""
        self.objects.pop(key, None)


def url(key: str, expires_at: float) -> str:
    """Return a signed URL."""
    return f"{key}?expires={expires_at:.3f}"


def is_expired(signed: str, now: float) -> bool:
    """Whether the store refuses the URL by now."""
    return float(signed.rpartition("=")[2]) < now
