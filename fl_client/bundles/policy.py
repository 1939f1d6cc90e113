"""Which task bundles a device runs: its own settings, and the judgement by them. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from broker.wire.messages import Order

if TYPE_CHECKING:
    from storage.bundles.bundle import SignedManifest

KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Allowed = Annotated[str, Field(pattern=r"^(\*|[a-z0-9_-]{1,64})$")]


class BundleSettings(BaseModel):
    """What may come as a bundle; as it stands, nothing may, because nobody is trusted.

    Attributes:
        trust: the public keys of those whose bundles may run here.
        allow: the names of the tasks that may come so, or "*".
        install: how packages that a bundle needs and this device has not get into the bundle's
            environment: not at all, from ``wheels`` alone, or as pip is configured.
        wheels: the folder of packages for "offline".
        max_bytes: of a bundle, as it comes and unpacked.
        keep: how many bundles stay unpacked, the latest used.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trust: Annotated[list[KeyText], Field(max_length=64)] = []
    allow: Annotated[list[Allowed], Field(max_length=64)] = ["*"]
    install: Literal["never", "offline", "pip"] = "never"
    wheels: Path | None = None
    max_bytes: Annotated[int, Field(ge=1, le=1 << 30)] = 16 << 20
    keep: Annotated[int, Field(ge=2, le=64)] = 4

    @property
    def offered(self) -> list[str]:
        """What the device says that it takes as a bundle: nothing where it trusts nobody."""
        return list(self.allow) if self.trust else []


@dataclass(frozen=True)
class BundleHost:
    """What a bundle is held against beside the settings.

    Attributes:
        rengo: the version that is installed here.
        memory_bytes: what a training process may hold; 0 where nothing limits it.
        clock: returns this machine's time where it is known to be right, else None.
    """

    rengo: str
    memory_bytes: int
    clock: Callable[[], int | None]


def refusal_of_order(order: Order, settings: BundleSettings) -> str:
    """Return why an order's bundle need not even be fetched, "" where it may be."""
    task, bundle = order.task, order.bundle
    if bundle is None:
        return "and the order brings no bundle"
    if not settings.trust:
        return "and this device trusts nobody's bundles ([bundles] trust is empty)"
    if {task, "*"}.isdisjoint(settings.allow):
        return f"and this device does not allow it as a bundle (allowed: {_listed(settings.allow)})"
    if bundle.size_bytes > settings.max_bytes:
        return (
            f"and its bundle of {bundle.size_bytes} bytes is too large for this device "
            f"(at most {settings.max_bytes})"
        )
    return ""


def refusal_of_bundle(
    signed: SignedManifest, settings: BundleSettings, machine: BundleHost, server_ms: int
) -> str:
    """Return why a bundle must not run here now, "" where it may.

    Expiry is judged by the server's time, which came signed with the order, so that a device whose
    clock is off by years is not fooled; by this machine's clock as well, where it is known to be
    right, so that the server alone cannot make an expired bundle young.

    Args:
        server_ms: when the order was made, as the server signed it.
    """
    manifest, signer = signed.manifest, signed.signer
    if signer is None:
        return "nobody has signed it"
    if signer.text not in settings.trust:
        return f"this device does not trust the key {signer.text} that signed it"
    if {manifest.name, "*"}.isdisjoint(settings.allow):
        return f"this device does not allow it (allowed: {_listed(settings.allow)})"
    if manifest.size_bytes > settings.max_bytes:
        return f"its files are {manifest.size_bytes} bytes, at most {settings.max_bytes} fit here"
    own_ms = machine.clock()
    now_ms = server_ms if own_ms is None else max(server_ms, own_ms)
    if manifest.expires_ms and now_ms >= manifest.expires_ms:
        return f"it expired {_days((now_ms - manifest.expires_ms) / 86_400_000)} ago"
    if _version(manifest.rengo) > _version(machine.rengo):
        return f"it needs Rengo {manifest.rengo}, here is {machine.rengo}"
    if 0 < machine.memory_bytes < manifest.memory_bytes:
        return (
            f"it needs {manifest.memory_bytes} bytes of memory, a training may have "
            f"{machine.memory_bytes} here"
        )
    return ""


def _version(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version."""
    numbers = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _days(days: float) -> str:
    return f"{days:.0f} days" if days >= 2 else f"{days * 24:.0f} hours"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
